package locktest

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"time"

	lock "github.com/seed-215fdefa/lock"
)

func leases() group {
	const (
		shown    = "WithMetadata says who holds the lock and why. Inspect and the *HeldError of others show it."
		renewed  = "It is renewed in the background until it is released, its Client is closed, or it is lost."
		deadline = "It ends then whether or not the store answers, so the holder stops before anybody else can begin."
		renew    = "Renew restarts the lease's TTL, and so verifies that the store still knows the lease."
		ended    = "It returns ErrReleased, ErrClosed or a *LostError if the lease has ended or ends meanwhile."
		ends     = "Its contexts end first, with ErrReleased, before the store is asked; a renewal in flight is canceled and waited for."
		release  = "It returns nil if the lock is released, and a *LostError if it had been lost before, even if only the release has shown that."
		canceled = "Otherwise, after ErrUnavailable or ctx's error, the lock may be held for a TTL at most, and the Client goes on releasing it in the background until then. Release may be called again, and returns promptly if ctx ends or has ended."
	)
	return group{"Lease", []row{
		{"Metadata", shown, both, nil, leaseIsLabeled},
		{"Renewed", renewed, both, nil, leaseIsRenewed},
		{"EndsUnrenewed", deadline, both, nil, leaseEnds},
		{"Renew", renew, both, nil, renewMovesDeadline},
		{"RenewAfterRelease", ended, plain, nil, renewAfterRelease},
		{"RenewAfterLoss", ended, both, needs(isAdmin), renewAfterLoss},
		{"ReleaseEndsIt", ends, both, nil, releaseEndsLease},
		{"EndsBeforeTheRelease", ends, both, nil, leaseEndsFirst},
		{"ReleaseAgain", release, both, nil, releaseLeaseAgain},
		{"ReleaseAfterLoss", release, both, needs(isAdmin), releaseAfterLoss},
		{"ReleaseWithEndedContext", canceled, both, nil, releaseInBackground},
	}}
}

func leaseIsLabeled(e *env) {
	a, b, key := e.actor(), e.open(), e.key()
	label := map[string]string{"who": "the suite", "why": key}
	l := e.lockBy(a, key, e.with(e.long(), lock.WithMetadata(label)))
	rec := e.mustInspect(b, key)
	if h := holder(rec, l.Owner()); h == nil || !maps.Equal(h.Metadata, label) {
		e.fail(fmt.Sprintf("%s to hold the key, with %q", l.Owner(), label), "%+v", rec.Holders)
	}
	e.releases(l)
}

// leaseIsRenewed holds a lease for several TTLs.
func leaseIsRenewed(e *env) {
	a, b, key := e.actor(), e.open(), e.key()
	e.onceOf("the lease to be held for several TTLs", func() bool {
		l := e.lockBy(a, key, e.with(2*e.ttl))
		token := l.Token()
		for end := time.Now().Add(5 * e.ttl); time.Now().Before(end); time.Sleep(e.ttl / 4) {
			h, err := e.tryAcquire(b, e.rival(key))
			if err == nil {
				e.mustRelease(h)
			}
			if l.Err() != nil {
				return false // the machine did not get to renew it, or the Client does not
			}
			if err == nil {
				e.fail("nobody to have the key beside a lease that is held", "a grant with token %d", h.g.Token)
			}
		}
		if l.Token() != token {
			e.fail(fmt.Sprintf("the token to stay %d", token), "%d", l.Token())
		}
		e.releases(l)
		return true
	})
}

// leaseEnds looks at a lease that is not renewed until it ends.
func leaseEnds(e *env) {
	a, b, key := e.actor(), e.open(), e.key()
	asked := time.Now()
	l := e.lockBy(a, key, e.with(e.ttl, lock.WithRenewal(false)))
	deadline, ctx := l.Deadline(), l.Context()
	if granted := time.Now(); deadline.After(granted.Add(e.ttl)) || deadline.Before(asked) {
		e.fail("a Deadline within a TTL of the grant", "%v after the call", deadline.Sub(asked))
	}
	for {
		looked := time.Now()
		err := l.Err()
		if err != nil {
			break
		}
		if looked.After(deadline) {
			e.fail("Err to say that the lease has ended at its Deadline", "nil, %v after that", looked.Sub(deadline))
		}
		time.Sleep(e.tick())
	}
	if lost := e.lostBy(ctx); lost.Reason != lock.ReasonExpired {
		e.fail("reason "+lock.ReasonExpired.String(), "%v", lost.Reason)
	}
	e.eventually("the key to pass", e.patience()+e.overdueIn(e.ttl), func() (bool, string) {
		_, err := e.tryAcquire(b, e.rival(key))
		return err == nil, "it is held"
	})
}

