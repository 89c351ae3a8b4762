package memory

import (
	"context"
	"crypto/rand"
	"fmt"
	"iter"
	"sync"
	"time"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/internal/storekit"
)

// Faulty is a store to test an application with. It works like one from [New], and fails on
// request: it loses a lock, lets somebody else hold one, or goes down.
//
//	store := memory.NewFaulty()
//	client := lock.New(store)
//
// It has no goroutine of its own, so it may be used in the [testing/synctest]
// bubble in which it was made. It is safe for concurrent use.
type Faulty struct {
	inner *Locker

	mu     sync.Mutex      // guards the rest
	err    error           // what every call returns; nil if there is no such trouble
	frozen bool            // whether calls hang
	over   chan struct{}   // closed when there is no trouble any more; nil if there is none
	up     context.Context // ends with Fail
	down   context.CancelFunc

	endured context.Context // ends when trouble has lasted for Patience, and waits with it
	giveUp  context.CancelFunc
	lasting *time.Timer // calls giveUp
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
	f.endured, f.giveUp = context.WithCancel(context.Background())
	return f
}

// Lose ends every grant of key, as an operator's ForceRelease does, and returns how many there
// were. The holders are notified at once; after Fail or Freeze, at their next renewal once the
// store answers.
func (f *Faulty) Lose(key string) int {
	n := 0
	for _, owner := range f.inner.store.holders(key) { // a Record does not show all
		if f.inner.ForceRelease(context.Background(), key, owner) == nil {
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
// granted stays granted. A call that waits in line gets no answer, as after Freeze. Fail(nil) ends
// an earlier Fail.
func (f *Faulty) Fail(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.set(err, f.frozen)
}

// Freeze makes every call hang until its ctx ends, until Heal, or for [lock.Patience]: then it is
// ErrUnavailable. Requests of later calls do not arrive; replies to calls under way do not come back.
// A call that waits in line keeps its place until then.
func (f *Faulty) Freeze() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.set(f.err, true)
}

// Heal ends Fail and Freeze.
func (f *Faulty) Heal() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.set(nil, false)
}

// set makes calls return err, or work if it is nil, once they are not frozen. f.mu is held.
func (f *Faulty) set(err error, frozen bool) {
	switch {
	case err != nil:
		f.down()
	case f.err != nil:
		f.up, f.down = context.WithCancel(context.Background())
	}
	f.err, f.frozen = err, frozen
	switch trouble := err != nil || frozen; {
	case trouble && f.over == nil:
		f.over = make(chan struct{})
		f.lasting = time.AfterFunc(lock.Patience, f.giveUp)
	case !trouble && f.over != nil:
		close(f.over)
		f.over = nil
		if !f.lasting.Stop() { // the waits of then have ended
			f.endured, f.giveUp = context.WithCancel(context.Background())
		}
	}
}

// pass returns nil when there is no trouble, and an error when it goes on for longer than a call waits.
func (f *Faulty) pass(ctx context.Context) error { return storekit.WithinPatience(ctx, f.thawed) }

// thawed is pass for who waits for as long as ctx lasts.
func (f *Faulty) thawed(ctx context.Context) error {
	for {
		f.mu.Lock()
		err, frozen, over := f.err, f.frozen, f.over
		f.mu.Unlock()
		if !frozen {
			return err
		}
		select {
		case <-over:
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
			through := f.over == nil
			f.mu.Unlock()
			if through {
				lost(r)
			}
		}
	}
	if req.Wait {
		return f.wait(ctx, req)
	}
	return exchange(ctx, f, func() (lock.Grant, error) { return f.inner.Acquire(ctx, req) })
}

// wait is exchange for a request that may stand in line, where it outlives trouble that does not
// last for longer than patience.
func (f *Faulty) wait(ctx context.Context, req lock.Request) (lock.Grant, error) {
	if err := f.pass(ctx); err != nil {
		return lock.Grant{}, err
	}
	f.mu.Lock()
	endured := f.endured
	f.mu.Unlock()
	inLine, leave := context.WithCancel(ctx)
	defer leave()
	defer context.AfterFunc(endured, leave)()
	held, waiting := false, req.Waiting
	req.Waiting = func(r lock.Record) {
		held = true
		if waiting != nil {
			waiting(r)
		}
	}
	g, err := f.inner.Acquire(inLine, req)
	for {
		f.mu.Lock()
		trouble, over := f.err, f.over
		f.mu.Unlock()
		if over == nil && endured.Err() == nil {
			return g, err
		}
		select {
		case <-over:
			continue
		case <-endured.Done():
			err, held = fmt.Errorf("%w: no answer for %v", lock.ErrUnavailable, lock.Patience), false
		case <-ctx.Done():
			err = ctx.Err()
		}
		if trouble != nil {
			err = fmt.Errorf("%w: %w", err, trouble)
		}
		if held {
			err = &lock.HeldError{Record: lock.Record{Key: req.Key}, Err: err}
		}
		return lock.Grant{}, err
	}
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
