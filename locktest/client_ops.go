package locktest

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	lock "github.com/seed-215fdefa/lock"
)

// actor is one more process on the keyspace, with a Client.
type actor struct {
	client
	l    lock.Locker
	seen *events
}

// actor returns one that has seen nothing yet.
func (e *env) actor() actor { return e.actorOn(e.open()) }

// actorOn is actor on a Locker of the case's own.
func (e *env) actorOn(l lock.Locker) actor {
	a := actor{l: l, seen: new(events)}
	if e.h.newClient != nil {
		a.client = e.h.newClient(e, a.l, a.seen)
	} else {
		a.client = newClient(e, a.l, a.seen)
	}
	return a
}

// endsFirst is a process whose store is not asked to release anything before some contexts have
// ended.
type endsFirst struct {
	lock.Locker
	e    *env
	mu   sync.Mutex // guards ctxs
	ctxs []context.Context
}

// endsFirst returns an actor, and what its case tells which contexts those are.
func (e *env) endsFirst() (actor, *endsFirst) {
	f := &endsFirst{Locker: e.open(), e: e}
	return e.actorOn(f), f
}

func (f *endsFirst) end(ctxs ...context.Context) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.ctxs = ctxs
}

func (f *endsFirst) Release(ctx context.Context, g lock.Grant) error {
	f.mu.Lock()
	ctxs := f.ctxs
	f.mu.Unlock()
	timer := time.NewTimer(f.e.patience() / 2) // Close is to return within patience
	defer timer.Stop()
	for _, c := range ctxs {
		select {
		case <-c.Done():
		case <-f.e.ctx.Done():
		case <-timer.C:
			f.e.report("a lease's contexts to end before the store is asked to release it", "one goes on")
			f.end() // a release that follows this one need not wait
			return f.Locker.Release(ctx, g)
		}
	}
	return f.Locker.Release(ctx, g)
}

func (f *endsFirst) Unwrap() lock.Locker { return f.Locker }

// with are the options of a call in the case's mode.
func (e *env) with(ttl time.Duration, more ...lock.Option) []lock.Option {
	opts := append([]lock.Option{lock.WithTTL(ttl)}, more...)
	if e.shared {
		opts = append(opts, lock.WithShared())
	}
	return opts
}

// learning is a TTL whose third, after which a renewal tells a holder that it was forced, is soon
// over. A machine that is busy enough does not get to renew it.
func (e *env) learning() time.Duration { return 3*e.ttl + e.starved()/5 }

// clientCall is a call of one of a Client's methods.
type clientCall struct {
	name string
	call func(ctx context.Context) error
}

// errWork is what functions of Do return.
var errWork = errors.New("the work went wrong")

// same reports whether err is want itself.
func same(err, want error) bool {
	return err == want //nolint:errorlint // that it is not wrapped is what is checked
}

// work is a Do that goes on beside the case. Its function stays until leave is called.
type work struct {
	e       *env
	ctx     context.Context // the function's; it, lease and permits are set when inside is closed
	lease   lease
	permits map[int]lease // of a semaphore, by slot
	inside  chan struct{}
	out     chan error
	err     error // Do's; set when done is closed
	done    chan struct{}
}

// do begins a Do, and returns when its function runs.
func (e *env) do(ctx context.Context, c client, key string, opts []lock.Option) *work {
	e.Helper()
	return e.doing(func(w *work) error { return c.Do(ctx, key, w.run, opts...) })
}

// doing begins a Do whose function is w.run, and returns when that runs.
func (e *env) doing(do func(w *work) error) *work {
	e.Helper()
	w := e.begins(do)
	select {
	case <-w.inside:
	case <-w.done:
		e.fail("Do to run its function", "it did not, and returned %v", w.err)
	case <-time.After(e.patience()):
		e.fail("Do to run its function", "it has not, in %v", e.patience())
	}
	return w
}

// begin begins a Do, and does not wait for its function.
func (e *env) begin(ctx context.Context, c client, key string, opts []lock.Option) *work {
	return e.begins(func(w *work) error { return c.Do(ctx, key, w.run, opts...) })
}

func (e *env) begins(do func(w *work) error) *work {
	w := &work{e: e, inside: make(chan struct{}), out: make(chan error, 1), done: make(chan struct{})}
	e.start(func() {
		defer close(w.done)
		w.err = do(w)
	})
	return w
}

func (w *work) run(ctx context.Context, l lease) error {
	w.ctx, w.lease = ctx, l
	close(w.inside)
	select {
	case err := <-w.out:
		return err
	case <-w.e.ctx.Done():
		return w.e.ctx.Err()
	}
}

// leave ends the function with err, and returns what Do makes of it.
func (w *work) leave(err error) error {
	w.e.Helper()
	w.out <- err
	w.e.await(w.done, "Do to return after its function")
	return w.err
}

