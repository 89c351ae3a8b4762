package memory_test

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/memory"
)

var errSevered = errors.New("faulty: the process is cut off")

// faulty is a process with a network between it and the store, which can fail.
type faulty struct {
	inner *memory.Locker
	life  context.Context // ends when the process is severed
	end   context.CancelFunc
	calls sync.WaitGroup // of inner; mu is held when one begins

	mu     sync.Mutex    // guards the rest
	frozen chan struct{} // not nil while nothing goes either way; closed by heal
	mute   chan struct{} // not nil while no reply comes back; closed by heal
}

func newFaulty(inner *memory.Locker) *faulty {
	f := &faulty{inner: inner}
	f.life, f.end = context.WithCancel(context.Background())
	return f
}

func (f *faulty) Unwrap() lock.Locker             { return f.inner }
func (f *faulty) Capabilities() lock.Capabilities { return f.inner.Capabilities() }

// die severs the process. When it returns its calls are over: a waiter that was handed the
// lock just before it died would be a dead holder, which may keep it for longer.
func (f *faulty) die() {
	f.mu.Lock()
	f.end()
	f.mu.Unlock()
	f.calls.Wait()
}

// begin begins a call, unless the process is severed. The caller calls the done of calls.
func (f *faulty) begin() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.life.Err() != nil {
		return errSevered
	}
	f.calls.Add(1)
	return nil
}

// fault closes the way that which points to until heal.
func (f *faulty) fault(which *chan struct{}) (heal func()) {
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
func (f *faulty) pass(ctx context.Context, ways ...*chan struct{}) error {
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

// exchange is a request and its reply. What was done stays done when the reply is lost.
func exchange[T any](ctx context.Context, f *faulty, do func(context.Context) (T, error)) (T, error) {
	var none T
	if err := f.pass(ctx, &f.frozen); err != nil {
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
	if lost := f.pass(ctx, &f.frozen, &f.mute); lost != nil {
		return none, lost
	}
	return v, err
}

func (f *faulty) Acquire(ctx context.Context, req lock.Request) (lock.Grant, error) {
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

func (f *faulty) Renew(ctx context.Context, g lock.Grant) (lock.Grant, error) {
	return exchange(ctx, f, func(ctx context.Context) (lock.Grant, error) { return f.inner.Renew(ctx, g) })
}

func (f *faulty) Release(ctx context.Context, g lock.Grant) error {
	_, err := exchange(ctx, f, func(ctx context.Context) (struct{}, error) {
		return struct{}{}, f.inner.Release(ctx, g)
	})
	return err
}

func (f *faulty) Inspect(ctx context.Context, key string) (lock.Record, error) {
	if err := lock.CheckKey(key); err != nil {
		return lock.Record{}, err
	}
	return exchange(ctx, f, func(ctx context.Context) (lock.Record, error) { return f.inner.Inspect(ctx, key) })
}

// forget is a loss of everything. It takes a millisecond, as it would take longer on any
// store: tokens rise beyond it by the clock.
func forget(_ testing.TB, l lock.Locker) (heal func()) {
	memory.Forget(l.(*faulty).inner)
	time.Sleep(time.Millisecond)
	return nil
}
