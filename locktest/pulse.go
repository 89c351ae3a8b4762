package locktest

import (
	"context"
	"fmt"
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

// trial is a run of a check whose failure may not count.
type trial struct {
	mu       sync.Mutex // guards failures
	failures []string
}

// trialEnded is what FailNow panics with in a trial.
type trialEnded struct{}

func (t *trial) add(failure string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.failures = append(t.failures, failure)
}

// run runs check until it ends, or fails.
func (t *trial) run(e *env, check func(e *env)) {
	sentence := e.sentence
	defer func() {
		if e.sentence != sentence { // check has failed by another
			e.sentence = sentence
		}
		if p := recover(); p != nil && p != (trialEnded{}) {
			panic(p)
		}
	}()
	e.trial.Store(t)
	check(e)
}

// FailNow ends the case, or the trial that it is in.
func (e *env) FailNow() {
	if e.trial.Load() != nil {
		panic(trialEnded{})
	}
	e.reporter.FailNow()
}

// unlessLate is a check of who stands in line, and where. One whose heartbeat is late loses its place by
// the contract, so a failure counts only if machine and store were not late meanwhile.
func unlessLate(check func(e *env)) func(e *env) {
	return func(e *env) {
		const most = 5
		late := e.heartbeat(e.long())/8 + e.tick() + e.pace
		p := e.pulse()
		for range most {
			p.stall()
			t := new(trial)
			t.run(e, check)
			t.mu.Lock()
			failures := t.failures
			t.mu.Unlock()
			switch {
			case len(failures) == 0:
				e.trial.Store(nil)
				return
			case p.stall() <= late:
				e.trial.Store(nil)
				for _, f := range failures {
					e.Errorf("%s", f)
				}
				e.FailNow()
			}
			time.Sleep(e.ttl / 4) // for what the trial left running, and may report
		}
		e.trial.Store(nil)
		e.skip(fmt.Sprintf("%d times this machine or the store was more than %v late, and places may have been lost", most, late))
	}
}
