package lock

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// watchEvery is how often Watch looks at a store that does not push: like a waiter whose
// wake-ups do not arrive, every tenth of the longest heartbeat.
const watchEvery = 500 * time.Millisecond

// Watch yields key's Record now and whenever it may have changed. A state may be skipped, the
// last one never is. A Record that differs from the one before by nothing but times is not
// yielded again.
//
// It is for finding out who leads, or who waits, not for decisions: what it shows may be
// outdated when it is yielded. The loop's body may call any method of the Client.
//
// On a store that is a [Watcher], a Watch sends no request while nothing changes, except that
// once in a TTL it looks whether the holder has expired. On any other store, and while a
// Watcher's connection is broken, it looks every 500 ms. So an expiry shows half a second after
// the store's ExpirySlack at the latest.
//
// An error is the last thing that it yields. The first look's is yielded at once. After that
// Watch outlives the store's trouble, and yields ErrUnavailable only when the store has not
// answered for [Patience]. ErrInvalid, ErrUnsupported, ErrClosed and ctx's error end it at
// once. Leaving the loop ends all that runs for it.
func (c *Client) Watch(ctx context.Context, key string) iter.Seq2[Record, error] {
	return func(yield func(Record, error) bool) {
		err := c.open(ctx)
		if err == nil {
			err = CheckKey(key)
		}
		if err == nil {
			w := &watch{c: c, key: key, caller: ctx, hint: make(chan struct{}, 1)}
			err = w.run(yield)
		}
		if err != nil {
			yield(Record{}, opWatch.fail(key, err))
		}
	}
}

// watch is one loop over a Watch.
type watch struct {
	c      *Client
	key    string
	caller context.Context
	ctx    context.Context // ends with caller, with the loop, and when Close begins
	hint   chan struct{}   // has room for one: a look is due
	pushed atomic.Bool     // the store tells of changes
	last   *Record         // the one yielded last
}

// run yields Records until the body leaves the loop, when it returns nil, or returns the error
// that ends it.
func (w *watch) run(yield func(Record, error) bool) error {
	var listening sync.WaitGroup
	defer listening.Wait()
	var cancel context.CancelFunc
	w.ctx, cancel = context.WithCancel(w.caller)
	defer cancel()
	defer context.AfterFunc(w.c.engine.open, cancel)()
	for {
		rec, err := w.look()
		if err != nil {
			return err
		}
		first := w.last == nil
		if first || !sameState(*w.last, rec) {
			w.last = &rec
			if !yield(rec, nil) {
				return nil
			}
		}
		if s, ok := As[Watcher](w.c.engine.store); first && ok {
			// What changed since the first look is found by the look that follows when the
			// store has begun to tell.
			listening.Go(func() { w.listen(s) })
		}
		w.rest(rec)
	}
}

// look asks the store, again while it is in trouble.
func (w *watch) look() (Record, error) {
	begun := time.Now()
	ctx, cancel := context.WithDeadline(w.ctx, begun.Add(Patience))
	defer cancel()
	var trouble error // before err, which may say only that ctx has ended
	for n := 0; ; n++ {
		select {
		case <-w.hint: // this look is from after it
		default:
		}
		rec, err := w.c.engine.store.Inspect(ctx, w.key)
		switch {
		case err == nil:
			return rec, nil
		case w.caller.Err() != nil:
			return Record{}, w.caller.Err()
		case w.ctx.Err() != nil:
			return Record{}, ErrClosed
		case ctx.Err() != nil && !errors.Is(err, ErrUnavailable):
			if trouble != nil && errors.Is(err, ctx.Err()) {
				err = trouble
			}
			return Record{}, fmt.Errorf("%w: no answer for %v: %w", ErrUnavailable, Patience, ownError(err))
		case w.last == nil || ctx.Err() != nil || final(err):
			return Record{}, storeError(w.caller, err)
		}
		trouble = err
		w.c.engine.sleep(ctx, w.c.cfg.pause(n, w.c.cfg.ttl))
	}
}

// rest waits until another look is due. What ends the watch is found by that.
func (w *watch) rest(rec Record) {
	pause := watchEvery
	if w.pushed.Load() {
		pause = MaxTTL
		if end, ok := firstExpiry(rec); ok {
			pause = max(end, watchEvery)
		}
	}
	t := time.NewTimer(pause)
	defer t.Stop()
	select {
	case <-w.hint:
	case <-t.C:
	case <-w.ctx.Done():
	}
}

// listen has the store tell of changes until the watch ends.
func (w *watch) listen(s Watcher) {
	for n := 0; ; n++ {
		begun := time.Now()
		err := s.Watch(w.ctx, w.key, func() {
			w.pushed.Store(true)
			w.wake()
		})
		if w.pushed.Swap(false) && time.Since(begun) > watchEvery {
			n = 0
		}
		w.wake() // it may have missed something
		if w.ctx.Err() != nil || final(err) {
			return
		}
		w.c.engine.sleep(w.ctx, w.c.cfg.pause(n, w.c.cfg.ttl))
	}
}

// wake makes a look due.
func (w *watch) wake() {
	select {
	case w.hint <- struct{}{}:
	default:
	}
}

// sameState reports whether a and b differ by nothing but times.
func sameState(a, b Record) bool {
	return a.Token == b.Token && a.HolderCount == b.HolderCount && a.WaiterCount == b.WaiterCount &&
		slices.EqualFunc(a.Holders, b.Holders, func(x, y Holder) bool {
			return x.Owner == y.Owner && x.Token == y.Token && x.Shared == y.Shared && maps.Equal(x.Metadata, y.Metadata)
		}) &&
		slices.EqualFunc(a.Waiters, b.Waiters, func(x, y Waiter) bool {
			return x.Owner == y.Owner && x.Shared == y.Shared && maps.Equal(x.Metadata, y.Metadata)
		})
}