func renewMovesDeadline(e *env) {
	a, key := e.actor(), e.key()
	l := e.lockBy(a, key, e.with(e.long(), lock.WithRenewal(false)))
	before := l.Deadline()
	time.Sleep(e.tick())
	if err := e.call("Lease.Renew", l.Renew); err != nil {
		e.fail("a nil error from the Renew of a lease that is held", "%v", err)
	}
	if after := l.Deadline(); !after.After(before) {
		e.fail("a later Deadline after Renew", "%v after the one before", after.Sub(before))
	}
	e.releases(l)
}

func renewAfterRelease(e *env) {
	a, key := e.actor(), e.key()
	l := e.lockBy(a, key, e.with(e.long()))
	e.releases(l)
	if err := e.call("Lease.Renew", l.Renew); !errors.Is(err, lock.ErrReleased) {
		e.fail("ErrReleased from the Renew of a lease that was released", "%v", err)
	}
}

// evicted is a lease that was forced, and that the store has not told of yet.
func (e *env) evicted(a actor, b lock.Locker, key string) lease {
	e.Helper()
	l := e.lockBy(a, key, e.with(e.long(), lock.WithRenewal(false)))
	e.evict(b, key)
	return l
}

func renewAfterLoss(e *env) {
	a, b, key := e.actor(), e.open(), e.key()
	l := e.evicted(a, b, key)
	err := e.call("Lease.Renew", l.Renew)
	if !errors.Is(err, lock.ErrLost) || !errors.Is(l.Err(), lock.ErrLost) {
		e.fail("ErrLost from the Renew, and then from the Err, of a lease that was lost", "%v, and %v", err, l.Err())
	}
	e.freed(b, key)
}

func releaseAfterLoss(e *env) {
	a, b, key := e.actor(), e.open(), e.key()
	l := e.evicted(a, b, key)
	next := e.mustAcquire(b, e.rival(key))
	if err := e.call("Lease.Release", l.Release); !errors.Is(err, lock.ErrLost) {
		e.fail("ErrLost from the Release of a lease that was lost", "%v", err)
	}
	e.only(b, next)
}

func releaseEndsLease(e *env) {
	a, b, key := e.actor(), e.open(), e.key()
	l := e.lockBy(a, key, e.with(e.long()))
	ctx := l.Context()
	if ctx.Err() != nil || l.Err() != nil {
		e.fail("a lease that is held", "Err %v, context %v", l.Err(), ctx.Err())
	}
	e.releases(l)
	if !errors.Is(l.Err(), lock.ErrReleased) || !errors.Is(context.Cause(ctx), lock.ErrReleased) {
		e.fail("ErrReleased from Err, and as the cause of the context", "%v, and %v", l.Err(), context.Cause(ctx))
	}
	e.free(b, key)
}

// leaseEndsFirst: whoever releases before the contexts end lets two work at once.
func leaseEndsFirst(e *env) {
	a, first := e.endsFirst()
	key := e.key()
	l := e.lockBy(a, key, e.with(e.long()))
	first.end(l.Context())
	e.releases(l)
	w := e.do(e.ctx, a, key, e.with(e.long()))
	first.end(w.ctx, w.lease.Context())
	if err := w.leave(nil); err != nil {
		e.fail("nil, as the function returned", "%v", err)
	}
	l = e.lockBy(a, key, e.with(e.long()))
	first.end(l.Context())
	e.closed(e.closes(a))
}

// releaseLeaseAgain: another has the key by the second time.
func releaseLeaseAgain(e *env) {
	a, b, key := e.actor(), e.open(), e.key()
	l := e.lockBy(a, key, e.with(e.long()))
	e.releases(l)
	next := e.mustAcquire(b, e.rival(key))
	e.releases(l)
	e.only(b, next)
}

func releaseInBackground(e *env) {
	a, b, key := e.actor(), e.open(), e.key()
	l := e.lockBy(a, key, e.with(e.long()))
	ended, cancel := context.WithCancel(e.ctx)
	cancel()
	err := e.call("Lease.Release", func(context.Context) error { return l.Release(ended) })
	if err != nil && !errors.Is(err, context.Canceled) { // nil: the store was faster
		e.fail("context.Canceled or nil from a Release whose ctx has ended", "%v", err)
	}
	e.freed(b, key)
}
