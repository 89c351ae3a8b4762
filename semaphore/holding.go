package semaphore

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/seed-215fdefa/lock"
)

// holding is a slot that this process asks for, and, once it has a lease, holds: for a caller,
// or until there are enough for one.
type holding struct {
	slot  int
	sent  time.Time     // when it was asked for
	waits bool          // it stands in line for the slot, as opposed to trying it
	lease *lock.Lease   // nil until it is granted; written under the semaphore's mu
	lost  atomic.Bool   // its lease has ended before it was given back
	err   error         // why it was not granted; once over is closed, what came of the release
	leave chan struct{} // closed to give it back
	over  chan struct{} // closed when that is done
}

// live reports whether h is held.
func (h *holding) live() bool { return h.lease.Err() == nil }

// ask asks for a slot in the background, and sends what comes of it to results, once. It runs
// a Do that lasts as long as the slot is held, so that closing the Client waits for permits.
// s.mu is held.
func (s *Semaphore) ask(ctx context.Context, slot int, waits bool, results chan<- *holding) {
	h := &holding{slot: slot, sent: time.Now(), waits: waits, leave: make(chan struct{}), over: make(chan struct{})}
	s.slots[slot] = h
	opts := s.try
	if waits {
		opts = s.stand
	}
	go func() {
		h.err = s.client.Do(ctx, s.slotKey(slot), func(_ context.Context, l *lock.Lease) error {
			s.mu.Lock()
			h.lease = l
			delete(s.foreign, slot)
			s.mu.Unlock()
			// The taker has to ask again for what it loses while it has too little, and may
			// ask again for what a caller has lost whose function goes on.
			defer context.AfterFunc(l.Context(), func() {
				h.lost.Store(true)
				s.notify()
			})()
			results <- h
			<-h.leave
			return nil
		}, opts...)
		if h.lease == nil {
			results <- h
			return
		}
		s.forget(h)
		close(h.over)
	}()
}

// forget notes that this process does not have h's slot any more.
func (s *Semaphore) forget(h *holding) {
	s.mu.Lock()
	if s.slots[h.slot] == h { // one that was lost may have been asked for again
		s.slots[h.slot] = nil
	}
	s.mu.Unlock()
	s.notify()
}

// notify has the taker look again.
func (s *Semaphore) notify() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// giveBack releases hs, and returns the loss of the first that was lost.
func giveBack(hs []*holding) (lost *lock.LostError) {
	for _, h := range hs {
		close(h.leave)
	}
	for _, h := range hs {
		<-h.over
		if lost == nil {
			errors.As(h.err, &lost)
		}
	}
	return lost
}

// join is fn's error with a loss, if there was one, told once.
func (s *Semaphore) join(op string, err error, lost *lock.LostError) error {
	switch {
	case lost == nil || err != nil && errors.Is(err, lost):
		return err
	case err == nil:
		return s.fail(op, lost)
	}
	return s.fail(op, fmt.Errorf("%w; fn: %w", lost, err))
}
