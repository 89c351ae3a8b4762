package locktest

import (
	"fmt"
	"time"

	lock "github.com/seed-215fdefa/lock"
)

// besideReaders are about an expired reader beside a living one.
func besideReaders() []group {
	const (
		never = "Renew never creates. Renew must restart the TTL of a live grant of that owner and token, changing only TTL and Start, or return ErrLost, with the reason where known."
		yours = "Release is yours alone. Release must end the grant of that owner and token only; a stale one must return ErrLost and change nothing."
		undo  = "Without a token (Grant{Key, Owner}) it must undo an acquisition whose outcome is unknown, or a place in line, and return nil if there is nothing to undo."
	)
	return []group{
		{"RenewNeverCreates", []row{{"OfAnExpiredReader", never, shared, nil, renewalOfExpiredReader}}},
		{"ReleaseIsYoursAlone", []row{
			{"OfAnExpiredReader", yours, shared, nil, releaseOfExpiredReader},
			{"UndoOfAnExpiredReader", undo, shared, nil, undoOfExpiredReader},
		}},
	}
}

func renewalOfExpiredReader(e *env) {
	e.besideExpired(func(x held) {
		_, err := e.tryRenew(x)
		e.mustBeLost("Renew", err)
	})
}

func releaseOfExpiredReader(e *env) {
	e.besideExpired(func(x held) { e.mustBeLost("Release", e.tryRelease(x.l, x.g)) })
}

func undoOfExpiredReader(e *env) {
	e.besideExpired(func(x held) { e.mustUndo(x.l, x.g.Key, x.g.Owner) })
}

// readers are two of one key, and a writer who waits for both, or nil.
type readers struct {
	living, expired held
	writer          *waiter
}

// besideExpired does something to expired readers: whichever of the two came first,
// wherever the living one is, and whether or not somebody waits and so has seen the end.
// The living one must not notice, neither then nor when a TTL of the expired one has
// passed once more; it is not renewed meanwhile, which might mend what was broken.
func (e *env) besideExpired(do func(expired held)) {
	e.Helper()
	a, b, c := e.open(), e.open(), e.open()
	var all []readers
	for _, l := range []lock.Locker{a, b} {
		for _, first := range []bool{true, false} {
			for _, waits := range []bool{true, false} {
				all = append(all, e.readers(a, l, c, first, waits))
			}
		}
	}
	for _, r := range all {
		time.Sleep(time.Until(e.overdue(r.expired)))
		do(r.expired)
		e.untouched(c, r)
	}
	time.Sleep(e.ttl + e.caps.ExpirySlack + e.ttl/4)
	for _, r := range all {
		e.untouched(c, r)
		e.mustRenew(r.living)
		e.mustRelease(r.living)
		if r.writer != nil {
			e.mustRelease(r.writer.granted())
		}
		e.vacant(c, r.living.g.Key)
	}
}

// readers sets the two up, on those Lockers.
func (e *env) readers(expired, living, other lock.Locker, livingFirst, waits bool) (r readers) {
	e.Helper()
	key := e.key()
	if livingFirst {
		r.living = e.hold(living, key)
	}
	r.expired = e.mustAcquire(expired, e.brief(key))
	if !livingFirst {
		r.living = e.hold(living, key)
	}
	if waits {
		r.writer = e.wait(other, e.rival(key))
	}
	return r
}

// untouched checks that r's living reader holds its key, alone, and that no writer has it.
func (e *env) untouched(l lock.Locker, r readers) {
	e.Helper()
	rec := e.mustInspect(l, r.living.g.Key)
	if len(rec.Holders) != 1 || holder(rec, r.living.g.Owner) == nil {
		e.fail(fmt.Sprintf("the living reader %s to be the only holder", r.living.g.Owner), "%+v", rec.Holders)
	}
	e.mustBeHeld(l, e.rival(r.living.g.Key))
	if r.writer != nil {
		r.writer.still()
	}
}
