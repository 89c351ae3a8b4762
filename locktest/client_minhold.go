package locktest

import (
	"context"
	"errors"
	"fmt"
	"time"

	lock "github.com/seed-215fdefa/lock"
)

func minimumHolds() group {
	const (
		kept   = "WithMinHold keeps the key taken for d after the grant, even if the work is done sooner: Do and Lease.Release return at once, and the Client releases the key when d is over."
		closed = "[Client.Close] does not wait for d: it leaves the key to its TTL, as a crash does."
		bound  = "So d must be at most the TTL less the drift ([WithDrift]); if the store grants a shorter TTL, that one counts."
		told   = "For its holder such a lease has ended: its Err is ErrReleased, [Client.Held] does not show it, and only an [Observer] learns of its loss."
	)
	return group{"MinHold", []row{
		{"KeepsTheKey", kept, both, nil, minHoldKeeps},
		{"CloseLeavesIt", closed, both, nil, minHoldAndClose},
		{"LongerThanTheTTL", bound, plain, nil, minHoldTooLong},
		{"LossIsToldToTheObserver", told, both, needs(isAdmin), minHoldLoss},
	}}
}

// minHolds are ways to be done at once. Each returns the lease.
var minHolds = []struct {
	name string
	do   func(ctx context.Context, a actor, key string, opts []lock.Option) (lease, error)
}{
	{"Do", func(ctx context.Context, a actor, key string, opts []lock.Option) (of lease, err error) {
		err = a.Do(ctx, key, func(_ context.Context, l lease) error { of = l; return nil }, opts...)
		return of, err
	}},
	{"DoAll", func(ctx context.Context, a actor, key string, opts []lock.Option) (of lease, err error) {
		err = a.DoAll(ctx, []string{key}, func(_ context.Context, ls []lease) error { of = ls[0]; return nil }, opts...)
		return of, err
	}},
	{"Lock and Release", func(ctx context.Context, a actor, key string, opts []lock.Option) (lease, error) {
		l, err := a.Lock(ctx, key, opts...)
		if err != nil {
			return nil, err
		}
		return l, l.Release(ctx)
	}},
}

// keptBy is key, taken and let go with a minimum hold of d. It returns how long that took, and
// when it began: the grant is not from before.
func (e *env) keptBy(a actor, way int, key string, ttl, d time.Duration) (begun time.Time, took time.Duration) {
	e.Helper()
	var l lease
	begun = time.Now()
	err := e.call(minHolds[way].name, func(ctx context.Context) (err error) {
		l, err = minHolds[way].do(ctx, a, key, e.with(ttl, lock.WithMinHold(d)))
		return err
	})
	took = time.Since(begun)
	if err != nil {
		e.fail("a nil error from "+minHolds[way].name+" of a key that is free", "%v", err)
	}
	if err := l.Err(); !errors.Is(err, lock.ErrReleased) {
		e.fail("ErrReleased from the Err of a lease that is kept", "%v", err)
	}
	return begun, took
}

// heldFor waits until key is free, and checks that it was not before d after begun. It must be
// within limit.
func (e *env) heldFor(l lock.Locker, key string, begun time.Time, d, limit time.Duration) {
	e.Helper()
	e.eventually(fmt.Sprintf("%q to be free", key), limit, func() (bool, string) {
		h, err := e.settled(l, e.rival(key))
		if err != nil {
			return false, err.Error()
		}
		if held := time.Since(begun); held < d {
			e.fail(fmt.Sprintf("the key to be taken for %v at least", d), "it was free after %v", held)
		}
		e.mustRelease(h)
		return true, ""
	})
}

func minHoldKeeps(e *env) {
	a, b, d := e.actor(), e.open(), 2*e.ttl
	for way, m := range minHolds {
		e.fastest(m.name+" to return before the minimum hold is over", d, func() time.Duration {
			key := e.key()
			begun, took := e.keptBy(a, way, key, e.long(), d)
			e.heldFor(b, key, begun, d, e.patience())
			return took
		})
	}
}

func minHoldAndClose(e *env) {
	b, ttl := e.open(), 3*e.ttl
	for way := range minHolds {
		a, key := e.actor(), e.key()
		begun, _ := e.keptBy(a, way, key, ttl, 2*e.ttl)
		e.closed(e.closes(a))
		e.heldFor(b, key, begun, 2*e.ttl, e.patience()+e.overdueIn(ttl))
	}
}

func minHoldTooLong(e *env) {
	a, ttl := e.actor(), 2*e.ttl
	for _, opts := range [][]lock.Option{
		{lock.WithMinHold(ttl)},
		{lock.WithMinHold(ttl / 2), lock.WithDrift(ttl/2 + 1)},
	} {
		err := e.call("Do", func(ctx context.Context) error {
			return a.Do(ctx, e.key(), func(context.Context, lease) error { return nil }, append(opts, lock.WithTTL(ttl))...)
		})
		if !errors.Is(err, lock.ErrInvalid) {
			e.fail("ErrInvalid from a minimum hold that is longer than the TTL less the drift", "%v", err)
		}
	}
}

func minHoldLoss(e *env) {
	b, d := e.open(), 3*e.ttl
	e.attempts(func() bool {
		a, key := e.actor(), e.key()
		begun, _ := e.keptBy(a, 0, key, e.long(), d)
		if !e.evicts(b, key) {
			if held := time.Since(begun); held < d {
				e.fail(fmt.Sprintf("the key to be taken for %v at least", d), "it was free after %v", held)
			}
			return false
		}
		e.observed(a, key, lock.EventGranted, lock.EventReleasedLost)
		return true
	})
}
