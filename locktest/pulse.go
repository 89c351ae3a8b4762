package locktest

import (
	"context"
	"sync"
	"time"
)

// pulse tells how late this process and the store are: renewals and heartbeats are as late.
// In fake time nothing is.
type pulse struct {
	mu    sync.Mutex // guards the rest
	begun time.Time  // the beat that goes on, or zero
	worst time.Duration
}

// pulse begins one, which ends with the case.
func (e *env) pulse() *pulse {
	p := new(pulse)
	if e.fake {
		return p
	}
	l, key := e.open(), e.key()
	p.begun = time.Now()
	e.start(func() {
		for e.ctx.Err() == nil {
			time.Sleep(e.tick())
			ctx, cancel := context.WithTimeout(e.ctx, e.patience())
			_, _ = l.Inspect(ctx, key)
			cancel()
			p.beat()
		}
	})
	return p
}

func (p *pulse) beat() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.worst = max(p.worst, time.Since(p.begun))
	p.begun = time.Now()
}

// stall is how long the longest beat took since stall was called last.
func (p *pulse) stall() time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.begun.IsZero() {
		return 0
	}
	d := max(p.worst, time.Since(p.begun))
	p.worst = 0
	return d
}
