package locktest

import (
	"context"
	"errors"
	"fmt"
	"time"

	lock "github.com/seed-215fdefa/lock"
)

// brokenLeads are Clients whose Lead has one thing wrong.
func brokenLeads() []brokenClient {
	// leadBy is a Lead out of Lock and Release: in gets what is between, and reports whether to
	// stand in line again.
	leadBy := func(in func(ctx context.Context, l lease, fn doFunc) (again bool, err error)) func(c *fakeClient) {
		return func(c *fakeClient) {
			take := c.client.Lock
			c.lead = func(ctx context.Context, key string, fn doFunc, opts ...lock.Option) error {
				for {
					l, err := take(ctx, key, opts...)
					if err != nil {
						return err
					}
					if again, err := in(ctx, l, fn); !again {
						return err
					}
				}
			}
		}
	}
	// office is the ctx of a function.
	office := func(ctx context.Context, l lease) context.Context {
		ctx, cancel := context.WithCancelCause(ctx)
		context.AfterFunc(l.Context(), func() { cancel(context.Cause(l.Context())) })
		return ctx
	}
	// changed is a Lead whose result is changed.
	changed := func(change func(error) error) func(c *fakeClient) {
		return func(c *fakeClient) {
			lead := c.lead
			c.lead = func(ctx context.Context, key string, fn doFunc, opts ...lock.Option) error {
				return change(lead(ctx, key, fn, opts...))
			}
		}
	}
	return []brokenClient{
		{what: "Lead releases when ctx ends, and waits for the work after that", caught: in("Lead/KeepsOffice"), client: leadBy(func(ctx context.Context, l lease, fn doFunc) (bool, error) {
			inner := office(ctx, l)
			done := make(chan error, 1)
			go func() { done <- fn(inner, l) }()
			select {
			case err := <-done:
				_ = l.Release(context.WithoutCancel(ctx))
				return false, err
			case <-inner.Done():
			}
			_ = l.Release(context.WithoutCancel(ctx))
			err := <-done
			return ctx.Err() == nil, err
		})},
		{what: "Lead stands in line again while the work of a lost term goes on", caught: in("Lead/AgainAfterALoss"), client: leadBy(func(ctx context.Context, l lease, fn doFunc) (bool, error) {
			inner := office(ctx, l)
			done := make(chan error, 1)
			go func() { done <- fn(inner, l) }()
			select {
			case err := <-done:
				_ = l.Release(context.WithoutCancel(ctx))
				return false, err
			case <-l.Context().Done():
				return true, nil
			}
		})},
		{what: "a loss ends the candidacy", caught: in("Lead/AgainAfterALoss", "Lead/AgainAfterAFreeze", "Lead/Observed"), client: func(c *fakeClient) { c.lead = c.do }},
		{what: "an error after a loss ends the candidacy", caught: in("Lead/AgainAfterALoss"), client: func(c *fakeClient) {
			lead := c.lead
			c.lead = func(ctx context.Context, key string, fn doFunc, opts ...lock.Option) error {
				ctx, cancel := context.WithCancelCause(ctx)
				defer cancel(nil)
				return lead(ctx, key, func(ctx context.Context, l lease) error {
					err := fn(ctx, l)
					if errors.Is(err, errWork) {
						cancel(err)
					}
					return err
				}, opts...)
			}
		}},
		{what: "a term that is resigned from is followed by another", caught: in("Lead/Resigns"), client: func(c *fakeClient) {
			lead := c.lead
			c.lead = func(ctx context.Context, key string, fn doFunc, opts ...lock.Option) error {
				for {
					if err := lead(ctx, key, fn, opts...); err != nil {
						return err
					}
				}
			}
		}},
		{what: "Lead wraps what its function returns", caught: in("Lead/Resigns", "Lead/KeepsOffice"), client: changed(func(err error) error {
			if errors.Is(err, errWork) {
				return fmt.Errorf("lead: %w", err)
			}
			return err
		})},
		{what: "Lead does not wait in line", caught: in("Lead/StandsInLine"), client: func(c *fakeClient) { c.lead = c.tryDo }},
		{what: "Lead asks again whatever the error", caught: in("Lead/Close", "Lead/Invalid", "Lead/Deadlock", "Lead/NotInTrouble"), client: func(c *fakeClient) {
			lead := c.lead
			c.lead = func(ctx context.Context, key string, fn doFunc, opts ...lock.Option) error {
				for {
					err := lead(ctx, key, fn, opts...)
					if err == nil || ctx.Err() != nil || errors.Is(err, errWork) {
						return err
					}
					time.Sleep(time.Second)
				}
			}
		}},
		{what: "Lead's end by ctx is none", caught: in("Lead/EndOfContext"), client: changed(func(err error) error {
			if errors.Is(err, context.Canceled) {
				return nil
			}
			return err
		})},
	}
}
