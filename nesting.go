package lock

import (
	"context"
	"errors"
	"fmt"
	"maps"
)

// fnContext is the ctx of Do's function. It ends with the caller's and with the lease. It
// carries the lease, by which a nested Do on the same key is recognized. That of DoAll is a
// chain of them, one for each lease.
type fnContext struct {
	context.Context
	lease *Lease
	outer *fnContext
}

type fnKey struct{}

// Value finds c itself under its private key.
func (c *fnContext) Value(key any) any {
	if _, ok := key.(fnKey); ok {
		return c
	}
	return c.Context.Value(key)
}

// fnContextOf is the innermost one around ctx, which leads to the others; or nil.
func fnContextOf(ctx context.Context) *fnContext {
	c, _ := ctx.Value(fnKey{}).(*fnContext)
	return c
}

// holding is the lease of key at this Client that c carries, or nil.
func (c *fnContext) holding(e *engine, key string) *Lease {
	for ; c != nil; c = c.outer {
		if c.lease.e == e && c.lease.grant.Key == key {
			return c.lease
		}
	}
	return nil
}

// nested decides what becomes of a call on l's key whose ctx carries l. It returns the lease to
// run under, or an error. Both are nil if l has been released: the call is like any other.
func (l *Lease) nested(op operation, cfg *config) (*Lease, error) {
	err := l.Err()
	switch {
	case errors.Is(err, ErrReleased):
		return nil, nil
	case !op.nests() || !cfg.reentrant:
		if err != nil {
			return nil, nil // it holds nothing to wait for any more
		}
		return nil, fmt.Errorf("%w: ctx holds the key already", ErrDeadlock)
	case err != nil:
		return nil, err
	case l.grant.Shared && !cfg.shared:
		return nil, fmt.Errorf("%w: ctx holds the key in shared mode, and an exclusive lock would wait for it", ErrDeadlock)
	}
	return l, cfg.nests(l.cfg)
}

// nests returns an error if the call gave an option that the lease which it is to run under,
// an outer one with options of its own, does not have.
func (c *config) nests(outer *config) error {
	another := func(what string, inner, outer any) error {
		return fmt.Errorf("%w: %s %v: the outer lease has %v", ErrInvalid, what, inner, outer)
	}
	switch g := c.given; {
	case g.has(givenTTL) && c.ttl != outer.ttl:
		return another("TTL", c.ttl, outer.ttl)
	case g.has(givenDrift) && c.drift != outer.driftOf(outer.ttl):
		return another("drift", c.drift, outer.driftOf(outer.ttl))
	case g.has(givenMinHold) && c.minHold != outer.minHold:
		return another("WithMinHold", c.minHold, outer.minHold)
	case g.has(givenRenewal) && c.renewal != outer.renewal:
		return another("WithRenewal", c.renewal, outer.renewal)
	case g.has(givenMetadata) && !maps.Equal(c.metadata, outer.metadata):
		return another("WithMetadata", c.metadata, outer.metadata)
	case g.has(givenBackoff) && (c.backoffMin != outer.backoffMin || c.backoffMax != outer.backoffMax):
		return another("WithBackoff", c.backoffMin, outer.backoffMin)
	case g.has(givenObserver):
		return fmt.Errorf("%w: WithObserver: a call that runs under an outer lease has no events of its own", ErrInvalid)
	}
	return nil
}

// runNested runs fn under the lease of an outer Do, which alone releases it.
func (l *Lease) runNested(ctx context.Context, op operation, fn func(context.Context, *Lease) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	// ctx may have been detached from the function that it came from, but what runs
	// under the lease must end with it.
	own := l.Context()
	stop := context.AfterFunc(own, func() { cancel(context.Cause(own)) })
	defer stop()
	err := fn(ctx, l)
	var lost *LostError
	if errors.As(l.Err(), &lost) {
		return op.join(l.grant.Key, err, lost)
	}
	return err
}
