package lock

import (
	"context"
	"errors"
	"fmt"
)

// Lead makes its caller a candidate for key. It stands in line for key, runs fn as the leader
// while it holds key, and stands in line again after a loss, until fn resigns or ctx ends.
//
// fn's ctx ends with ctx and with the lease, as that of Do's function does. After a loss Lead
// waits for fn to return, and only then stands in line again: fn never runs twice at once.
// Leadership is never given up while fn runs, even when ctx has ended: Lead releases key once
// fn has returned. fn should return soon, since nobody can lead until then, or until the TTL
// of a process that died is over.
//
// fn resigns by returning while it is in office: Lead releases key and returns fn's error as
// it is. After a loss it does not matter what fn returns, since the error of a call that the
// loss has canceled need not say so: Lead stands in line again. To stop then, cancel ctx. Each
// term runs fn anew; its Lease.Token is the number of the term, which rises.
//
// A candidacy does not begin while the store is in trouble, but it outlives it. If the store
// fails before it has answered once, the error is ErrUnavailable. After that Lead asks again,
// with the pauses of [WithBackoff], for as long as it takes. ErrInvalid, ErrUnsupported,
// ErrDeadlock, ErrClosed and the end of ctx end it at once; the error wraps them. An
// [Observer] sees every term, and every failure between them.
//
// [Client.Watch] shows the others who leads. [WithMetadata] tells them where: set it to the
// address of this process.
func (c *Client) Lead(ctx context.Context, key string, fn func(context.Context, *Lease) error, opts ...Option) error {
	cfg, err := c.config(ctx, opLead, key, opts)
	if err == nil && fn == nil {
		err = fmt.Errorf("%w: fn is nil", ErrInvalid)
	}
	if err != nil {
		return opLead.fail(key, err)
	}
	answered := false // by the store, ever
	for failures := 0; ; failures++ {
		d := new(doCall)
		d.init(ctx, c, opLead, key, cfg)
		led, lost, err := d.serve(fn)
		answered = answered || led || d.lease.Token() != 0 || d.seen.Load() != nil
		switch {
		case led && lost == nil:
			return err
		case led:
			failures = 0
		case errors.Is(err, ctx.Err()) || final(err) || !answered && ctx.Err() == nil:
			return err
		}
		c.engine.sleep(ctx, cfg.pause(failures, cfg.ttl)) // if that ends it, the next try says why
	}
}

// serve stands in line and runs fn for one term, if it comes to that. Without a term err is
// the call's, else fn's.
func (d *doCall) serve(fn func(context.Context, *Lease) error) (led bool, lost, err error) {
	if _, err := d.outer(); err != nil {
		return false, nil, d.failed(nil, err)
	}
	if err := d.take(); err != nil {
		return false, nil, err
	}
	lost, err = d.run(fn)
	return true, lost, err
}
