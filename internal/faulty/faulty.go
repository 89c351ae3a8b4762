// Package faulty puts a network that can fail between a test and a store that has none.
package faulty

import (
	"context"
	"errors"
	"sync"
	"testing"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/internal/storekit"
	"github.com/seed-215fdefa/lock/locktest"
)

var errSevered = errors.New("faulty: the process is cut off")

// watched is what a Locker may be on.
type watched interface {
	lock.Locker
	lock.Watcher
}

// Locker is a process with a network between it and a store without one, which can fail.
type Locker struct {
	inner watched
	life  context.Context // ends when the process is severed
	end   context.CancelFunc
	calls sync.WaitGroup // of inner; mu is held when one begins

	mu     sync.Mutex    // guards the rest
	frozen chan struct{} // not nil while nothing goes either way; closed by heal
	mute   chan struct{} // not nil while no reply comes back; closed by heal
}

// New returns a process on inner. Sever it when the test ends.
func New(inner watched) *Locker {
	f := &Locker{inner: inner}
	f.life, f.end = context.WithCancel(context.Background())
	return f
}

// Unwrap returns what is behind the network.
func (f *Locker) Unwrap() lock.Locker { return f.inner }

// Capabilities implements [lock.Locker].
func (f *Locker) Capabilities() lock.Capabilities { return f.inner.Capabilities() }

// Sever cuts off the process. When it returns its calls are over: a waiter that was handed the
// lock just before it died would be a dead holder, which may keep it for longer.
func (f *Locker) Sever() {
	f.mu.Lock()
	f.end()
	f.mu.Unlock()
	f.calls.Wait()
}

// begin begins a call, unless the process is severed. The caller calls the done of calls.
func (f *Locker) begin() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.life.Err() != nil {
		return errSevered
	}
	f.calls.Add(1)
	return nil
}

// fault closes the way that which points to until heal.
func (f *Locker) fault(which *chan struct{}) (heal func()) {
	c := make(chan struct{})
	f.mu.Lock()
	defer f.mu.Unlock()
	*which = c
	return func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		*which = nil
		close(c)
	}
}

// pass waits until the ways are open.
func (f *Locker) pass(ctx context.Context, ways ...*chan struct{}) error {
	for _, which := range ways {
		f.mu.Lock()
		closed := *which
		f.mu.Unlock()
		if closed != nil {
			select {
			case <-closed:
			case <-ctx.Done():
				return ctx.Err()
			case <-f.life.Done():
			}
		}
	}
	if f.life.Err() != nil {
		return errSevered
	}
	return nil
}

// within is pass for a call, which gives up in the end.
func (f *Locker) within(ctx context.Context, ways ...*chan struct{}) error {
	return storekit.WithinPatience(ctx, func(ctx context.Context) error { return f.pass(ctx, ways...) })
}

// exchange is a request and its reply. What was done stays done when the reply is lost.
func exchange[T any](ctx context.Context, f *Locker, do func(context.Context) (T, error)) (T, error) {
	var none T
	if err := f.within(ctx, &f.frozen); err != nil {
		return none, err
	}
	if err := f.begin(); err != nil {
		return none, err
	}
	sent, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(f.life, cancel)()
	v, err := do(sent)
	f.calls.Done()
	if lost := f.within(ctx, &f.frozen, &f.mute); lost != nil {
		return none, lost
	}
	return v, err
}

// Acquire implements [lock.Locker].
func (f *Locker) Acquire(ctx context.Context, req lock.Request) (lock.Grant, error) {
	// The process's own part: what is wrong never goes to the network.
	if err := lock.CheckRequest(req, f.Capabilities()); err != nil {
		return lock.Grant{}, err
	}
	if lost := req.Lost; lost != nil {
		req.Lost = func(why lock.LostReason) {
			f.mu.Lock()
			through := f.frozen == nil && f.life.Err() == nil
			f.mu.Unlock()
			if through {
				lost(why)
			}
		}
	}
	return exchange(ctx, f, func(ctx context.Context) (lock.Grant, error) { return f.inner.Acquire(ctx, req) })
}

// Renew implements [lock.Locker].
func (f *Locker) Renew(ctx context.Context, g lock.Grant) (lock.Grant, error) {
	return exchange(ctx, f, func(ctx context.Context) (lock.Grant, error) { return f.inner.Renew(ctx, g) })
}

// Release implements [lock.Locker].
func (f *Locker) Release(ctx context.Context, g lock.Grant) error {
	_, err := exchange(ctx, f, func(ctx context.Context) (struct{}, error) {
		return struct{}{}, f.inner.Release(ctx, g)
	})
	return err
}

// Inspect implements [lock.Locker].
func (f *Locker) Inspect(ctx context.Context, key string) (lock.Record, error) {
	if err := lock.CheckKey(key); err != nil {
		return lock.Record{}, err
	}
	return exchange(ctx, f, func(ctx context.Context) (lock.Record, error) { return f.inner.Inspect(ctx, key) })
}

// Watch implements [lock.Watcher].
func (f *Locker) Watch(ctx context.Context, key string, changed func()) error {
	_, err := exchange(ctx, f, func(ctx context.Context) (struct{}, error) {
		return struct{}{}, f.inner.Watch(ctx, key, func() {
			if f.pass(ctx, &f.frozen, &f.mute) == nil {
				changed()
			}
		})
	})
	return err
}

// Faults are those of a harness whose Lockers are of this package: what befalls a process and its way
// to the store.
func Faults() map[locktest.Fault]func(testing.TB, lock.Locker) func() {
	return map[locktest.Fault]func(testing.TB, lock.Locker) func(){
		locktest.Sever: func(_ testing.TB, l lock.Locker) func() {
			l.(*Locker).Sever()
			return nil
		},
		locktest.Freeze: func(_ testing.TB, l lock.Locker) func() {
			f := l.(*Locker)
			return f.fault(&f.frozen)
		},
		locktest.LoseReply: func(_ testing.TB, l lock.Locker) func() {
			f := l.(*Locker)
			return f.fault(&f.mute)
		},
	}
}
