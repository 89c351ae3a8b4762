package service

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"sync"
	"sync/atomic"
	"time"
	"unicode/utf8"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/internal/storekit"
)

var (
	_ lock.Locker  = (*Client)(nil)
	_ lock.Admin   = (*Client)(nil)
	_ lock.Watcher = (*Client)(nil)
)

// Client is a Locker on the service. [Setup] makes one. It is safe for concurrent use.
type Client struct {
	name   string // of the transport
	remote Transport
	err    error // of an option or the address; returned by every call
	doubts storekit.Doubts
	closed context.Context // nil: it was not set up
	close  context.CancelFunc

	learned atomic.Pointer[lock.Capabilities] // what the service has said; nil until Connect
	once    sync.Once                         // guards the setting of caps
	caps    lock.Capabilities                 // what Capabilities returns
}

// Setup makes c ask the service through t, which is called name. Every call returns err if it is not
// nil. It is no method, since a public Locker has all methods of its Client.
func Setup(c *Client, name string, t Transport, err error) {
	c.name, c.remote, c.err = name, t, err
	c.closed, c.close = context.WithCancel(context.Background())
}

// Connect asks the service for its store's capabilities, for Capabilities to return. Call it
// before giving the Locker to lock.New. It may be called again after an error.
func (c *Client) Connect(ctx context.Context) error {
	if err := c.ready(ctx); err != nil {
		return err
	}
	return c.repeat(ctx, func(ctx context.Context) error {
		caps, err := c.remote.Capabilities(ctx)
		if err == nil {
			caps.Store, caps.EarlyLoss = c.name+"+"+caps.Store, false
			c.learned.Store(&caps)
		}
		return err
	})
}

// Capabilities implements [lock.Locker]. If [Client.Connect] has succeeded before the first call
// of Capabilities, they are those of the service's store, without EarlyLoss. Otherwise the
// Locker declares, for good, that shared locks and head starts may be asked for, and promises
// nothing beyond the contract. The service then refuses what its store lacks.
func (c *Client) Capabilities() lock.Capabilities {
	c.once.Do(func() { c.caps = c.known() })
	return c.caps
}

// known is what can be said of the service so far.
func (c *Client) known() lock.Capabilities {
	if caps := c.learned.Load(); caps != nil {
		return *caps
	}
	return lock.Capabilities{Store: c.name, Shared: true, Priority: true}
}

// Close ends this Locker's waits with ErrClosed. All later calls return ErrClosed. Grants remain
// until their TTL expires. Close is idempotent.
func (c *Client) Close() error {
	c.close()
	return nil
}

// ready is what every call does before any I/O, once it has checked its arguments.
func (c *Client) ready(ctx context.Context) error {
	switch {
	case c.closed == nil:
		return fmt.Errorf("%w: the Locker was not made by New", lock.ErrInvalid)
	case c.err != nil:
		return c.err
	case c.closed.Err() != nil:
		return lock.ErrClosed
	}
	return ctx.Err()
}

// repeat is send, for what may be repeated without a doubt.
func (c *Client) repeat(ctx context.Context, ask func(context.Context) error) error {
	_, err := c.send(ctx, ask)
	return err
}

// send asks the service, again if that may help, for no longer than lock.Patience. unsure reports
// that a copy may still be on its way.
func (c *Client) send(ctx context.Context, ask func(context.Context) error) (unsure bool, err error) {
	err = storekit.WithinPatience(ctx, func(ctx context.Context) (err error) {
		unsure, err = storekit.Repeat(ctx, c.classify, func(ctx context.Context, _ int) error { return ask(ctx) })
		return err
	})
	return unsure, err
}

// classify says what an error means for one who may send the request again. The store behind the
// service has been asked again already.
func (c *Client) classify(err error) storekit.Class {
	var p *Problem
	switch {
	case errors.As(err, &p) && (p.Kind == KindStopping || p.Kind == KindCrowded || p.Kind == KindTimeout):
		return storekit.Busy
	case p != nil, errors.Is(err, lock.ErrHeld), errors.Is(err, lock.ErrLost), errors.Is(err, lock.ErrInvalid):
		return storekit.Final
	}
	return c.remote.Classify(err)
}

// classifyWait is classify for one who stands in line, which may outlive the store's trouble,
// unless the service has waited that out already.
func (c *Client) classifyWait(err error) storekit.Class {
	var p *Problem
	if errors.As(err, &p) && !p.Final && (p.Kind == KindUnavailable || p.Kind == KindClosed) {
		return storekit.Busy
	}
	return c.classify(err)
}

// Renew implements [lock.Locker].
func (c *Client) Renew(ctx context.Context, g lock.Grant) (lock.Grant, error) {
	if err := storekit.CheckRenewal(g); err != nil {
		return lock.Grant{}, err
	}
	if err := c.ready(ctx); err != nil {
		return lock.Grant{}, err
	}
	start := time.Now()
	var renewed lock.Grant
	err := c.repeat(ctx, func(ctx context.Context) (err error) {
		renewed, err = c.remote.Renew(ctx, g)
		return err
	})
	if err != nil {
		return lock.Grant{}, vanished(err, g)
	}
	g.TTL, g.Start = renewed.TTL, start
	return g, nil
}

