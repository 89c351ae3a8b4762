package lock

import (
	"context"
	"fmt"
	"slices"
	"strings"
)

// closing is how far Close has come. It is guarded by the engine's mutex.
type closing struct {
	phase   phase
	done    chan struct{} // closed when stopped; made by the first Close
	waiting int           // calls of Close
	left    []*Lease      // what was not released
	err     error         // what Close returns, once stopped
}

type phase uint8

const (
	open      phase = iota
	draining        // no new calls; those that run are waited for, their leases renewed
	releasing       // all leases are being released
	stopped         // nothing more is done
)

// leave notes a lease that cannot be released.
func (c *closing) leave(l *Lease) {
	if c.phase != open {
		c.left = append(c.left, l)
	}
}

// Close ends the Client's work. New calls get ErrClosed, and so do those that wait; the
// contexts of all leases end, with ErrClosed as their cause. Close waits for the functions
// of Do, keeping their leases renewed. Then it releases all leases, and returns when the
// store has confirmed that, and all releases that were under way or had failed before. A key
// that is kept ([WithMinHold]) it leaves to its TTL.
//
// If ctx ends before, Close returns an error that wraps ctx's. If the store refuses a
// release for good, as when its client was closed first, Close does not wait, and returns an
// error that wraps the store's. Either names the keys that were left to their TTL. Nothing
// runs in the background any more then.
//
// Close may be called again, and by several goroutines: it gives up when the last of them
// does. Afterwards no goroutine of the Client is left, except a call to a store that ignores its
// ctx and an Observer that is still running, which may have called Close. The Locker stays open,
// since other Clients may share it. The function of a Do must not call Close: Close would wait
// for it.
func (c *Client) Close(ctx context.Context) error {
	if err := c.usable(ctx); err != nil {
		return err
	}
	e := &c.engine
	var s section
	s.enter(e)
	if e.closing.phase == open {
		s.close()
	}
	e.closing.waiting++
	done := e.closing.done
	s.leave()

	select {
	case <-done:
	case <-ctx.Done():
		err := ctx.Err()
		s.enter(e)
		e.closing.waiting--
		last := e.closing.waiting == 0
		if last && e.closing.phase != stopped {
			s.halt(err)
		}
		over := e.closing.phase == stopped
		s.leave()
		if !over {
			return err
		}
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.closing.err
}

func (e *engine) closed() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.closing.phase != open
}

// close refuses new work, and ends waits and leases.
func (s *section) close() {
	e := s.e
	e.closing.phase, e.closing.done = draining, make(chan struct{})
	s.note(chore{cancel: e.shut})
	for k := range e.calls {
		s.note(chore{ends: [2]context.CancelCauseFunc{k.cancel}, cause: ErrClosed})
	}
	for _, l := range slices.Clone(e.heap) {
		switch {
		case l.state == held:
			s.end(l, ErrClosed)
		case s.keeps(l):
			s.leaveToTTL(l)
		}
	}
}

// settle takes closing as far as it can come.
func (s *section) settle() {
	e := s.e
	if e.closing.phase == draining && len(e.calls) == 0 {
		e.closing.phase = releasing
		for _, l := range slices.Clone(e.heap) {
			if l.state == held {
				s.end(l, ErrClosed)
				s.release(l)
			} else if l.failure != nil {
				s.to(l, ending, s.now) // at once, not after its pause
			}
		}
	}
	if e.closing.phase == releasing && len(e.heap) == 0 {
		s.halt(nil)
	}
}

// halt stops all that runs in the background. why is the error of the ctx that ended it, or
// nil if nothing is left to do.
func (s *section) halt(why error) {
	e := s.e
	e.closing.phase = stopped
	var cause error
	for _, l := range slices.Clone(e.heap) {
		e.closing.leave(l)
		if l.failure != nil {
			cause = l.failure
		}
		if l.op != nil {
			s.giveUp(l)
		}
		if l.state == held && l.endFn != nil {
			s.to(l, held, never) // out of the heap; its Do, which still runs, releases it
			continue
		}
		if l.state == held {
			s.release(l)
		}
		if l.state == gone {
			continue // its minimum hold is not over
		}
		if l.untold() {
			l.failure = why
			s.tellEnd(caller{context.Background(), why}, l, why)
		}
		s.to(l, ending, never)
	}
	e.closing.err = e.closing.report(why, cause)
	close(e.closing.done)
	if e.timer != nil {
		e.timer.Stop()
	}
	s.note(chore{cancel: func() { e.stop(ErrClosed) }})
}

// report is what Close returns.
func (c *closing) report(why, cause error) error {
	if len(c.left) == 0 && why == nil {
		return nil
	}
	if cause == nil && len(c.left) > 0 && c.left[0].failure != why { //nolint:errorlint // this very one
		cause = c.left[0].failure
	}
	err := &closeError{why: why, cause: storeError(context.Background(), cause)}
	for _, l := range c.left[:min(3, len(c.left))] {
		err.keys = append(err.keys, fmt.Sprintf("%q", l.Key()))
	}
	err.more = len(c.left) - len(err.keys)
	c.left = nil
	return err
}

// closeError says what Close has left, and why.
type closeError struct {
	why, cause error // the end of its ctx, and the store's last error; either may be nil
	keys       []string
	more       int
}

func (e *closeError) Error() string {
	what := "calls are still running"
	switch n := len(e.keys) + e.more; {
	case n == 1:
		what = "1 lock is left to its TTL: " + e.keys[0]
	case n > 1:
		what = fmt.Sprintf("%d locks are left to their TTL: %s", n, strings.Join(e.keys, ", "))
	}
	if e.more > 0 {
		what += fmt.Sprintf(" and %d more", e.more)
	}
	if e.why != nil {
		what = e.why.Error() + ": " + what
	}
	if e.cause != nil {
		what += ": " + bare(e.cause)
	}
	return "lock: close: " + what
}

func (e *closeError) Unwrap() []error { return []error{e.why, e.cause} }
