package lock

import (
	"context"
	"fmt"
)

// Client takes locks at a store. Make one with [New] for each store, and keep it: it
// renews all its leases from one timer. It is safe for concurrent use.
//
// All errors of its methods for a key are an *Error around the reason, but for what the
// function of Do returns. Those reasons are, for all methods that take a lock: ErrInvalid
// or ErrUnsupported before anything was sent; ErrDeadlock; ErrClosed; ErrHeld; ctx's
// error, which is ErrHeld as well if the key was seen held; or the store's. After an error
// whose outcome is unknown, such as a timeout, the Client undoes in the background what
// the store may have granted.
type Client struct {
	caps   Capabilities
	id     string // what the owners of its leases begin with
	cfg    config
	err    error
	engine engine
}

// New returns a Client of l, with opts as the defaults of its calls. An option that is
// not valid, WithShared among them, is reported by Err and by every call.
func New(l Locker, opts ...Option) *Client {
	c := &Client{cfg: defaults()}
	if l == nil {
		c.err = fmt.Errorf("%w: Locker is nil", ErrInvalid)
		return c
	}
	c.caps = l.Capabilities()
	cfg, err := c.cfg.with(opts, c.caps)
	if err == nil {
		err = cfg.check(c.caps)
	}
	if err == nil && cfg.shared {
		err = fmt.Errorf("%w: WithShared given to New: a lock is shared by call", ErrInvalid)
	}
	c.cfg, c.err = *cfg, err
	c.cfg.given = 0
	c.id = newID()
	c.engine.init(l)
	return c
}

// Err returns what is wrong with New's arguments, or nil.
func (c *Client) Err() error {
	if c == nil || c.err == nil && c.engine.store == nil {
		return fmt.Errorf("%w: Client is nil or was not made by New", ErrInvalid)
	}
	return c.err
}

// Do runs fn while it holds key, which it waits for as long as [WithWait] and ctx allow.
//
// fn's ctx is a child of ctx and of the lease: it ends, with the *LostError as its cause,
// before the store can give the lock to anybody else. fn should stop then, and should
// have the resource check Lease.Token. Do always waits for fn, then releases, also if fn
// panics or calls runtime.Goexit, and also if ctx has ended.
//
// It returns what fn returns, unwrapped. If the lock was lost before fn returned, the loss
// is joined to it, as an *Error with a *LostError, also if fn returned nil: the work was
// not protected to its end. If the lock was held to the end and the release merely failed,
// that is no error, since the work is done: an [Observer] sees it, the Client goes on
// trying, and at worst others wait for the TTL.
//
// If ctx comes from the fn of a Do on the same key and Client, that waits for this call,
// and so the result is ErrDeadlock at once; see [WithReentrant].
func (c *Client) Do(ctx context.Context, key string, fn func(context.Context, *Lease) error, opts ...Option) error {
	return c.do(ctx, opDo, key, fn, opts)
}

// TryDo is Do without waiting: it is ErrHeld at once if somebody else has key. It waits
// for the store's answer for a TTL at most, since a later grant would be over; the error
// is context.DeadlineExceeded then.
func (c *Client) TryDo(ctx context.Context, key string, fn func(context.Context, *Lease) error, opts ...Option) error {
	return c.do(ctx, opTryDo, key, fn, opts)
}

// Lock takes key, waiting as long as [WithWait] and ctx allow. The lease does not end
// with ctx; it must be released, and is renewed until then. Prefer Do, which does so.
func (c *Client) Lock(ctx context.Context, key string, opts ...Option) (*Lease, error) {
	return c.lock(ctx, opLock, key, opts)
}

// TryLock is Lock without waiting: it is ErrHeld at once if somebody else has key. It
// waits for the store's answer for a TTL at most, since a later grant would be over; the
// error is context.DeadlineExceeded then.
func (c *Client) TryLock(ctx context.Context, key string, opts ...Option) (*Lease, error) {
	return c.lock(ctx, opTryLock, key, opts)
}

func (c *Client) lock(ctx context.Context, op operation, key string, opts []Option) (*Lease, error) {
	cfg, err := c.config(ctx, op, key, opts)
	if err != nil {
		return nil, op.fail(key, err)
	}
	k := new(call).init(ctx, c, op, key, cfg)
	if _, err := k.outer(fnContextOf(ctx)); err != nil {
		return nil, k.failed(nil, err)
	}
	k.cctx, k.cancel = context.WithCancelCause(ctx)
	l, err := k.acquire(new(Lease))
	if err != nil {
		return nil, err
	}
	k.leave()
	return l, nil
}

// config is the configuration of a call, once its arguments have been checked.
func (c *Client) config(ctx context.Context, op operation, key string, opts []Option) (*config, error) {
	if err := c.usable(ctx); err != nil {
		return nil, err
	}
	if err := CheckKey(key); err != nil {
		return nil, err
	}
	cfg, err := c.cfg.with(opts, c.caps)
	if err != nil {
		return nil, err
	}
	return cfg, cfg.fits(op)
}

func (c *Client) usable(ctx context.Context) error {
	if err := c.Err(); err != nil {
		return err
	}
	if ctx == nil {
		return fmt.Errorf("%w: ctx is nil", ErrInvalid)
	}
	return nil
}

func (k *call) init(ctx context.Context, c *Client, op operation, key string, cfg *config) *call {
	k.c, k.ctx, k.op, k.key, k.cfg = c, ctx, op, key, cfg
	k.wait = !op.try() && cfg.wait != 0
	switch {
	case !k.wait:
		k.limit = cfg.ttl
	case cfg.wait > 0:
		k.limit = cfg.wait
	}
	return k
}

// outer decides about a lease of k's key that its ctx carries: see Lease.nested.
func (k *call) outer(c *fnContext) (*Lease, error) {
	l := c.holding(&k.c.engine, k.key)
	if l == nil {
		return nil, nil
	}
	return l.nested(k.op, k.cfg)
}