// Release implements [lock.Locker]. If a reply is lost, Release asks again. It returns nil if it
// then finds the grant gone before the grant can have expired: the first request must have
// released it.
func (c *Client) Release(ctx context.Context, g lock.Grant) error {
	if err := lock.CheckGrant(g); err != nil {
		return err
	}
	if err := c.ready(ctx); err != nil {
		return err
	}
	return c.doubts.Release(ctx, g, c.end, c.undo)
}

func (c *Client) end(ctx context.Context, g lock.Grant) error {
	unsure, err := c.send(ctx, func(ctx context.Context) error {
		left := g
		if !g.Start.IsZero() && g.TTL > 0 { // else nobody knows
			left.TTL = max(g.TTL-storekit.Elapsed(g.Start), 1)
		}
		return c.remote.Release(ctx, left)
	})
	lost := (*lock.LostError)(nil)
	switch {
	case !unsure || !errors.As(err, &lost) || storekit.Vanished(g) != 0:
	case lost.Reason == 0, lost.Reason == lock.ReasonTaken: // by the next in line, which the release has let in
		return nil
	}
	return vanished(err, g)
}

func (c *Client) undo(ctx context.Context, g lock.Grant) error {
	return c.repeat(ctx, func(ctx context.Context) error {
		return c.remote.Release(ctx, lock.Grant{Key: g.Key, Owner: g.Owner})
	})
}

// vanished gives a loss of which the service does not know the reason the one that this machine
// knows: the service does not know when g began.
func vanished(err error, g lock.Grant) error {
	if lost := (*lock.LostError)(nil); errors.As(err, &lost) {
		if lost.Token = g.Token; lost.Reason == 0 {
			lost.Reason = storekit.Vanished(g)
		}
	}
	return err
}

// Inspect implements [lock.Locker].
func (c *Client) Inspect(ctx context.Context, key string) (rec lock.Record, err error) {
	if err := lock.CheckKey(key); err != nil {
		return lock.Record{}, err
	}
	if err := c.ready(ctx); err != nil {
		return lock.Record{}, err
	}
	err = c.repeat(ctx, func(ctx context.Context) (err error) {
		rec, err = c.remote.Inspect(ctx, key)
		return err
	})
	return rec, err
}

// ForceRelease implements [lock.Admin]. It is ErrUnsupported if the service's store has no Admin. If a
// reply is lost it asks again, and returns nil if owner does not hold key then.
func (c *Client) ForceRelease(ctx context.Context, key, owner string) error {
	if err := lock.CheckGrant(lock.Grant{Key: key, Owner: owner}); err != nil {
		return err
	}
	if err := c.ready(ctx); err != nil {
		return err
	}
	unsure, err := c.send(ctx, func(ctx context.Context) error { return c.remote.ForceRelease(ctx, key, owner) })
	if unsure && errors.Is(err, lock.ErrLost) {
		return nil
	}
	return err
}

// List implements [lock.Admin]. It is ErrUnsupported if the service's store has no Admin.
func (c *Client) List(ctx context.Context, prefix string) iter.Seq2[lock.Record, error] {
	return func(yield func(lock.Record, error) bool) {
		if err := c.ready(ctx); err != nil {
			yield(lock.Record{}, err)
			return
		}
		if err := c.list(ctx, prefix, yield); err != nil {
			yield(lock.Record{}, err)
		}
	}
}

// list yields each record until yield returns false, or the list ends with an error. It asks again
// until there is the first.
func (c *Client) list(ctx context.Context, prefix string, yield func(lock.Record, error) bool) error {
	if !utf8.ValidString(prefix) { // which no transport carries as it is
		return fmt.Errorf("%w: prefix %.80q is not valid UTF-8", lock.ErrInvalid, prefix)
	}
	begun := false
	return c.open(ctx, &begun, func(ctx context.Context) error {
		for rec, err := range c.remote.List(ctx, prefix) {
			if err != nil {
				return err
			}
			begun = true
			if !yield(rec, nil) {
				break
			}
		}
		return nil
	})
}

// open calls receive, again if that may help, until it has begun to receive something.
func (c *Client) open(ctx context.Context, begun *bool, receive func(context.Context) error) error {
	_, err := storekit.Repeat(ctx, func(err error) storekit.Class {
		if *begun {
			return storekit.Final
		}
		return c.classify(err)
	}, func(ctx context.Context, _ int) error { return receive(ctx) })
	return err
}

// Watch implements [lock.Watcher]. It is ErrUnsupported if the service's store does not push. It
// treats a stream as broken once three of its heartbeats have not come.
func (c *Client) Watch(ctx context.Context, key string, changed func()) error {
	if err := lock.CheckKey(key); err != nil {
		return err
	}
	if err := c.ready(ctx); err != nil {
		return err
	}
	alive, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(c.closed, func() { cancel(lock.ErrClosed) })()
	silence := time.AfterFunc(3*PingInterval, func() { cancel(errSilent) })
	defer silence.Stop()
	begun := false
	err := c.open(alive, &begun, func(ctx context.Context) error {
		return c.remote.Watch(ctx, key, func(is bool) bool {
			begun = true
			silence.Reset(3 * PingInterval)
			if is && alive.Err() == nil {
				changed()
			}
			return true
		})
	})
	switch cause := context.Cause(alive); {
	case ctx.Err() != nil:
		return ctx.Err()
	case cause != nil:
		return cause
	case err == nil:
		return errStream
	}
	return err
}

var (
	errStream = errors.New("lock: the service has ended the stream of changes")
	errSilent = errors.New("lock: the service's stream of changes is silent")
)
