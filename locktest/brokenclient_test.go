package locktest

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	lock "github.com/seed-215fdefa/lock"
)

// fakeClient is a client with methods of its own before those of a real one.
type fakeClient struct {
	client
	do, tryDo     func(ctx context.Context, key string, fn doFunc, opts ...lock.Option) error
	doAll         func(ctx context.Context, keys []string, fn doAllFunc, opts ...lock.Option) error
	lock, tryLock func(ctx context.Context, key string, opts ...lock.Option) (lease, error)
	lead          func(ctx context.Context, key string, fn doFunc, opts ...lock.Option) error
	watch         func(ctx context.Context, key string) iter.Seq2[lock.Record, error]
	close         func(ctx context.Context) error
}

func (c *fakeClient) Do(ctx context.Context, key string, fn doFunc, opts ...lock.Option) error {
	return c.do(ctx, key, fn, opts...)
}

func (c *fakeClient) TryDo(ctx context.Context, key string, fn doFunc, opts ...lock.Option) error {
	return c.tryDo(ctx, key, fn, opts...)
}

func (c *fakeClient) DoAll(ctx context.Context, keys []string, fn doAllFunc, opts ...lock.Option) error {
	return c.doAll(ctx, keys, fn, opts...)
}

func (c *fakeClient) Lock(ctx context.Context, key string, opts ...lock.Option) (lease, error) {
	return c.lock(ctx, key, opts...)
}

func (c *fakeClient) TryLock(ctx context.Context, key string, opts ...lock.Option) (lease, error) {
	return c.tryLock(ctx, key, opts...)
}

func (c *fakeClient) Lead(ctx context.Context, key string, fn doFunc, opts ...lock.Option) error {
	return c.lead(ctx, key, fn, opts...)
}

func (c *fakeClient) Watch(ctx context.Context, key string) iter.Seq2[lock.Record, error] {
	return c.watch(ctx, key)
}

func (c *fakeClient) Close(ctx context.Context) error { return c.close(ctx) }

// fakeLease is a lease with methods of its own before those of a real one.
type fakeLease struct {
	lease
	err            func() error
	context        func() context.Context
	deadline       func() time.Time
	renew, release func(ctx context.Context) error
}

func newFakeLease(l lease) *fakeLease {
	return &fakeLease{l, l.Err, l.Context, l.Deadline, l.Renew, l.Release}
}

func (l *fakeLease) Err() error                        { return l.err() }
func (l *fakeLease) Context() context.Context          { return l.context() }
func (l *fakeLease) Deadline() time.Time               { return l.deadline() }
func (l *fakeLease) Renew(ctx context.Context) error   { return l.renew(ctx) }
func (l *fakeLease) Release(ctx context.Context) error { return l.release(ctx) }

// brokenClient is a Client with one thing wrong, and the cases that are there to find it.
type brokenClient struct {
	what   string
	caught []string
	client func(c *fakeClient)
	lease  func(l *fakeLease)              // of Lock
	store  func(l lock.Locker) lock.Locker // under the Client
	seen   func(o lock.Observer) lock.Observer
	opts   []lock.Option

	permits  func(e *env, c *lock.Client, key string, n int) permits
	explored bool // Explore must find it too
}

func (b brokenClient) make(e *env, l lock.Locker, seen lock.Observer) client {
	if b.store != nil {
		l = b.store(l)
	}
	if b.seen != nil {
		seen = b.seen(seen)
	}
	c := newClient(e, l, seen, b.opts...)
	f := &fakeClient{c, c.Do, c.TryDo, c.DoAll, c.Lock, c.TryLock, c.Lead, c.Watch, c.Close}
	if b.lease != nil {
		f.lock = func(ctx context.Context, key string, opts ...lock.Option) (lease, error) {
			l, err := c.Lock(ctx, key, opts...)
			if err != nil {
				return nil, err
			}
			fl := newFakeLease(l)
			b.lease(fl)
			return fl, nil
		}
	}
	if b.client != nil {
		b.client(f)
	}
	return f
}

// observer is an Observer by a function.
type observer func(ctx context.Context, e lock.Event)

func (o observer) Observe(ctx context.Context, e lock.Event) { o(ctx, e) }

// under is a store with methods of its own before those of a Locker.
type under struct {
	lock.Locker
	renew, release func(ctx context.Context, g lock.Grant) error
}

