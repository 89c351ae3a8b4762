package storekit

import (
	"time"

	"github.com/seed-215fdefa/lock"
)

// Elapsed is how long ago t was, which must have come from time.Now, by whichever of the two
// clocks shows more. A suspended machine's monotonic clock stands still, and the store's goes
// on. What is believed for some time after t must be believed by Elapsed; a wall clock that
// is set forward only ends it early.
func Elapsed(t time.Time) time.Duration {
	now := time.Now()
	return max(now.Sub(t), now.Round(0).Sub(t.Round(0)))
}

// Vanished is the reason why g is not there any more, as far as this machine can tell: it has
// expired if its TTL can be over, and else nobody knows. Nor if g says nothing of its Start or its
// TTL, as in a Release by another Locker.
func Vanished(g lock.Grant) lock.LostReason {
	if g.Start.IsZero() || g.TTL <= 0 || Elapsed(g.Start) < g.TTL {
		return 0
	}
	return lock.ReasonExpired
}
