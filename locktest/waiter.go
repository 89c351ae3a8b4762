package locktest

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	lock "github.com/seed-215fdefa/lock"
)

// waiter is an Acquire that goes on beside the case.
type waiter struct {
	e      *env
	h      held // complete, as err is, when done is closed
	err    error
	cancel context.CancelFunc

	waiting chan struct{} // closed by the first call of Request.Waiting
	calls   atomic.Int32  // of Request.Waiting
	record  lock.Record   // what it was called with; complete when waiting is closed
	first   sync.Once     // guards the closing of waiting
	done    chan struct{}
}

// wait stands in line: it returns when the store has called Request.Waiting. It
// stands there until the case is over, or as long as its cancel says.
func (e *env) wait(l lock.Locker, req lock.Request) *waiter {
	e.Helper()
	return e.waitFor(e.ctx, l, req)
}

// waitFor is wait with a ctx.
func (e *env) waitFor(ctx context.Context, l lock.Locker, req lock.Request) *waiter {
	e.Helper()
	req.Wait = true
	w := e.ask(ctx, l, req)
	select {
	case <-w.waiting:
	case <-w.done:
		e.fail(fmt.Sprintf("a wait for %q, which is held, and Request.Waiting to be called", req.Key),
			"grant %+v, error %v", w.h.g, w.err)
	case <-time.After(e.patience()):
		e.fail("Request.Waiting to be called when the wait begins", "it was not, in %v", e.patience())
	}
	return w
}

// ask acquires beside the case.
func (e *env) ask(ctx context.Context, l lock.Locker, req lock.Request) *waiter {
	w := &waiter{e: e, waiting: make(chan struct{}), done: make(chan struct{})}
	ctx, w.cancel = context.WithCancel(ctx)
	req.Waiting = w.begun
	w.h = held{l: l, req: req}
	e.start(func() {
		defer close(w.done)
		defer w.cancel()
		w.h.asked = time.Now()
		w.h.g, w.err = l.Acquire(ctx, req)
		w.h.answered = time.Now()
	})
	return w
}

func (w *waiter) begun(rec lock.Record) {
	w.calls.Add(1)
	w.first.Do(func() {
		w.record = rec
		close(w.waiting)
	})
}

// returned waits for Acquire to return, for as long as it may take.
func (w *waiter) returned(want string, limit time.Duration) {
	w.e.Helper()
	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case <-w.done:
	case <-timer.C:
		w.e.fail(fmt.Sprintf("%s within %v", want, limit), "Acquire has not returned")
	}
}

// granted is the grant that the wait must come to within e.patience().
func (w *waiter) granted() held {
	w.e.Helper()
	return w.grantedWithin(0)
}

// grantedWithin is granted, where the contract allows extra to pass as well.
func (w *waiter) grantedWithin(extra time.Duration) held {
	w.e.Helper()
	w.returned("the waiter's grant", extra+w.e.patience())
	if w.err != nil {
		w.e.fail("the waiter's grant", "error %v", w.err)
	}
	if want, seen := w.h.flaw(w.h.asked); want != "" {
		w.e.fail(want, "%s", seen)
	}
	return w.h
}

// refused is the error that the wait must come to, now that its ctx has ended with end.
func (w *waiter) refused(end error) {
	w.e.Helper()
	w.returned("Acquire to return when its ctx ends", w.e.patience())
	want := fmt.Sprintf("an error that is both ErrHeld and %q", end)
	switch {
	case w.err == nil:
		w.e.fail(want, "a nil error, grant %+v, while the key is held", w.h.g)
	case !errors.Is(w.err, end) || !errors.Is(w.err, lock.ErrHeld):
		w.e.fail(want, "%v", w.err)
	}
}

// ended reports whether Acquire has returned.
func (w *waiter) ended() bool {
	select {
	case <-w.done:
		return true
	default:
		return false
	}
}

// still checks that the wait goes on.
func (w *waiter) still() {
	w.e.Helper()
	if w.ended() {
		w.e.fail("the wait to go on", "grant %+v, error %v", w.h.g, w.err)
	}
}

// withdraw ends the wait and undoes it, as a Client does.
func (w *waiter) withdraw() {
	w.e.Helper()
	w.cancel()
	w.returned("Acquire to return when its ctx ends", w.e.patience())
	if w.err == nil {
		w.e.fail("an error, since the key is held", "grant %+v", w.h.g)
	}
	w.e.mustUndo(w.h.l, w.h.req.Key, w.h.req.Owner)
}
