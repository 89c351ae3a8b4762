package memory

import (
	"context"
	"crypto/rand"
	"iter"
	"sync"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/internal/storekit"
)

// Faulty is a store to test an application with. It works like one from [New], and fails on
// request: it loses a lock, lets somebody else hold one, or goes down.
//
//	store := memory.NewFaulty()
//	client := lock.New(store)
//
// It has no goroutine and no clock of its own, so it may be used in the [testing/synctest]
// bubble in which it was made. It is safe for concurrent use.
type Faulty struct {
	inner *Locker

	mu     sync.Mutex      // guards the rest
	err    error           // what every call returns; nil if there is no such trouble
	frozen chan struct{}   // closed by Heal; nil while calls are answered
	up     context.Context // ends with Fail
	down   context.CancelFunc
}

var (
	_ lock.Locker  = (*Faulty)(nil)
	_ lock.Admin   = (*Faulty)(nil)
	_ lock.Watcher = (*Faulty)(nil)
)

// NewFaulty returns a Faulty on a store of its own. It works until told otherwise.
func NewFaulty() *Faulty {
	f := &Faulty{inner: New()}
	f.up, f.down = context.WithCancel(context.Background())
	return f
}

// Lose ends every grant of key, as an operator's ForceRelease does, and returns how many there
// were. The holders are notified at once; after Fail or Freeze, at their next renewal once the
// store answers.
func (f *Faulty) Lose(key string) int {
	n := 0
	for _, h := range f.inner.inspect(key).Holders {
		if f.inner.ForceRelease(context.Background(), key, h.Owner) == nil {
			n++
		}
	}
	return n
}

// Occupy takes key for somebody else, who keeps it until free is called. It returns ErrHeld if
// key is held: call Lose first. Calling free again does nothing.
func (f *Faulty) Occupy(key string) (free func(), err error) {
	other := f.inner.Open()
	g, err := other.Acquire(context.Background(), lock.Request{
		Key: key, Owner: rand.Text(), TTL: lock.MaxTTL, Metadata: map[string]string{"held by": "Faulty.Occupy"},
	})
	if err != nil {
		return nil, err
	}
	return func() { _ = other.Release(context.Background(), g) }, nil
}

// Fail makes every call return err at once, until Heal. It undoes nothing: what the store has
// granted stays granted. Fail(nil) ends an earlier Fail.
func (f *Faulty) Fail(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.fail(err)
}

// fail makes calls return err, or work if it is nil. f.mu is held.
func (f *Faulty) fail(err error) {
	switch {
	case err != nil:
		f.down()
	case f.err != nil:
		f.up, f.down = context.WithCancel(context.Background())
	}
	f.err = err
}

// Freeze makes every call hang until its ctx ends, until Heal, or for [lock.Patience]: then it is
// ErrUnavailable. Requests of later calls do not arrive; replies to calls under way do not come back.
func (f *Faulty) Freeze() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.frozen == nil {
		f.frozen = make(chan struct{})
	}
}

// Heal ends Fail and Freeze.
func (f *Faulty) Heal() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.fail(nil)
	if f.frozen != nil {
		close(f.frozen)
		f.frozen = nil
	}
}

// pass returns nil when there is no trouble, and an error when it goes on for longer than a call waits.
func (f *Faulty) pass(ctx context.Context) error { return storekit.WithinPatience(ctx, f.thawed) }

// thawed is pass for who waits for as long as ctx lasts.
func (f *Faulty) thawed(ctx context.Context) error {
	for {
		f.mu.Lock()
		err, frozen := f.err, f.frozen
		f.mu.Unlock()
		if frozen == nil {
			return err
		}
		select {
		case <-frozen:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// exchange is a request and its reply, either of which trouble may stop.
func exchange[T any](ctx context.Context, f *Faulty, ask func() (T, error)) (T, error) {
	var none T
	if err := f.pass(ctx); err != nil {
		return none, err
	}
	v, err := ask()
	if lost := f.pass(ctx); lost != nil {
		return none, lost
	}
	return v, err
}

// Acquire implements [lock.Locker].
func (f *Faulty) Acquire(ctx context.Context, req lock.Request) (lock.Grant, error) {
	if err := lock.CheckRequest(req, f.Capabilities()); err != nil {
		return lock.Grant{}, err
	}
	if lost := req.Lost; lost != nil {
		req.Lost = func(r lock.LostReason) {
			f.mu.Lock()
			through := f.err == nil && f.frozen == nil
			f.mu.Unlock()
			if through {
				lost(r)
			}
		}
	}
	return exchange(ctx, f, func() (lock.Grant, error) { return f.inner.Acquire(ctx, req) })
}

// Renew implements [lock.Locker].
func (f *Faulty) Renew(ctx context.Context, g lock.Grant) (lock.Grant, error) {
	return exchange(ctx, f, func() (lock.Grant, error) { return f.inner.Renew(ctx, g) })
}

// Release implements [lock.Locker].
func (f *Faulty) Release(ctx context.Context, g lock.Grant) error {
	_, err := exchange(ctx, f, func() (struct{}, error) { return struct{}{}, f.inner.Release(ctx, g) })
	return err
}

// Inspect implements [lock.Locker].
func (f *Faulty) Inspect(ctx context.Context, key string) (lock.Record, error) {
	return exchange(ctx, f, func() (lock.Record, error) { return f.inner.Inspect(ctx, key) })
}

// Watch implements [lock.Watcher]. Fail ends it, and Freeze keeps it silent until Heal.
func (f *Faulty) Watch(ctx context.Context, key string, changed func()) error {
	if err := f.pass(ctx); err != nil {
		return err
	}
	f.mu.Lock()
	up := f.up
	f.mu.Unlock()
	watching, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(up, cancel)()
	err := f.inner.Watch(watching, key, func() {
		if f.thawed(watching) == nil {
			changed()
		}
	})
	if lost := f.pass(ctx); lost != nil {
		return lost
	}
	return err
}

// Capabilities implements [lock.Locker].
func (f *Faulty) Capabilities() lock.Capabilities { return f.inner.Capabilities() }

// List implements [lock.Admin].
func (f *Faulty) List(ctx context.Context, prefix string) iter.Seq2[lock.Record, error] {
	return func(yield func(lock.Record, error) bool) {
		if err := f.pass(ctx); err != nil {
			yield(lock.Record{}, err)
			return
		}
		f.inner.List(ctx, prefix)(yield)
	}
}

// ForceRelease implements [lock.Admin].
func (f *Faulty) ForceRelease(ctx context.Context, key, owner string) error {
	_, err := exchange(ctx, f, func() (struct{}, error) { return struct{}{}, f.inner.ForceRelease(ctx, key, owner) })
	return err
}

// Close does nothing: a Faulty holds no resources.
func (f *Faulty) Close() error { return nil }