func (u under) Renew(ctx context.Context, g lock.Grant) (lock.Grant, error) {
	if u.renew == nil {
		return u.Locker.Renew(ctx, g)
	}
	g.Start = time.Now()
	return g, u.renew(ctx, g)
}

func (u under) Release(ctx context.Context, g lock.Grant) error {
	if u.release == nil {
		return u.Locker.Release(ctx, g)
	}
	return u.release(ctx, g)
}

// byHand is a Do out of Lock and Release, as many write it: do gets what is between.
func byHand(c client, do func(ctx context.Context, l lease, fn doFunc) error) func(context.Context, string, doFunc, ...lock.Option) error {
	return func(ctx context.Context, key string, fn doFunc, opts ...lock.Option) error {
		l, err := c.Lock(ctx, key, opts...)
		if err != nil {
			return err
		}
		return do(ctx, l, fn)
	}
}

func brokenClients() []brokenClient {
	background := context.Background()
	return append(slices.Concat(brokenDoAlls(), brokenMinHolds(), brokenLeads(), brokenWatches(), brokenSemaphores()), []brokenClient{
		{what: "Do wraps what its function returns", caught: in("Do/Releases/exclusive"), client: func(c *fakeClient) {
			do := c.do
			c.do = func(ctx context.Context, key string, fn doFunc, opts ...lock.Option) error {
				if err := do(ctx, key, fn, opts...); err != nil {
					return fmt.Errorf("do: %w", err)
				}
				return nil
			}
		}},
		{what: "Do releases when its ctx ends, before the work does", caught: in("Do/WaitsForItsFunction/exclusive", "Close/WaitsForFunctions/exclusive"), client: func(c *fakeClient) {
			c.do = byHand(c.client, func(ctx context.Context, l lease, fn doFunc) error {
				ctx, cancel := context.WithCancelCause(ctx)
				defer context.AfterFunc(l.Context(), func() { cancel(context.Cause(l.Context())) })()
				done := make(chan error, 1)
				go func() {
					var err error
					defer func() { _ = recover(); done <- err }()
					err = fn(ctx, l)
				}()
				select {
				case err := <-done:
					_ = l.Release(background)
					return err
				case <-ctx.Done():
					_ = l.Release(background)
					return ctx.Err()
				}
			})
		}},
		{what: "Do releases without a defer", caught: in("Do/ReleasesAfterPanic/exclusive", "Do/ReleasesAfterGoexit/shared"), client: func(c *fakeClient) {
			c.do = byHand(c.client, func(ctx context.Context, l lease, fn doFunc) error {
				err := fn(ctx, l)
				return errors.Join(err, l.Release(background))
			})
		}},
		{what: "Do keeps a loss to itself", caught: in("Do/LossIsJoined/exclusive", "Do/EndsInTimeDuringAFreeze/exclusive"), client: func(c *fakeClient) {
			do := c.do
			c.do = func(ctx context.Context, key string, fn doFunc, opts ...lock.Option) (err error) {
				_ = do(ctx, key, func(ctx context.Context, l lease) error {
					err = fn(ctx, l)
					return err
				}, opts...)
				return err
			}
		}},
		{what: "Do joins a loss that its function has returned", caught: in("Do/LossIsJoined/shared"), client: func(c *fakeClient) {
			do := c.do
			c.do = func(ctx context.Context, key string, fn doFunc, opts ...lock.Option) error {
				err := do(ctx, key, fn, opts...)
				if errors.Is(err, lock.ErrLost) {
					return errors.Join(err, lock.ErrLost)
				}
				return err
			}
		}},
		{what: "the function's ctx does not end with the lease", caught: in("Do/ForceReleaseIsALoss/exclusive", "Do/EndsInTimeDuringAFreeze/shared"), client: func(c *fakeClient) {
			do := c.do
			c.do = func(outer context.Context, key string, fn doFunc, opts ...lock.Option) error {
				return do(outer, key, func(_ context.Context, l lease) error { return fn(outer, l) }, opts...)
			}
		}},
		{what: "the function's ctx ends a TTL late", caught: in("Do/EndsInTimeDuringAFreeze/exclusive"), client: func(c *fakeClient) {
			do := c.do
			c.do = func(ctx context.Context, key string, fn doFunc, opts ...lock.Option) error {
				return do(ctx, key, func(inner context.Context, l lease) error {
					late, cancel := context.WithCancelCause(ctx)
					defer context.AfterFunc(inner, func() {
						time.AfterFunc(time.Second, func() { cancel(context.Cause(inner)) })
					})()
					return fn(late, l)
				}, opts...)
			}
		}},
		{what: "a loss that is only Unreachable", caught: in("Do/ForceReleaseIsALoss/shared"), store: func(l lock.Locker) lock.Locker {
			return under{Locker: quiet{l}, renew: func(context.Context, lock.Grant) error { return errWork }}
		}},

		{what: "a try waits", caught: in("Waiting/TryLock/exclusive", "Waiting/TryDo/shared"), client: func(c *fakeClient) { c.tryDo, c.tryLock = c.do, c.lock }},
		{what: "WithWait is ignored", caught: in("Waiting/WithWait/exclusive", "Waiting/WithoutWait/exclusive"), client: func(c *fakeClient) {
			do, take := c.do, c.lock
			hour := lock.WithWait(time.Hour)
			c.do = func(ctx context.Context, key string, fn doFunc, opts ...lock.Option) error {
				return do(ctx, key, fn, append(opts, hour)...)
			}
			c.lock = func(ctx context.Context, key string, opts ...lock.Option) (lease, error) {
				return take(ctx, key, append(opts, hour)...)
			}
		}},
		{what: "a wait without a bound is none", caught: in("Waiting/WithoutBound/exclusive", "Waiting/WithoutBound/shared"), client: func(c *fakeClient) {
			do := c.do
			c.do = func(ctx context.Context, key string, fn doFunc, opts ...lock.Option) error {
				if s, err := c.client.(realClient).Settings(opts...); err == nil && s.Wait < 0 {
					opts = append(opts, lock.WithWait(0))
				}
				return do(ctx, key, fn, opts...)
			}
		}},
		{what: "WithHeadStart is ignored", caught: in("Waiting/WithHeadStart"), client: func(c *fakeClient) {
			do := c.do
			c.do = func(ctx context.Context, key string, fn doFunc, opts ...lock.Option) error {
				return do(ctx, key, fn, append(opts, lock.WithHeadStart(0))...)
			}
		}},
		{what: "the end of a wait is DeadlineExceeded alone", caught: in("Waiting/WithWait/shared"), client: func(c *fakeClient) {
			c.lock = withErrors(c.lock, func(err error) error {
				if errors.Is(err, lock.ErrHeld) {
					return context.DeadlineExceeded
				}
				return err
			})
		}},
		{what: "ErrHeld swallowed when ctx ends", caught: in("Waiting/EndOfContext/exclusive"), client: func(c *fakeClient) {
			c.lock = withErrors(c.lock, func(err error) error {
				if errors.Is(err, context.Canceled) {
					return context.Canceled
				}
				return err
			})
		}},
		{what: "a store that does not answer is held", caught: in("Waiting/FreezeIsNotHeld/exclusive"), client: func(c *fakeClient) {
			c.tryLock = withErrors(c.tryLock, func(err error) error {
				if errors.Is(err, lock.ErrUnavailable) {
					return &lock.HeldError{Err: err}
				}
				return err
			})
		}},
		{what: "a store that does not answer is out of time", caught: in("Waiting/FreezeIsNotHeld/shared"), client: func(c *fakeClient) {
			c.lock = withErrors(c.lock, func(err error) error {
				if errors.Is(err, lock.ErrUnavailable) {
					return context.DeadlineExceeded
				}
				return err
			})
		}},
		{what: "no undo", caught: in("Waiting/LateGrant/exclusive"), store: func(l lock.Locker) lock.Locker {
			return under{Locker: l, release: func(ctx context.Context, g lock.Grant) error {
				if g.Token == 0 {
					return nil
				}
				return l.Release(ctx, g)
			}}
		}},

		{what: "metadata is not sent", caught: in("Lease/Metadata/exclusive", "Lease/Metadata/shared"), client: func(c *fakeClient) {
			take := c.lock
			c.lock = func(ctx context.Context, key string, opts ...lock.Option) (lease, error) {
				return take(ctx, key, append(opts, lock.WithMetadata(nil))...)
			}
		}},
		{what: "no renewal", caught: in("Lease/Renewed/exclusive", "Close/KeepsRenewing/exclusive"), opts: []lock.Option{lock.WithRenewal(false)}},
		{what: "a renewal that is none", caught: in("Lease/Renewed/shared"), store: func(l lock.Locker) lock.Locker {
			return under{Locker: quiet{l}, renew: func(context.Context, lock.Grant) error { return nil }}
		}},
		{what: "a lease that outlives its deadline", caught: in("Lease/EndsUnrenewed/exclusive"), lease: func(l *fakeLease) {
			end := l.deadline().Add(100 * time.Millisecond)
			err := l.err
			l.err = func() error {
				if time.Now().Before(end) {
					return nil
				}
				return err()
			}
		}},
		{what: "Renew does nothing", caught: in("Lease/Renew/exclusive", "Lease/RenewAfterRelease", "Lease/RenewAfterLoss/exclusive"), lease: func(l *fakeLease) {
			l.renew = func(context.Context) error { return nil }
		}},
		{what: "Release leaves the context", caught: in("Lease/ReleaseEndsIt/exclusive"), lease: func(l *fakeLease) {
			l.context = func() context.Context { return background }
		}},
		{what: "the context ends when the store has answered", caught: in("Lease/EndsBeforeTheRelease/exclusive", "Lease/EndsBeforeTheRelease/shared"), lease: func(l *fakeLease) {
			ctx, cancel := context.WithCancelCause(background)
			release := l.release
			l.context = func() context.Context { return ctx }
			l.release = func(ctx context.Context) error {
				defer cancel(lock.ErrReleased)
				return release(ctx)
			}
		}},
		{what: "the ctx of Do's function ends when the store has answered", caught: in("Lease/EndsBeforeTheRelease/exclusive"), client: func(c *fakeClient) {
			do := c.do
			c.do = func(ctx context.Context, key string, fn doFunc, opts ...lock.Option) error {
				late, cancel := context.WithCancel(ctx)
				defer cancel()
				return do(ctx, key, func(_ context.Context, l lease) error { return fn(late, l) }, opts...)
			}
		}},
		{what: "the context ends when Close has released", caught: in("Lease/EndsBeforeTheRelease/exclusive"), client: func(c *fakeClient) {
			take, closing := c.lock, c.close
			closed, cancel := context.WithCancel(background)
			c.lock = func(ctx context.Context, key string, opts ...lock.Option) (lease, error) {
				l, err := take(ctx, key, opts...)
				if err != nil {
					return nil, err
				}
				fl := newFakeLease(l)
				own, end := context.WithCancel(closed)
				release := fl.release
				fl.context = func() context.Context { return own }
				fl.release = func(ctx context.Context) error { end(); return release(ctx) }
				return fl, nil
			}
			c.close = func(ctx context.Context) error { defer cancel(); return closing(ctx) }
		}},
		{what: "Release again is a loss", caught: in("Lease/ReleaseAgain/exclusive"), lease: func(l *fakeLease) {
			release, released := l.release, false
			l.release = func(ctx context.Context) error {
				if released {
					return lock.ErrLost
				}
				released = true
				return release(ctx)
			}
		}},
		{what: "Release says nothing of a loss", caught: in("Lease/ReleaseAfterLoss/exclusive"), lease: func(l *fakeLease) {
			release := l.release
			l.release = func(ctx context.Context) error {
				_ = release(ctx)
				return nil
			}
		}},
		{what: "Release with a ctx that has ended does nothing", caught: in("Lease/ReleaseWithEndedContext/exclusive"), lease: func(l *fakeLease) {
			release := l.release
			l.release = func(ctx context.Context) error {
				if ctx.Err() != nil {
					return ctx.Err()
				}
				return release(ctx)
			}
		}},

		{what: "a nested call waits for itself", caught: in("Nesting/Deadlock/exclusive"), client: func(c *fakeClient) {
			do := c.do
			c.do = func(ctx context.Context, key string, fn doFunc, opts ...lock.Option) error {
				return do(unnested{ctx}, key, fn, opts...)
			}
		}},
		{what: "every nested call is a deadlock", caught: in("Nesting/OtherKey/exclusive", "Nesting/Reentrant/exclusive"), client: func(c *fakeClient) {
			type nested struct{}
			do := c.do
			c.do = func(ctx context.Context, key string, fn doFunc, opts ...lock.Option) error {
				if ctx.Value(nested{}) != nil {
					return lock.ErrDeadlock
				}
				return do(ctx, key, func(ctx context.Context, l lease) error {
					return fn(context.WithValue(ctx, nested{}, true), l)
				}, opts...)
			}
		}},
		{what: "a nested Do releases the outer's lease", caught: in("Nesting/Reentrant/shared"), client: func(c *fakeClient) {
			try := c.tryDo
			do := c.do
			var outer lease
			c.do = func(ctx context.Context, key string, fn doFunc, opts ...lock.Option) error {
				return do(ctx, key, func(ctx context.Context, l lease) error {
					if outer == nil {
						outer = l
					} else {
						defer func() { _ = l.Release(background) }()
					}
					return fn(ctx, l)
				}, opts...)
			}
			c.tryDo = try
		}},

		{what: "no cycle is found", caught: in("Deadlocks/OneClient/exclusive", "Deadlocks/OneVictimInOneClient/shared", "Deadlocks/TwoClients/exclusive", "Deadlocks/ReaderBehindAWriter"), client: func(c *fakeClient) {
			do := c.do
			c.do = func(ctx context.Context, key string, fn doFunc, opts ...lock.Option) error {
				return do(unnested{ctx}, key, fn, opts...)
			}
		}},
		{what: "whoever waits under a lease for long is in a deadlock", caught: in("Deadlocks/RingInOneClient/exclusive", "Deadlocks/RingOverThree/exclusive", "Deadlocks/Converging/exclusive", "Deadlocks/LostReply/shared"), client: func(c *fakeClient) {
			type nested struct{}
			do := c.do
			c.do = func(ctx context.Context, key string, fn doFunc, opts ...lock.Option) error {
				if ctx.Value(nested{}) == nil {
					return do(ctx, key, func(ctx context.Context, l lease) error {
						return fn(context.WithValue(ctx, nested{}, true), l)
					}, opts...)
				}
				impatient, cancel := context.WithTimeout(unnested{ctx}, time.Second)
				defer cancel()
				err := do(impatient, key, fn, opts...)
				if errors.Is(err, context.DeadlineExceeded) {
					return &lock.DeadlockError{}
				}
				return err
			}
		}},
		{what: "a cycle that is seen once is believed", caught: in("Deadlocks/Dissolves/exclusive", "Deadlocks/Dissolves/shared"), store: func(l lock.Locker) lock.Locker {
			return &hasty{lister: &lister{Locker: l}}
		}},
		{what: "what a waiter holds is not told", caught: in("Deadlocks/Found/exclusive", "Deadlocks/Found/shared"), store: func(l lock.Locker) lock.Locker {
			return discreet{Locker: l}
		}},

		{what: "Close does nothing", caught: in("Close/NewCalls", "Close/Waiters/exclusive", "Close/Leases/exclusive"), client: func(c *fakeClient) {
			c.close = func(context.Context) error { return nil }
		}},
		{what: "DoAll does not know that its Client is closed", caught: in("Close/NewCalls"), client: func(c *fakeClient) {
			doAll, closing := c.doAll, c.close
			var closed atomic.Bool
			c.doAll = func(ctx context.Context, keys []string, fn doAllFunc, opts ...lock.Option) error {
				if closed.Load() {
					return lock.ErrUnavailable
				}
				return doAll(ctx, keys, fn, opts...)
			}
			c.close = func(ctx context.Context) error { closed.Store(true); return closing(ctx) }
		}},
		{what: "Close does not wait for a release that failed", caught: in("Close/WaitsForReleases/exclusive", "Close/WaitsForReleases/shared"), client: func(c *fakeClient) {
			closing := c.close
			c.close = func(ctx context.Context) error {
				soon, cancel := context.WithCancel(ctx)
				cancel()
				_ = closing(soon)
				return nil
			}
		}},
		{what: "Close does not wait", caught: in("Close/WaitsForFunctions/shared", "Close/GivesUp"), client: func(c *fakeClient) {
			closing := c.close
			c.close = func(ctx context.Context) error {
				go func() { _ = closing(ctx) }()
				return nil
			}
		}},

		{what: "releases are not told", caught: in("Observer/OfALease/exclusive", "Observer/OfAWait/exclusive"), seen: func(o lock.Observer) lock.Observer {
			return observer(func(ctx context.Context, e lock.Event) {
				if e.Kind != lock.EventReleased {
					o.Observe(ctx, e)
				}
			})
		}},
		{what: "a wait is told when it is over", caught: in("Observer/OfAWait/shared"), seen: func(o lock.Observer) lock.Observer {
			var late atomic.Pointer[lock.Event]
			return observer(func(ctx context.Context, e lock.Event) {
				if e.Kind == lock.EventGranted && late.CompareAndSwap(nil, &e) {
					return
				}
				o.Observe(ctx, e)
				if l := late.Swap(nil); l != nil {
					o.Observe(ctx, *l)
				}
			})
		}},
		{what: "failures are not told after a wait", caught: in("Observer/OfAFailedWait/exclusive"), seen: func(o lock.Observer) lock.Observer {
			return observer(func(ctx context.Context, e lock.Event) {
				if e.Kind != lock.EventFailed || e.Waited < time.Second {
					o.Observe(ctx, e)
				}
			})
		}},
		{what: "events are dropped while an Observer is at work", caught: in("Observer/MayCallTheClient/exclusive"), seen: func(o lock.Observer) lock.Observer {
			var mu sync.Mutex // held while o is at work
			return observer(func(ctx context.Context, e lock.Event) {
				if mu.TryLock() {
					defer mu.Unlock()
					o.Observe(ctx, e)
				}
			})
		}},
		{what: "failures are told without a reason", caught: in("Observer/OfAFailure/exclusive"), seen: func(o lock.Observer) lock.Observer {
			return observer(func(ctx context.Context, e lock.Event) {
				if e.Kind == lock.EventFailed {
					e.Err = nil
				}
				o.Observe(ctx, e)
			})
		}},
		{what: "a loss is told as a release", caught: in("Observer/OfALoss/exclusive"), seen: func(o lock.Observer) lock.Observer {
			return observer(func(ctx context.Context, e lock.Event) {
				if e.Kind == lock.EventLost {
					e.Kind = lock.EventReleased
				}
				o.Observe(ctx, e)
			})
		}},
	}...)
}

