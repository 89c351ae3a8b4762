package semaphore

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/internal/storekit"
)

// retries are the pauses between requests while the store fails.
var retries = storekit.Backoff{Min: 50 * time.Millisecond, Max: time.Second}

// caller is a Do that waits for permits.
type caller struct {
	weight int
	number int           // which of all that ever came
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
	seen, trouble := s.leave(c)
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
	case seen && trouble != nil:
		return nil, s.heldError(fmt.Errorf("the wait of %v is over: %w", s.wait, trouble))
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
	s.entered++
	c.number = s.entered
	s.callers = append(s.callers, c)
	if !s.taking {
		s.taking = true
		go s.takeTurns()
	}
	s.mu.Unlock()
	s.notify()
}

// leave takes c out of the callers, if it is there still, and reports whether permits were
// seen taken, and with what the store fails. The last one ends the turn.
func (s *Semaphore) leave(c *caller) (seen bool, trouble error) {
	s.mu.Lock()
	seen, trouble = s.held, s.trouble.err
	if i := slices.Index(s.callers, c); i >= 0 {
		s.callers = slices.Delete(s.callers, i, i+1)
		if len(s.callers) == 0 {
			s.stop()
		}
	}
	s.mu.Unlock()
	s.notify()
	return seen, trouble
}

// trouble is how the store has failed since it last answered.
type trouble struct {
	err   error // the last; nil if it has not
	since time.Time
	tries int // pauses made
}

// answered notes that the store works: those who wait now outlive its next trouble.
func (s *Semaphore) answered() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.trouble, s.known = trouble{}, s.entered
}

// endures notes that a request has failed, and reports whether to ask again. If it may not pass,
// or has lasted for as long as patience, it ends all waits, else those of callers to whom the store
// has never answered.
func (s *Semaphore) endures(sent time.Time, err error) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.trouble.err == nil {
		s.trouble.since = sent
	}
	s.trouble.err = err
	patient := errors.Is(err, lock.ErrUnavailable) && time.Since(s.trouble.since) < lock.Patience
	s.callers = slices.DeleteFunc(s.callers, func(c *caller) bool {
		if patient && c.number <= s.known {
			return false
		}
		c.err = err
		close(c.done)
		return true
	})
	return patient
}

// pause returns what ends the pause before the store is asked again.
func (s *Semaphore) pause() <-chan time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.trouble.tries++
	return time.After(retries.Pause(s.trouble.tries - 1))
}

// nextTurn returns the ctx of a turn, or nil if nobody waits: then the taker has ended.
func (s *Semaphore) nextTurn() context.Context {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stop()
	if len(s.callers) == 0 {
		s.taking, s.held, s.trouble = false, false, trouble{}
		return nil
	}
	var ctx context.Context
	ctx, s.stop = context.WithCancel(context.Background())
	return ctx
}

// takeTurns takes permits for the callers, as long as there are any.
func (s *Semaphore) takeTurns() {
	for ctx := s.nextTurn(); ctx != nil; ctx = s.nextTurn() {
		s.turn(ctx)
	}
}
