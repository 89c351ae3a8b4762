package lock

import (
	"context"
	"fmt"
)

// Client takes locks at a store. Make one with [New] for each store, and keep it: it renews
// all its leases from one timer. It is safe for concurrent use.
//
// Every error for a key is an *Error, except that Do, TryDo, DoAll and Lead return their
// function's error as it is. A call that does not get the lock returns an *Error around one of
// these:
//
//   - ErrInvalid, ErrUnsupported or ErrClosed: before anything was sent.
//   - ErrDeadlock: before anything was sent, or after a wait ([WithDeadlockDetection]).
//   - ErrHeld: the store has shown that somebody else holds the key. The call did not wait,
//     or [WithWait] has ended its wait.
//   - ErrUnavailable: the store has failed, or has not answered in time.
//   - ctx's error: ctx has ended. It is ErrHeld as well if the key was seen held.
//   - ErrLost: without a wait, the grant was over when it arrived.
//
// If the outcome is unknown, as after a timeout, the Client undoes in the background what
// the store may have granted.
type Client struct {
	caps   Capabilities
	id     string // what the owners of its leases begin with
	cfg    config
	err    error
	engine engine

	detector Admin // for WithDeadlockDetection; nil if the store shows nobody who waits
}

// New returns a Client of l; opts are the defaults of its calls. Err and every call report an
// option that is not valid. WithShared is not valid here.
func New(l Locker, opts ...Option) *Client {
	c := &Client{cfg: defaults().with(opts)}
	c.cfg.given = 0
	if l == nil {
		c.err = fmt.Errorf("%w: Locker is nil", ErrInvalid)
		return c
	}
	c.caps = l.Capabilities()
	if c.caps.FIFO {
		c.detector, _ = As[Admin](l)
	}
	c.err = c.check(&c.cfg)
	if c.err == nil && c.cfg.shared {
		c.err = fmt.Errorf("%w: WithShared given to New: give it to a call", ErrInvalid)
	}
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

// Do waits for key as long as [WithWait] and ctx allow, runs fn while it holds key, and
// releases it: also if fn panics or calls runtime.Goexit, and also if ctx has ended.
//
// fn's ctx ends with ctx and with the lease, whichever is first. When a TTL runs out, it ends
// before the store can give the lock to anybody else. When an operator forces the lock, or
// the store loses its record, it ends when the Client hears of it: at once if the store
// declares EarlyLoss, else at the next renewal. fn should stop then; its resource should
// check Lease.Token, which protects it in any case. Do always waits for fn.
//
// Do returns fn's error as it is. If the lock was lost before fn returned, the work was not
// protected to its end, and the error is an *Error that wraps the *LostError and fn's error;
// if fn's error wraps that loss already, it is returned as it is. A release that fails is no
// error, since the work is done: an [Observer] sees it, the Client goes on releasing, and at
// worst others wait for the TTL. See [Refused] for whether fn has run.
//
// A ctx that comes from the fn of a Do on the same key and Client would make this Do wait for
// itself: it returns ErrDeadlock at once, unless [WithReentrant] says otherwise. With the
// ctx that was outside of that fn, Do cannot know, and waits; the *HeldError and the
// EventContended then say that this very Client holds the key.
//
// A nested call, whose ctx comes from the fn of a Do on another key, must not wait for one who
// waits for that key in turn. If it would close such a cycle among the leases and the waits of
// this Client, it returns ErrDeadlock at once, before anything is sent: a *DeadlockError that
// names the cycle. The others in it go on waiting. [WithDeadlockDetection] ends cycles through
// other Clients, or through a writer ahead in line, and [FindDeadlocks] shows them.
func (c *Client) Do(ctx context.Context, key string, fn func(context.Context, *Lease) error, opts ...Option) error {
	return c.do(ctx, opDo, key, fn, opts)
}

// TryDo is Do without waiting: it returns ErrHeld at once if somebody else holds key. It
// waits for the store's answer for a TTL at most, since a later grant would be over, and
// returns ErrUnavailable then.
func (c *Client) TryDo(ctx context.Context, key string, fn func(context.Context, *Lease) error, opts ...Option) error {
	return c.do(ctx, opTryDo, key, fn, opts)
}

// Lock takes key, waiting as long as [WithWait] and ctx allow. The lease does not end with
// ctx: it is renewed until you release it. Prefer Do, which cannot forget to.
func (c *Client) Lock(ctx context.Context, key string, opts ...Option) (*Lease, error) {
	return c.lock(ctx, opLock, key, opts)
}

// TryLock is Lock without waiting, as TryDo is Do.
func (c *Client) TryLock(ctx context.Context, key string, opts ...Option) (*Lease, error) {
	return c.lock(ctx, opTryLock, key, opts)
}

func (c *Client) lock(ctx context.Context, op operation, key string, opts []Option) (*Lease, error) {
	cfg, err := c.config(ctx, op, key, opts)
	if err != nil {
		return nil, op.fail(key, err)
	}
	k := new(call).init(ctx, c, op, key, cfg)
	if _, err := k.outer(); err != nil {
		return nil, k.failed(nil, err)
	}
	k.cctx, k.cancel = context.WithCancelCause(ctx)
	l, err := k.acquire(new(Lease))
	if err != nil {
		return nil, err
	}
	k.leave()
	k.cancel(nil)
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
	cfg, err := c.with(opts)
	if err != nil {
		return nil, err
	}
	return cfg, cfg.fits(op)
}

// with is c's configuration changed by opts, and checked; c's own if there are none.
func (c *Client) with(opts []Option) (*config, error) {
	if len(opts) == 0 {
		return &c.cfg, nil
	}
	cfg := c.cfg.with(opts)
	return &cfg, c.check(&cfg)
}

// check returns an error if cfg breaks a rule, or asks for what the store does not have.
func (c *Client) check(cfg *config) error {
	if err := cfg.check(c.caps); err != nil {
		return err
	}
	if cfg.detect > 0 && c.detector == nil {
		return unsupported("deadlock detection: it needs FIFO and an Admin", c.caps)
	}
	return nil
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
	return k
}

// outer decides about a lease of k's key that its ctx carries: see Lease.nested.
func (k *call) outer() (*Lease, error) {
	k.under = fnContextOf(k.ctx)
	l := k.under.holding(&k.c.engine, k.key)
	if l == nil {
		return nil, nil
	}
	return l.nested(k.op, k.cfg)
}