// hasty is a store that shows with every second look what the one before has shown.
type hasty struct {
	*lister
	mu   sync.Mutex // guards the rest
	seen []lock.Record
}

func (h *hasty) List(ctx context.Context, prefix string) iter.Seq2[lock.Record, error] {
	h.mu.Lock()
	defer h.mu.Unlock()
	seen := h.seen
	if h.seen = nil; seen == nil {
		for r, err := range h.lister.List(ctx, prefix) {
			if err == nil {
				h.seen = append(h.seen, r)
			}
		}
		seen = h.seen
	} else {
		for _, err := range h.lister.List(ctx, prefix) {
			_ = err // it is only to be counted
		}
	}
	return func(yield func(lock.Record, error) bool) {
		for _, r := range seen {
			if !yield(r, nil) {
				return
			}
		}
	}
}

// discreet is a store that keeps to itself what its waiters hold.
type discreet struct{ lock.Locker }

func (d discreet) Acquire(ctx context.Context, req lock.Request) (lock.Grant, error) {
	req.Under = nil
	return d.Locker.Acquire(ctx, req)
}

func (d discreet) Unwrap() lock.Locker { return d.Locker }

// unnested is a ctx that has forgotten which leases it is under.
type unnested struct{ context.Context }

func (unnested) Value(any) any { return nil }

// withErrors is a Lock whose errors are changed.
func withErrors(take func(context.Context, string, ...lock.Option) (lease, error), change func(error) error) func(context.Context, string, ...lock.Option) (lease, error) {
	return func(ctx context.Context, key string, opts ...lock.Option) (lease, error) {
		l, err := take(ctx, key, opts...)
		if err != nil {
			return nil, change(err)
		}
		return l, nil
	}
}

// quiet is a store that declares no EarlyLoss, and so has no say but by its answers.
type quiet struct{ lock.Locker }

func (q quiet) Capabilities() lock.Capabilities {
	c := q.Locker.Capabilities()
	c.EarlyLoss = false
	return c
}
