package lock

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// doBound is how long Do waits for its release: the work is done, and the Client goes on
// with what the store has not confirmed.
const doBound = 5 * time.Second

// doCall is a Do or TryDo, or a term of Lead: all that it needs in one allocation.
type doCall struct {
	call
	lease Lease
	fn    fnContext
	after detached // the ctx of the release
}

// detached is ctx without its end: context.WithoutCancel without an allocation.
type detached struct{ context.Context }

func (*detached) Done() <-chan struct{}            { return nil }
func (*detached) Err() error                       { return nil }
func (*detached) Deadline() (t time.Time, ok bool) { return }

// do is Do and TryDo.
func (c *Client) do(ctx context.Context, op operation, key string, fn func(context.Context, *Lease) error, opts []Option) error {
	cfg, err := c.config(ctx, op, key, opts)
	if err == nil && fn == nil {
		err = fmt.Errorf("%w: fn is nil", ErrInvalid)
	}
	if err != nil {
		return op.fail(key, err)
	}
	d := new(doCall)
	k := d.init(ctx, c, op, key, cfg)
	l, err := k.outer()
	if err != nil {
		return k.failed(nil, err)
	}
	if l != nil {
		return l.runNested(ctx, op, fn)
	}
	if err := d.take(); err != nil {
		return err
	}
	lost, err := d.run(fn)
	return op.join(key, err, lost)
}

// take acquires the lease for fn.
func (d *doCall) take() error {
	d.cctx, d.cancel = context.WithCancelCause(d.ctx)
	l, err := d.acquire(&d.lease)
	if err != nil {
		return err
	}
	d.fn = fnContext{Context: d.cctx, lease: l, outer: d.under}
	return nil
}

// run runs fn and releases, also if fn panics or ends its goroutine: without recover, so
// that a panic keeps its stack. lost is the loss of the lease, nil if there was none.
func (d *doCall) run(fn func(context.Context, *Lease) error) (lost, err error) {
	defer func() { lost = d.end() }()
	return nil, fn(&d.fn, d.fn.lease)
}

// join is fn's error with the loss of its lease, which may be nil: told once, so only if
// fn has not returned it, and on one line.
func (o operation) join(key string, err, lost error) error {
	switch {
	case lost == nil || err != nil && errors.Is(err, lost):
		return err
	case err == nil:
		return o.fail(key, lost)
	}
	return o.fail(key, fmt.Errorf("%w; fn: %w", lost, err))
}

// end releases the lease, and returns the loss if it was lost. A release that the store
// has not confirmed is no error: the lock was held to the end, and the caller would
// repeat finished work.
func (d *doCall) end() error {
	d.leave() // before an Observer hears of the release, who may call Close
	d.after.Context = d.ctx
	ctx, cancel := context.WithCancel(&d.after)
	defer cancel()
	if err := d.fn.lease.finish(d.parting(ctx, cancel)); errors.Is(err, ErrLost) {
		return err
	}
	return nil
}
