package locktest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	lock "github.com/seed-215fdefa/lock"
)

func cancels() group {
	const prompt = "Cancel is prompt. When ctx ends every method must return promptly with an error for which errors.Is(err, ctx.Err()) holds; it is ErrHeld as well if Acquire saw the key held, and wraps the store's last error if that was in trouble. A grant already known at that moment may be returned instead."
	return group{"CancelIsPrompt", []row{
		{"Waiter", prompt, both, nil, cancelOfWaiter},
		{"Deadline", prompt, both, nil, deadlineOfWaiter},
		{"AtOnce", prompt, both, nil, cancelAtOnce},
		{"BeforeTheCall", prompt, both, nil, cancelBeforeCall},
		{"Freeze", prompt, both, needs(can(Freeze)), cancelOfFrozen},
		{"SeveralDuringAFreeze", prompt, both, needs(can(Freeze)), cancelOfSeveralFrozen},
		{"LateReply", prompt, both, needs(canWithhold), cancelOfLateReply},
	}}
}

func cancelOfWaiter(e *env) {
	a, b, key := e.open(), e.open(), e.key()
	h := e.lasting(a, e.rival(key))
	w := e.wait(b, e.request(key))
	w.cancel()
	w.refused(context.Canceled)
	e.mustUndo(b, key, w.h.req.Owner)
	e.only(b, h)
}

func deadlineOfWaiter(e *env) {
	a, b, key := e.open(), e.open(), e.key()
	h := e.lasting(a, e.rival(key))
	e.attempts(func() bool {
		ctx, cancel := context.WithTimeout(e.ctx, e.ttl)
		defer cancel()
		w := e.ask(ctx, b, waiting(e.request(key)))
		w.returned("Acquire to return when its ctx ends", e.ttl+e.patience())
		select {
		case <-w.waiting:
			w.refused(context.DeadlineExceeded)
		default:
			return false // ctx ended before the store could say that the key is held
		}
		e.mustUndo(b, key, w.h.req.Owner)
		return true
	})
	e.only(b, h)
}

func cancelAtOnce(e *env) {
	a, b, key := e.open(), e.open(), e.key()
	h := e.lasting(a, e.rival(key))
	e.fastest("Acquire to return when its ctx ends", e.quick(), func() time.Duration {
		w := e.wait(b, e.request(key))
		canceled := time.Now()
		w.withdraw()
		return w.h.answered.Sub(canceled)
	})
	e.only(b, h)
}

// method is a call of one of the Locker's methods.
type method struct {
	name    string
	acquire bool
	local   bool // it may know its outcome without asking the store
	lasts   bool // it goes on until ctx ends, whether the store answers or not
	call    func(ctx context.Context) error
	answers []error // it may return these, too
}

// methods are calls of every method of a, those of an Admin and a Watcher among them, on what h
// holds and on keys that nobody does. What they may acquire without saying so is soon over.
func (e *env) methods(a lock.Locker, h held) []method {
	try, wait, other := e.brief(e.key()), waiting(e.rival(h.g.Key)), e.key()
	wait.TTL = e.ttl
	acquire := func(req lock.Request) func(context.Context) error {
		return func(ctx context.Context) error {
			_, err := a.Acquire(ctx, req)
			return err
		}
	}
	release := func(g lock.Grant) func(context.Context) error {
		return func(ctx context.Context) error { return a.Release(ctx, g) }
	}
	methods := []method{
		{name: "Acquire", acquire: true, call: acquire(try)},
		{name: "Acquire with Wait", acquire: true, call: acquire(wait)},
		{name: "Renew", call: func(ctx context.Context) error {
			_, err := a.Renew(ctx, h.g)
			return err
		}},
		{name: "Inspect", call: func(ctx context.Context) error {
			_, err := a.Inspect(ctx, other)
			return err
		}},
		{name: "Release without a token", local: true, call: release(lock.Grant{Key: other, Owner: h.g.Owner})},
		{name: "Release", call: release(h.g)},
	}
	// What is behind a fault of the harness may not be all that As finds.
	if admin := adminOf(a); admin != nil {
		methods = append(methods, method{name: "List", local: true, answers: []error{lock.ErrUnsupported}, call: func(ctx context.Context) error {
			for _, err := range admin.List(ctx, other) {
				if err != nil {
					return err
				}
			}
			return nil
		}}, method{name: "ForceRelease", local: true, answers: []error{lock.ErrLost, lock.ErrUnsupported}, call: func(ctx context.Context) error {
			return admin.ForceRelease(ctx, other, h.g.Owner)
		}})
	}
	if watcher, ok := lock.As[lock.Watcher](a); ok {
		methods = append(methods, method{name: "Watch", lasts: true, answers: []error{lock.ErrUnsupported}, call: func(ctx context.Context) error {
			return watcher.Watch(ctx, other, func() {})
		}})
	}
	if e.distrust() != "" {
		methods = slices.DeleteFunc(methods, func(m method) bool { return m.name == "Inspect" })
	}
	return methods
}