// goesOn checks that Do has not returned.
func (w *work) goesOn() {
	w.e.Helper()
	select {
	case <-w.done:
		w.e.fail("Do to wait for its function", "it has returned before, with %v", w.err)
	default:
	}
}

// await waits until done is closed, and fails the case if it is not.
func (e *env) await(done <-chan struct{}, want string) {
	e.Helper()
	timer := time.NewTimer(e.patience())
	defer timer.Stop()
	select {
	case <-done:
	case <-timer.C:
		e.fail(want, "it has not, in %v", e.patience())
	}
}

// lockBy takes key, which is free.
func (e *env) lockBy(c client, key string, opts []lock.Option) lease {
	e.Helper()
	var l lease
	err := e.call("Lock", func(ctx context.Context) (err error) {
		l, err = c.Lock(ctx, key, opts...)
		return err
	})
	if err != nil || l == nil {
		e.fail(fmt.Sprintf("a lease of %q, which is free", key), "%v", err)
	}
	return l
}

// releases releases l, which is held.
func (e *env) releases(l lease) {
	e.Helper()
	if err := e.call("Lease.Release", l.Release); err != nil {
		e.fail("a nil error from the Release of a lease that is held", "%v", err)
	}
}

// freed waits until key is free, which must not take as long as a TTL.
func (e *env) freed(l lock.Locker, key string) {
	e.Helper()
	e.eventually(fmt.Sprintf("%q to be free", key), e.patience(), func() (bool, string) {
		h, err := e.settled(l, e.rival(key))
		if err != nil {
			return false, err.Error()
		}
		e.mustRelease(h)
		return true, ""
	})
}

// evict forces the only holder of key out.
func (e *env) evict(l lock.Locker, key string) {
	e.Helper()
	if !e.evicts(l, key) {
		e.fail(fmt.Sprintf("one holder of %q, whom ForceRelease ends", key), "none")
	}
}

// evicts is evict of a holder whose time may be over: it reports whether there was one.
func (e *env) evicts(l lock.Locker, key string) bool {
	e.Helper()
	rec := e.mustInspect(l, key)
	if len(rec.Holders) == 0 {
		return false
	}
	if len(rec.Holders) > 1 {
		e.fail(fmt.Sprintf("one holder of %q", key), "%+v", rec.Holders)
	}
	err := e.forces(l, key, rec.Holders[0].Owner)
	if err != nil && !errors.Is(err, lock.ErrLost) {
		e.fail("a nil error from ForceRelease of a holder", "%v", err)
	}
	return err == nil
}

// learns has l, which was forced, learn it by a renewal, if nothing has told it before.
func (e *env) learns(l lease) {
	e.Helper()
	e.eventually("a Renew to show that the lease is lost", e.patience(), func() (bool, string) {
		err := e.call("Lease.Renew", l.Renew)
		return l.Err() != nil, fmt.Sprintf("%v", err)
	})
}

// lostBy waits for the end of ctx, and returns the loss that must be its cause.
func (e *env) lostBy(ctx context.Context) *lock.LostError {
	e.Helper()
	e.await(ctx.Done(), "the context to end when the lease is lost")
	var lost *lock.LostError
	if cause := context.Cause(ctx); !errors.As(cause, &lost) {
		e.fail("a *LostError as the cause of the context", "%v", cause)
	}
	return lost
}

// onceOf runs a check that a busy machine can spoil, and fails the case if it always is.
func (e *env) onceOf(want string, try func() bool) {
	e.Helper()
	const most = 4
	if !e.repeatedly(most, e.ttl/4, try) {
		e.fail(want, "it was not, %d times", most)
	}
}

// forced reports whether that is how a grant that was forced is lost. If it is not, the
// machine was too slow for the renewal that would have told.
func forced(lost *lock.LostError) bool {
	return lost.Reason == lock.ReasonForced || lost.Reason == lock.ReasonTaken
}

// events are what an Observer has seen.
type events struct {
	mu   sync.Mutex // guards the rest
	all  []lock.Event
	then func(lock.Event) // called with each, under no mutex
}

// Observe implements [lock.Observer].
func (s *events) Observe(_ context.Context, e lock.Event) {
	s.mu.Lock()
	s.all = append(s.all, e)
	then := s.then
	s.mu.Unlock()
	if then != nil {
		then(e)
	}
}

// hook has f called with each event from now on.
func (s *events) hook(f func(lock.Event)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.then = f
}

// of is what was seen of key, without the renewals.
func (s *events) of(key string) (of []lock.Event) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, e := range s.all {
		if e.Key == key && e.Kind != lock.EventRenewed && e.Kind != lock.EventRenewFailed {
			of = append(of, e)
		}
	}
	return of
}

// count is how many events of that kind were seen of key.
func (s *events) count(key string, kind lock.EventKind) (n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, e := range s.all {
		if e.Key == key && e.Kind == kind {
			n++
		}
	}
	return n
}
