package locktest

import (
	"context"
	"errors"
	"fmt"

	lock "github.com/seed-215fdefa/lock"
)

func nesting() group {
	const (
		deadlock  = "A ctx that comes from the fn of a Do on the same key and Client would make this Do wait for itself: it returns ErrDeadlock at once, unless [WithReentrant] says otherwise."
		reentrant = "WithReentrant says what Do and TryDo make of a key that their ctx holds already. With true they run the function under the outer lease: with its TTL, its metadata and its events."
	)
	return group{"Nesting", []row{
		{"Deadlock", deadlock, both, nil, nestedDeadlock},
		{"Reentrant", reentrant, both, nil, nestedReentrant},
		{"OtherKey", deadlock, both, nil, nestedOther},
	}}
}

func nestedDeadlock(e *env) {
	a, key := e.actor(), e.key()
	w := e.do(e.ctx, a, key, e.with(e.long()))
	for _, m := range []clientCall{
		{"Do", func(ctx context.Context) error { return a.Do(ctx, key, e.notRun, e.with(e.long())...) }},
		{"TryDo", func(ctx context.Context) error { return a.TryDo(ctx, key, e.notRun, e.with(e.long())...) }},
		{"Lock", func(ctx context.Context) error {
			_, err := a.Lock(ctx, key, e.with(e.long())...)
			return err
		}},
	} {
		if err := e.within(w, m.name, m.call); !errors.Is(err, lock.ErrDeadlock) {
			e.fail("ErrDeadlock from a nested "+m.name, "%v", err)
		}
	}
	_ = w.leave(nil)
}

// within is a call by the function of w, bounded as any other.
func (e *env) within(w *work, what string, f func(ctx context.Context) error) error {
	e.Helper()
	return e.call("the nested "+what, func(bound context.Context) error {
		ctx, cancel := context.WithCancel(w.ctx)
		defer cancel()
		defer context.AfterFunc(bound, cancel)()
		return f(ctx)
	})
}

// nestedReentrant: the inner function has the outer's lease, and does not release it.
func nestedReentrant(e *env) {
	a, b, key := e.actor(), e.open(), e.key()
	w := e.do(e.ctx, a, key, e.with(e.long()))
	for _, do := range []func(context.Context, string, doFunc, ...lock.Option) error{a.Do, a.TryDo} {
		ran := lock.Token(0)
		err := e.within(w, "Do", func(ctx context.Context) error {
			return do(ctx, key, func(_ context.Context, l lease) error {
				ran = l.Token()
				return errWork
			}, e.with(e.long(), lock.WithReentrant(true))...)
		})
		if ran != w.lease.Token() || !same(err, errWork) {
			e.fail(fmt.Sprintf("the function to run with token %d, and its error", w.lease.Token()), "token %d, error %v", ran, err)
		}
		e.mustBeHeld(b, e.rival(key))
	}
	if err := w.leave(nil); err != nil {
		e.fail("nil, as the outer function returned", "%v", err)
	}
	e.freed(b, key)
}

// nestedOther: another key, or another Client, is no deadlock.
func nestedOther(e *env) {
	a, c, key := e.actor(), e.actor(), e.key()
	w := e.do(e.ctx, a, key, e.with(e.long()))
	err := e.within(w, "Do", func(ctx context.Context) error {
		return a.Do(ctx, e.key(), func(context.Context, lease) error { return errWork }, e.with(e.long())...)
	})
	if !same(err, errWork) {
		e.fail("a nested Do of another key to run", "%v", err)
	}
	err = e.within(w, "TryDo", func(ctx context.Context) error {
		return c.TryDo(ctx, key, func(context.Context, lease) error { return errWork }, lock.WithTTL(e.long()))
	})
	e.onlyHeld("a nested TryDo of another Client", err)
	_ = w.leave(nil)
}