// mayReturn reports whether err is what m may return when its ctx has been canceled.
func (m method) mayReturn(err error) bool {
	return slices.ContainsFunc(append(m.answers, context.Canceled), func(o error) bool { return errors.Is(err, o) })
}

// cancelBeforeCall: whatever the other methods did before they looked at ctx, they may
// report as done. A grant that did not exist when ctx ended may not be returned.
func cancelBeforeCall(e *env) {
	a, b, key := e.open(), e.open(), e.key()
	h := e.hold(a, key)
	ended, cancel := context.WithCancel(e.ctx)
	cancel()
	for _, m := range e.methods(a, h) {
		err := e.call(m.name, func(context.Context) error { return m.call(ended) })
		if err == nil && m.acquire || err != nil && !m.mayReturn(err) {
			e.fail(fmt.Sprintf("%s with a ctx that has ended to return an error that is %q", m.name, context.Canceled), "%v", err)
		}
	}
	_ = e.tryRelease(a, h.g)
	e.free(b, key)
}

func cancelOfFrozen(e *env) {
	b := e.open()
	e.endsWithCtx(func() (foreign string) {
		a := e.open()
		h := e.mustAcquire(a, e.request(e.key()))
		heal := e.fault(Freeze, a)
		foreign = e.endWhileUnanswered(a, h, true)
		heal()
		e.settledRelease(h)
		e.eventually("the key to be free", e.recovery()+e.overdueIn(e.ttl), func() (bool, string) {
			_, err := e.settled(b, e.rival(h.g.Key))
			return err == nil, fmt.Sprint(err)
		})
		return foreign
	})
}

// cancelOfSeveralFrozen: nobody has the key. Those who stand behind others of their process have
// seen it held no more than the first has.
func cancelOfSeveralFrozen(e *env) {
	a, key := e.open(), e.key()
	e.free(a, e.key()) // warm: it is to fail like a store that was there
	heal := e.fault(Freeze, a)
	ctx, cancel := context.WithTimeout(e.ctx, e.ttl)
	defer cancel()
	waiters := make([]*waiter, 5)
	for i := range waiters {
		waiters[i] = e.ask(ctx, a, waiting(e.request(key)))
	}
	for _, w := range waiters {
		w.returned("Acquire to return when its ctx ends", e.ttl+e.patience())
		if w.err == nil || errors.Is(w.err, lock.ErrHeld) {
			e.fail("an error that is not ErrHeld from each of several waiters while the store is frozen", "grant %+v, error %v", w.h.g, w.err)
		}
	}
	heal()
	for _, w := range waiters {
		e.settledUndo(a, key, w.h.req.Owner)
	}
}

func cancelOfLateReply(e *env) {
	e.endsWithCtx(func() (foreign string) {
		a := e.open()
		h := e.mustAcquire(a, e.request(e.key()))
		e.lateReplies(a, 1).begin()
		return e.endWhileUnanswered(a, h, false)
	})
}

// endsWithCtx tries again while some method returns an error that is not ctx's: one that fails by
// itself may do so at the very moment that its ctx ends.
func (e *env) endsWithCtx(try func() (foreign string)) {
	e.Helper()
	foreign := ""
	for range 3 {
		if foreign = try(); foreign == "" {
			return
		}
	}
	e.fail(fmt.Sprintf("every method to return an error that is %q", context.Canceled), "%s", foreign)
}

// endWhileUnanswered ends the ctx of a call of each method while no reply comes. silent
// says that none can have come before: the store is frozen. It returns what a method returned then
// that was another error than ctx's, if one did.
func (e *env) endWhileUnanswered(a lock.Locker, h held, silent bool) (foreign string) {
	e.Helper()
	ctx, cancel := context.WithCancel(e.ctx)
	defer cancel()
	type outcome struct {
		err   error
		early bool // it came while ctx was live
	}
	methods := e.methods(a, h)
	done := make([]chan outcome, len(methods))
	for i, m := range methods {
		done[i] = make(chan outcome, 1)
		e.start(func() {
			err := m.call(ctx)
			done[i] <- outcome{err, ctx.Err() == nil}
		})
	}
	time.Sleep(e.ttl / 4)
	bit := false
	for i, m := range methods {
		bit = bit || !m.lasts && len(done[i]) == 0
	}
	if !bit {
		e.skip("the fault did not bite: every call had returned")
	}
	cancel()
	timeout := time.After(e.patience())
	for i, m := range methods {
		select {
		case o := <-done[i]:
			if o.err == nil && silent && !m.local {
				e.fail(m.name+" not to succeed when the store does not answer", "a nil error")
			}
			if o.err != nil && !o.early && !m.mayReturn(o.err) {
				foreign = fmt.Sprintf("%s returned %v", m.name, o.err)
			}
		case <-timeout:
			e.fail(m.name+" to return when its ctx ends", "it has not, %v after that", e.patience())
		}
	}
	return foreign
}
