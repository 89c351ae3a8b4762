package semaphore

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/seed-215fdefa/lock"
)

// caller is a Do that waits for permits.
type caller struct {
	weight int
	done   chan struct{} // closed when one of the following is set
	holds  []*holding
	err    error
}

// await stands in line for permits, among the callers of this process.
func (s *Semaphore) await(ctx context.Context, weight int) ([]*holding, error) {
	c := &caller{weight: weight, done: make(chan struct{})}
	s.enter(c)
	var over <-chan time.Time
	if s.wait >= 0 {
		t := time.NewTimer(s.wait)
		defer t.Stop()
		over = t.C
	}
	select {
	case <-c.done:
	case <-ctx.Done():
	case <-over:
	}
	seen := s.leave(c)
	switch {
	case c.err != nil:
		return nil, c.err
	case ctx.Err() != nil:
		_ = giveBack(c.holds) // it may have got them meanwhile
		if seen {
			return nil, s.heldError(withCause(ctx))
		}
		return nil, withCause(ctx)
	case c.holds != nil:
		return c.holds, nil
	case seen:
		return nil, s.heldError(fmt.Errorf("the wait of %v is over", s.wait))
	}
	return nil, fmt.Errorf("%w: no answer within %v", lock.ErrUnavailable, s.wait)
}

// withCause is the error of a ctx that has ended, with its cause if that is another.
func withCause(ctx context.Context) error {
	err := ctx.Err()
	if cause := context.Cause(ctx); !errors.Is(err, cause) {
		err = fmt.Errorf("%w: %w", err, cause)
	}
	return err
}

// heldError says who has permits, as far as that is known without asking.
func (s *Semaphore) heldError(why error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	err := &lock.HeldError{Record: lock.Record{Key: s.key}, Err: why}
	r := &err.Record
	for slot, h := range s.slots {
		holder, known := s.foreign[slot]
		if h != nil && h.lease != nil {
			holder, known = lock.Holder{Owner: h.lease.Owner(), Token: h.lease.Token(), Held: -1, ExpiresIn: -1}, true
			err.SameClient = true
		}
		if known {
			r.HolderCount++
			r.Holders = append(r.Holders, holder)
		}
	}
	r.Holders = r.Holders[:min(len(r.Holders), lock.MaxRecord)]
	return err
}

// enter puts c at the end of the callers, and has somebody take permits for them.
func (s *Semaphore) enter(c *caller) {
	s.mu.Lock()
	s.callers = append(s.callers, c)
	if !s.taking {
		s.taking = true
		go s.takeTurns()
	}
	s.mu.Unlock()
	s.notify()
}

// leave takes c out of the callers, if it is there still, and reports whether permits were
// seen taken. The last one ends the turn.
func (s *Semaphore) leave(c *caller) (seen bool) {
	s.mu.Lock()
	seen = s.held
	if i := slices.Index(s.callers, c); i >= 0 {
		s.callers = slices.Delete(s.callers, i, i+1)
		if len(s.callers) == 0 {
			s.stop()
		}
	}
	s.mu.Unlock()
	s.notify()
	return seen
}

// failAll ends all waits with err.
func (s *Semaphore) failAll(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range s.callers {
		c.err = err
		close(c.done)
	}
	s.callers = nil
}

// nextTurn returns the ctx of a turn, or nil if nobody waits: then the taker has ended.
func (s *Semaphore) nextTurn() context.Context {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stop()
	if len(s.callers) == 0 {
		s.taking, s.held = false, false
		return nil
	}
	var ctx context.Context
	ctx, s.stop = context.WithCancel(context.Background())
	return ctx
}

// takeTurns takes permits for the callers, as long as there are any.
func (s *Semaphore) takeTurns() {
	for ctx := s.nextTurn(); ctx != nil; ctx = s.nextTurn() {
		// The end of ctx says that nobody waits, which is no error.
		if err := s.turn(ctx); err != nil && ctx.Err() == nil {
			s.failAll(err)
		}
	}
}
