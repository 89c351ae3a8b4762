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

// doCall is a Do or TryDo: all that it needs in one allocation.
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
	outer := fnContextOf(ctx)
	l, err := k.outer(outer)
	if err != nil {
		return k.failed(nil, err)
	}
	if l != nil {
		return l.runNested(ctx, op, fn)
	}
	k.cctx, k.cancel = context.WithCancelCause(ctx)
	l, err = k.acquire(&d.lease)
	if err != nil {
		return err
	}
	d.fn = fnContext{Context: k.cctx, lease: l, outer: outer}
	return d.run(fn)
}

// run runs fn and releases, also if fn panics or ends its goroutine: without recover, so
// that a panic keeps its stack.
func (d *doCall) run(fn func(context.Context, *Lease) error) (err error) {
	defer func() {
		lost := d.end()
		err = d.op.join(d.key, err, lost)
	}()
	return fn(&d.fn, d.fn.lease)
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
	// The caller's values but not its end: a lock must be released all the more when the
	// work was canceled.
	d.after.Context = d.ctx
	ctx, cancel := context.WithCancel(&d.after)
	defer cancel()
	err := d.fn.lease.finish(parting{ctx, cancel, min(doBound, d.cfg.ttl), d.ctx})
	d.leave()
	if errors.Is(err, ErrLost) {
		return err
	}
	return nil
}
