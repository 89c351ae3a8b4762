package locktest

import (
	"context"
	"errors"
	"time"

	lock "github.com/seed-215fdefa/lock"
)

func waits() group {
	const (
		try    = "TryLock is Lock without waiting, as TryDo is Do."
		tryDo  = "TryDo is Do without waiting: it returns ErrHeld at once if somebody else holds key."
		wait   = "WithWait bounds how long Do and Lock wait for the key. Then they return a *HeldError if the store has shown the key held, else ErrUnavailable."
		once   = "0 tries once; a d above MaxTTL is no bound."
		head   = "WithHeadStart has Do and Lock stand in line as if they had come d earlier."
		ended  = "It is ErrHeld as well if the key was seen held."
		seen   = "ErrHeld says that the store has shown somebody else to hold the key."
		undone = "If the outcome is unknown, as after a timeout, the Client undoes in the background what the store may have granted."
	)
	return group{"Waiting", []row{
		{"TryLock", try, both, nil, tryLockIsHeld},
		{"TryDo", tryDo, both, nil, tryDoIsHeld},
		{"WithWait", wait, both, nil, waitIsBounded},
		{"WithoutWait", once, both, nil, noWait},
		{"WithoutBound", once, both, nil, waitWithoutBound},
		{"EndOfContext", ended, both, nil, waitEnds},
		{"WithHeadStart", head, plain, needs(declares("Priority", hasPriority)), headStartPasses},
		{"FreezeIsNotHeld", seen, both, needs(can(Freeze)), frozenIsNotHeld},
		{"LateGrant", undone, both, needs(can(LoseReply)), lateGrant},
	}}
}

// asks runs a call that takes a lock, and returns its error. It must not wait for long,
// nor get the lock.
func (e *env) asks(what string, f func(ctx context.Context) error) error {
	e.Helper()
	err := e.call(what, f)
	if err == nil {
		e.fail(what+" of a key that is held to return an error", "nil")
	}
	return err
}

// onlyHeld checks that err says that the key is held, and nothing of a context, which has
// not ended.
func (e *env) onlyHeld(what string, err error) {
	e.Helper()
	if !errors.Is(err, lock.ErrHeld) || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		e.fail(what+" to return ErrHeld, and no error of a context", "%v", err)
	}
}

// notRun is a function of a Do that must not get the lock.
func (e *env) notRun(context.Context, lease) error {
	e.report("the function not to run while another holds the key", "it ran")
	return nil
}

func tryLockIsHeld(e *env) {
	a, b, key := e.actor(), e.open(), e.key()
	e.lasting(b, e.rival(key))
	err := e.asks("TryLock", func(ctx context.Context) error {
		_, err := a.TryLock(ctx, key, e.with(e.long())...)
		return err
	})
	e.onlyHeld("TryLock", err)
}

func tryDoIsHeld(e *env) {
	a, b, key := e.actor(), e.open(), e.key()
	e.lasting(b, e.rival(key))
	err := e.asks("TryDo", func(ctx context.Context) error {
		return a.TryDo(ctx, key, e.notRun, e.with(e.long())...)
	})
	e.onlyHeld("TryDo", err)
}

func waitIsBounded(e *env) {
	a, b, key := e.actor(), e.open(), e.key()
	e.lasting(b, e.rival(key))
	e.onceOf("Lock with WithWait to return a *HeldError", func() bool {
		begun := time.Now()
		err := e.asks("Lock with WithWait", func(ctx context.Context) error {
			_, err := a.Lock(ctx, key, e.with(e.long(), lock.WithWait(e.ttl))...)
			return err
		})
		waited := time.Since(begun)
		if errors.Is(err, lock.ErrUnavailable) {
			return false
		}
		e.onlyHeld("Lock with WithWait", err)
		var held *lock.HeldError
		if !errors.As(err, &held) {
			e.fail("a *HeldError", "%v", err)
		}
		if waited < e.ttl {
			e.fail("Lock to stand in line for its WithWait", "it returned after %v of %v", waited, e.ttl)
		}
		return true
	})
}

func noWait(e *env) {
	a, b, key := e.actor(), e.open(), e.key()
	e.lasting(b, e.rival(key))
	err := e.asks("Do with WithWait(0)", func(ctx context.Context) error {
		return a.Do(ctx, key, e.notRun, e.with(e.long(), lock.WithWait(0))...)
	})
	e.onlyHeld("Do with WithWait(0)", err)
}

func waitWithoutBound(e *env) {
	a, b, key := e.actor(), e.open(), e.key()
	h := e.lasting(b, e.rival(key))
	w := e.begin(e.ctx, a, key, e.with(e.long(), lock.WithWait(lock.MaxTTL+1)))
	e.contended(a, key)
	w.goesOn()
	e.mustRelease(h)
	e.await(w.inside, "the function of a Do that waits to run when the key is free")
	if err := w.leave(nil); err != nil {
		e.fail("nil, as the function returned", "%v", err)
	}
}

