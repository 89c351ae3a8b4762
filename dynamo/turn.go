package dynamo

import (
	"context"
	"maps"
	"math/rand/v2"
	"time"

	"github.com/seed-215fdefa/lock"
)

// keepTurn is how long a Locker keeps a lock, if others wait for it: hands it on among its
// own waiters, or takes it again. Then it leaves the lock to the others for a while.
const keepTurn = 200 * time.Millisecond

// maxTurnAge is how long a turn is remembered that was not used up.
const maxTurnAge = time.Minute

// turn is this Locker's with a lock for which other Lockers wait as well. It knows of them
// since the lock was handed on past its own waiters, or since others have asked.
type turn struct {
	begun time.Time // when the others let it have the lock; zero: they have not
	rest  time.Time // until when the lock is left to them
}

// begin notes that this Locker has got the lock. The caller holds mu.
func (ls *lines) begin(key string, ln *line) {
	now := time.Now()
	if ln.passed {
		ls.note(key, turn{begun: now})
	} else if now.Sub(ls.turns[key].begun) > keepTurn {
		delete(ls.turns, key) // nobody else seems to want it any more
	}
}

// note forgets what is over. The caller holds mu.
func (ls *lines) note(key string, t turn) {
	now := time.Now()
	maps.DeleteFunc(ls.turns, func(_ string, t turn) bool {
		return !t.rest.After(now) && now.Sub(t.begun) > maxTurnAge
	})
	if ls.turns == nil {
		ls.turns = make(map[string]turn)
	}
	ls.turns[key] = t
}

// yield tells, after a release, whether the lock is left to others for d: if they have asked
// for it, or are known to wait, and have waited for long enough.
func (ls *lines) yield(key string, asked bool, d time.Duration) bool {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	now := time.Now()
	begun := ls.turns[key].begun
	if begun.IsZero() && !asked || now.Sub(begun) < keepTurn {
		return false
	}
	ls.note(key, turn{rest: now.Add(d)})
	return true
}

// resting is for how long yet a lock is left to others. It is not, if that is not positive.
func (ls *lines) resting(key string) time.Duration {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	if t, ok := ls.turns[key]; ok && !t.rest.IsZero() {
		return time.Until(t.rest)
	}
	return 0
}

// rested ends it, since another has the lock. The caller is in line.
func (ls *lines) rested(key string) {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	delete(ls.turns, key)
	ls.of[key].passed = true
}

// restOf is for how long a Locker leaves a lock to others: they look in that time.
func (l *Locker) restOf() time.Duration {
	d := min(10*l.minPoll, l.maxPoll)
	return d/2 + rand.N(d/2+1)
}

// rest is how long to pause yet, since the lock is left to others: until its end, or until one
// of them has it, or for half of what ctx leaves. Not positive: it is not.
func (a *acquisition) rest(ctx context.Context, first bool) time.Duration {
	left := a.l.lines.resting(a.req.Key)
	switch deadline, _ := ctx.Deadline(); { // storekit.Wait gives it one
	case a.rests.IsZero():
		a.rests = time.Now().Add(time.Until(deadline) / 2)
	case left > 0 && first:
		it, err := a.l.read(ctx, a.req.Key, false, attemptLimit(a.req.TTL, 0))
		if err == nil && len(it.holders()) > 0 {
			a.l.lines.rested(a.req.Key)
			left = 0
		}
	}
	if left = min(left, time.Until(a.rests)); left <= 0 {
		a.rests = time.Time{}
		return 0
	}
	a.begun = true
	return min(left, a.pause(0))
}

// ask makes the next release of an exclusive holder look at the item, so that its Locker
// learns that another one waits. It is one write for all who wait, and is not repeated when
// it fails. Coming late it costs some Locker its turn, and nobody a lock.
func (a *acquisition) ask(ctx context.Context) {
	if len(a.last.Holders) == 0 || a.last.Holders[0].Shared {
		return
	}
	u := new(update)
	u.set(attrFloor, num(lock.Token(0)))
	u.absent(attrFloor)
	u.only("attribute_exists(" + attrHolder + ")")
	_, _, _ = a.l.write(ctx, a.req.Key, u, attemptLimit(a.req.TTL, 0))
}
