package lock

import (
	"context"
	"fmt"
	"slices"
	"time"
)

// closing is how far Close has come. Guarded by the engine's mutex.
type closing struct {
	begun   bool          // no new work
	left    bool          // no calls any more: what is still held is being released
	stopped bool          // nothing more is done
	done    chan struct{} // closed when stopped
	err     error         // why it gave up, if it did
	waiting int           // calls of Close
}

// Close ends the Client's work: new calls get ErrClosed, waiting ones too, and the
// contexts of all leases end with ErrClosed as their cause. It waits for the functions of
// Do, keeping their leases renewed; then it releases what is still held, and waits until
// the store has confirmed that and the undos under way.
//
// If ctx ends before, it returns ctx's error and leaves the rest to the TTL: renewals and
// releases in the background stop. Close may be called again and by several goroutines;
// it gives up when the last of them does. Afterwards no goroutine of the Client is left,
// but for a call to a store that ignores its ctx. The Locker stays open: several Clients
// may share it. Close must not be called by a function of Do, which it would wait for.
func (c *Client) Close(ctx context.Context) error {
	if err := c.usable(ctx); err != nil {
		return err
	}
	e := &c.engine
	var fx effects
	now := e.lock(&fx)
	e.close(&fx)
	e.closing.waiting++
	done := e.closing.done
	e.unlock(now, &fx)

	select {
	case <-done:
	case <-ctx.Done():
		e.giveUp(ctx.Err())
		select {
		case <-done:
		default:
			return ctx.Err()
		}
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.closing.err
}

func (e *engine) closed() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.closing.begun
}

// close refuses new work and ends waits and leases; once.
func (e *engine) close(fx *effects) {
	if e.closing.begun {
		return
	}
	e.closing.begun, e.closing.done = true, make(chan struct{})
	for k := range e.calls {
		fx.add(effect{cause: ErrClosed, ends: [2]context.CancelCauseFunc{k.cancel}})
	}
	for _, l := range e.heap {
		if l.phase == held {
			e.end(l, ErrClosed, fx)
		}
	}
}

// forget ends a call that is over.
func (e *engine) forget(k *call) {
	e.mu.Lock()
	delete(e.calls, k)
	begun := e.closing.begun
	e.mu.Unlock()
	if begun {
		var fx effects
		now := e.lock(&fx)
		e.unlock(now, &fx) // settles
	}
}

// settle takes closing as far as it can come. e.mu is held.
func (e *engine) settle(now time.Duration) {
	if !e.closing.begun || e.closing.stopped || len(e.calls) > 0 {
		return
	}
	if !e.closing.left {
		e.closing.left = true
		for _, l := range slices.Clone(e.heap) {
			if l.phase == held {
				e.leave(l, now)
			}
		}
	}
	if len(e.heap) == 0 {
		e.halt(nil)
	}
}

// giveUp is Close's ctx having ended; the last caller's counts.
func (e *engine) giveUp(err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.closing.waiting--
	if e.closing.waiting == 0 && !e.closing.stopped {
		e.halt(fmt.Errorf("%w: close gave up, and left the rest to the TTL", err))
	}
}

// halt stops all that runs in the background.
func (e *engine) halt(err error) {
	e.closing.stopped, e.closing.err = true, err
	close(e.closing.done)
	if e.timer != nil {
		e.timer.Stop()
	}
	e.stop(ErrClosed) // a context of ours without foreign children: safe under mu
}
