package storekit

import (
	"context"
	"math/rand/v2"
	"time"
)

// maxHeartbeat is how long a waiter that has died may stay in line.
const maxHeartbeat = 5 * time.Second

// Heartbeat is how long a place in line lives without a sign of life: min(ttl, 5 s).
func Heartbeat(ttl time.Duration) time.Duration { return min(ttl, maxHeartbeat) }

// Recheck is how long a waiter with that TTL may go without a look: a third of its heartbeat, so that two
// may fail before its place is lost, or a tenth if it is deaf: while wake-ups do not arrive.
func Recheck(ttl time.Duration, deaf bool) time.Duration {
	if deaf {
		return Heartbeat(ttl) / 10
	}
	return Heartbeat(ttl) / 3
}

// Backoff makes pauses that grow exponentially, with full jitter. See
// https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/.
type Backoff struct{ Min, Max time.Duration }

// Pause is the pause before retry n, from 0: random, above zero, at most Min·2ⁿ and Max.
func (b Backoff) Pause(n int) time.Duration {
	limit := b.Max
	if n < 62 && b.Min<<n>>n == b.Min {
		limit = min(limit, b.Min<<n)
	}
	return 1 + rand.N(max(limit, 1))
}

// Sleep pauses before retry n, from 0. It returns ctx.Err() as soon as ctx ends.
func (b Backoff) Sleep(ctx context.Context, n int) error { return Sleep(ctx, b.Pause(n)) }

// Sleep pauses for d. It returns ctx.Err() as soon as ctx ends.
func Sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
