package lock

import (
	"context"
	"sync"
	"time"
)

// boundContext is a context.WithDeadline that makes its timer and channel only when
// somebody asks for them: the embedded store never does, so that a Do on it pays for
// neither.
type boundContext struct {
	parent   context.Context
	deadline time.Time
	detached bool // the parent gives its values only; its end and deadline do not count

	mu     sync.Mutex // guards the rest
	full   context.Context
	cancel context.CancelFunc
}

// Deadline is the earlier of the bound and the parent's.
func (b *boundContext) Deadline() (time.Time, bool) {
	if !b.detached {
		if d, ok := b.parent.Deadline(); ok && d.Before(b.deadline) {
			return d, true
		}
	}
	return b.deadline, true
}

func (b *boundContext) Done() <-chan struct{} { return b.make().Done() }

func (b *boundContext) Err() error {
	b.mu.Lock()
	full := b.full
	b.mu.Unlock()
	if full == nil && (b.detached || b.parent.Err() == nil) && time.Now().Before(b.deadline) {
		return nil
	}
	// It has ended, or has a timer that knows: what Err says must agree with Done.
	return b.make().Err()
}

// Value must lead package context, which asks for a private key, to a context whose end
// is this one's: to full once there is one, and never past a detachment.
func (b *boundContext) Value(key any) any {
	b.mu.Lock()
	full := b.full
	b.mu.Unlock()
	if full == nil {
		full = b.parent
		if b.detached {
			full = context.WithoutCancel(full)
		}
	}
	return full.Value(key)
}

func (b *boundContext) make() context.Context {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.full == nil {
		p := b.parent
		if b.detached {
			p = context.WithoutCancel(p)
		}
		b.full, b.cancel = context.WithDeadline(p, b.deadline)
	}
	return b.full
}

// end cancels it. A store that has kept it and asks later gets a canceled one, without a
// timer.
func (b *boundContext) end() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.full == nil {
		b.full = canceled
		return
	}
	if b.cancel != nil {
		b.cancel()
	}
}

var canceled = func() context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return ctx
}()