// headStartPasses: who came later runs first.
func headStartPasses(e *env) {
	a, b, l, key := e.actor(), e.actor(), e.open(), e.key()
	blocker := e.lasting(l, e.rival(key))
	ran := make(chan string, 2)
	line := func(who actor, name string, opts ...lock.Option) {
		e.start(func() {
			err := who.Do(e.ctx, key, func(context.Context, lease) error {
				ran <- name
				return nil
			}, e.with(e.long(), opts...)...)
			if err != nil && e.ctx.Err() == nil {
				e.report("a nil error from Do", "%v", err)
			}
		})
		e.contended(who, key)
	}
	line(a, "the first")
	line(b, "the one with a head start", lock.WithHeadStart(time.Hour))
	e.mustRelease(blocker)
	for _, want := range []string{"the one with a head start", "the first"} {
		select {
		case name := <-ran:
			if name != want {
				e.fail(want+" to run", "%s", name)
			}
		case <-time.After(e.patience()):
			e.fail(want+" to run", "nobody has, in %v", e.patience())
		}
	}
}

// waitEnds cancels a call that is known to wait.
func waitEnds(e *env) {
	a, b, key := e.actor(), e.open(), e.key()
	e.lasting(b, e.rival(key))
	ctx, cancel := context.WithCancel(e.ctx)
	done := e.locks(ctx, a, key)
	e.contended(a, key)
	cancel()
	select {
	case err := <-done:
		if !errors.Is(err, context.Canceled) || !errors.Is(err, lock.ErrHeld) {
			e.fail("an error that is both context.Canceled and ErrHeld", "%v", err)
		}
	case <-time.After(e.patience()):
		e.fail("Lock to return when its ctx ends", "it has not, in %v", e.patience())
	}
}

// frozenIsNotHeld: nobody has the key, and the store does not say so.
func frozenIsNotHeld(e *env) {
	a := e.actor()
	e.freeBy(a) // warm: it is to fail like a store that was there
	heal := e.fault(Freeze, a.l)
	for _, m := range []clientCall{
		{"TryLock", func(ctx context.Context) error {
			_, err := a.TryLock(ctx, e.key(), e.with(e.ttl)...)
			return err
		}},
		{"Lock with WithWait", func(ctx context.Context) error {
			_, err := a.Lock(ctx, e.key(), e.with(e.long(), lock.WithWait(e.ttl))...)
			return err
		}},
		{"Do with WithWait", func(ctx context.Context) error {
			return a.Do(ctx, e.key(), e.notRun, e.with(e.long(), lock.WithWait(e.ttl))...)
		}},
	} {
		err := e.call(m.name, m.call)
		if !errors.Is(err, lock.ErrUnavailable) || errors.Is(err, lock.ErrHeld) {
			e.fail("ErrUnavailable, and not ErrHeld, from "+m.name+" while the store is frozen", "%v", err)
		}
	}
	heal()
}

// locks locks beside the case.
func (e *env) locks(ctx context.Context, a actor, key string) <-chan error {
	done := make(chan error, 1)
	e.start(func() {
		_, err := a.Lock(ctx, key, e.with(e.long())...)
		done <- err
	})
	return done
}

// contended returns when a is known to wait for key.
func (e *env) contended(a actor, key string) {
	e.Helper()
	e.eventually("an EventContended when a wait begins", e.patience(), func() (bool, string) {
		return a.seen.count(key, lock.EventContended) > 0, "none"
	})
}

// lateGrant: the request reaches the store, and its reply nobody who waits for it.
func lateGrant(e *env) {
	a, b, key := e.actor(), e.open(), e.key()
	e.freeBy(a) // warm: else what is kept back may be the handshake
	heal := e.fault(LoseReply, a.l)
	ctx, cancel := context.WithCancel(e.ctx)
	done := make(chan error, 1)
	e.start(func() {
		_, err := a.TryLock(ctx, key, e.with(e.long())...)
		done <- err
	})
	granted := false
	for begun := time.Now(); !granted && time.Since(begun) < e.patience(); time.Sleep(e.tick()) {
		granted = len(e.mustInspect(b, key).Holders) > 0
	}
	cancel()
	select {
	case err := <-done:
		if !errors.Is(err, context.Canceled) && !errors.Is(err, lock.ErrUnavailable) {
			e.fail("the error of ctx, or ErrUnavailable", "%v", err)
		}
	case <-time.After(e.patience()):
		e.fail("TryLock to return when its ctx ends", "it has not, in %v", e.patience())
	}
	heal()
	if !granted {
		e.skip("LoseReply did not let the request take effect")
	}
	e.freed(b, key)
}

// freeBy takes a key of its own by a, and gives it back.
func (e *env) freeBy(a actor) {
	e.Helper()
	e.releases(e.lockBy(a, e.key(), e.with(e.long())))
}
