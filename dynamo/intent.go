package dynamo

import (
	"context"
	"fmt"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/internal/storekit"
)

// intent makes new readers hold back while a writer waits for those there to leave: it
// would never see the lock free otherwise. It lives by the writer's heartbeat, so that a
// writer who died while it waited blocks nobody for longer.
type intent struct {
	until int64
	owner string
}

// String has a fixed width in front, so that a condition can compare it.
func (i intent) String() string { return fmt.Sprintf("%016d:%s", i.until, i.owner) }

// holds tells whether new readers hold back now. An end that no living writer can have written
// is none: whatever wrote it will not take it away.
func (i intent) holds(m moment) bool {
	return i.until >= m.upper && i.until-m.upper <= micros(2*storekit.Heartbeat(lock.MaxTTL))
}

// behindReaders tells whether those who were seen last are readers.
func (a *acquisition) behindReaders() bool {
	return len(a.last.Holders) > 0 && a.last.Holders[0].Shared
}

// announce writes an intent if this writer has seen readers, and no intent that lasts for
// half a heartbeat. It is not repeated when it fails: this writer looks again soon.
func (a *acquisition) announce(ctx context.Context) {
	if a.req.Shared || !a.behindReaders() {
		return
	}
	heartbeat := micros(storekit.Heartbeat(a.req.TTL))
	m, ok := a.l.clock.now()
	if !ok || m.upper+heartbeat/2 < a.intended {
		return
	}
	u := new(update)
	u.set(attrIntent, str(intent{m.upper + heartbeat, a.req.Owner}.String()))
	u.absentOrLess(attrIntent, str(intent{until: m.upper + heartbeat/2}.String()))
	u.only("attribute_exists(" + attrReaders + ")")
	_, old, err := a.l.write(ctx, a.req.Key, u, attemptLimit(a.req.TTL, 0))
	if err == nil && old != nil {
		a.intended = min(old.intent.until, m.upper+heartbeat)
		return
	}
	a.intended, a.announced = m.upper+heartbeat, true
}
