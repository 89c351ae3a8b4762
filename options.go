package lock

import (
	"fmt"
	"maps"
	"slices"
	"time"
)

// Defaults of the options.
const (
	DefaultTTL = 15 * time.Second

	shortestPause = 50 * time.Millisecond
	longestPause  = time.Second
)

// unlimited is the wait of a config that only ctx ends.
const unlimited time.Duration = -1

// Option changes a default. Given to [New], it holds for every call of the Client. Given to a
// call, it holds for that call. A later option overrides an earlier one. A value that breaks a
// rule is ErrInvalid before any I/O.
type Option func(*config)

// config is what Options make. It is never changed once it has been checked, so calls
// without an Option share the Client's.
type config struct {
	ttl        time.Duration
	drift      time.Duration // negative: the default, a function of the TTL
	wait       time.Duration // unlimited, or how long
	backoffMin time.Duration
	backoffMax time.Duration
	metadata   map[string]string
	observers  []Observer
	shared     bool
	reentrant  bool
	renewal    bool

	given given // by the call itself, as opposed to New: some options are not for some calls
	err   error // the first option that cannot be right in itself
}

// given is a set of options.
type given uint8

const (
	givenTTL given = 1 << iota
	givenWait
	givenMetadata
	givenReentrant
	givenRenewal
	givenDrift
	givenObserver
	givenBackoff
)

func (g given) has(o given) bool { return g&o != 0 }

func defaults() config {
	return config{
		ttl: DefaultTTL, drift: -1, wait: unlimited, renewal: true,
		backoffMin: shortestPause, backoffMax: longestPause,
	}
}

// WithTTL sets how long the lock outlives a holder that has died, which is how long others may
// have to wait for it. A living holder renews, and keeps the lock for as long as it likes. d
// must be at least the store's MinTTL and at most MaxTTL. Default: 15 s.
func WithTTL(d time.Duration) Option {
	return func(c *config) { c.ttl, c.given = d, c.given|givenTTL }
}

// WithWait bounds how long Do and Lock wait for the key. Then they return a *HeldError if the
// store has shown the key held, else ErrUnavailable. 0 tries once; a d above MaxTTL is no
// bound. TryDo and TryLock ignore it when it was given to New; given to them it is
// ErrInvalid. Default: until ctx ends.
func WithWait(d time.Duration) Option {
	return func(c *config) {
		c.wait, c.given = d, c.given|givenWait
		if d < 0 {
			c.fail("wait %v: must not be negative", d)
		}
		if d > MaxTTL {
			c.wait = unlimited
		}
	}
}

// WithShared asks for a lock beside other shared ones, never beside an exclusive one. On a
// store without shared mode it is ErrUnsupported. Given to New it is ErrInvalid. Default:
// exclusive.
func WithShared() Option {
	return func(c *config) { c.shared = true }
}

// WithMetadata says who holds the lock and why. Inspect and the *HeldError of others show it.
// All names and values together may have MaxMetadataLen bytes of UTF-8. m is copied. Default:
// none.
func WithMetadata(m map[string]string) Option {
	m = maps.Clone(m)
	return func(c *config) { c.metadata, c.given = m, c.given|givenMetadata }
}

// WithReentrant says what Do and TryDo make of a key that their ctx holds already. With true
// they run the function under the outer lease: with its TTL, its metadata and its events. An
// option of the inner call that asks for anything else is ErrInvalid. With false they return
// ErrDeadlock. Lock and TryLock return a lease that must be released, so for them true is
// ErrInvalid. Default: false.
func WithReentrant(on bool) Option {
	return func(c *config) { c.reentrant, c.given = on, c.given|givenReentrant }
}

// WithRenewal says whether the lease is renewed while it is held. If not, it ends a TTL after
// the grant, or after the last Lease.Renew. Default: true.
func WithRenewal(on bool) Option {
	return func(c *config) { c.renewal, c.given = on, c.given|givenRenewal }
}

// WithDrift sets how much sooner than in the store the lease ends locally. Two things must fit
// in: what the clocks of holder and store may differ by after a TTL, and the time to stop
// working. d must be less than the TTL, also than a shorter one that the store grants.
// Default: TTL/100 + 2 ms, at most half the TTL.
func WithDrift(d time.Duration) Option {
	return func(c *config) {
		c.drift, c.given = d, c.given|givenDrift
		if d < 0 {
			c.fail("drift %v: must not be negative", d)
		}
	}
}

// WithObserver adds o to the observers. Given to a call, it is added to those of New. o must
// not be nil. Default: none.
func WithObserver(o Observer) Option {
	return func(c *config) {
		if o == nil {
			c.fail("observer is nil")
			return
		}
		// Clipped: a call's observers must not land in the array of New's.
		c.observers, c.given = append(slices.Clip(c.observers), o), c.given|givenObserver
	}
}

// WithBackoff sets the pauses between retries: of a renewal, of a release in the
// background, and of a call whose grant came too late. They grow exponentially from
// shortest to longest, with full jitter, and are capped at a tenth of the TTL. shortest must
// be positive and no more than longest. Default: 50 ms to 1 s.
func WithBackoff(shortest, longest time.Duration) Option {
	return func(c *config) {
		c.backoffMin, c.backoffMax, c.given = shortest, longest, c.given|givenBackoff
		if shortest <= 0 || shortest > longest {
			c.fail("backoff from %v to %v: shortest must be positive and no more than longest", shortest, longest)
		}
	}
}

func (c *config) fail(format string, args ...any) {
	if c.err == nil {
		c.err = fmt.Errorf("%w: "+format, append([]any{ErrInvalid}, args...)...)
	}
}

// with is c changed by opts, and checked; c itself if there are none.
func (c *config) with(opts []Option, caps Capabilities) (*config, error) {
	if len(opts) == 0 {
		return c, nil
	}
	d := *c
	d.given = 0
	for i, o := range opts {
		if o == nil {
			d.fail("option %d is nil", i)
			break
		}
		o(&d)
	}
	return &d, d.check(caps)
}

// check tests the relations between options, once all have been applied.
func (c *config) check(caps Capabilities) error {
	if c.err != nil {
		return c.err
	}
	if err := checkTTL(c.ttl, caps); err != nil {
		return err
	}
	if d := c.driftOf(c.ttl); d >= c.ttl {
		return fmt.Errorf("%w: drift %v with TTL %v: drift must be less than the TTL", ErrInvalid, d, c.ttl)
	}
	if c.shared && !caps.Shared {
		return unsupported("shared mode", caps)
	}
	return checkMetadata(c.metadata)
}

// fits says whether the call's own options suit op.
func (c *config) fits(op operation) error {
	if op.try() && c.given.has(givenWait) {
		return fmt.Errorf("%w: WithWait(%v) on %s: a try does not wait", ErrInvalid, c.wait, op)
	}
	if !op.runs() && c.given.has(givenReentrant) && c.reentrant {
		return fmt.Errorf("%w: WithReentrant(true) on %s: only Do and TryDo can run under an outer lease", ErrInvalid, op)
	}
	return nil
}

// driftOf is the drift for a TTL as granted.
func (c *config) driftOf(ttl time.Duration) time.Duration {
	if c.drift >= 0 {
		return c.drift
	}
	return min(ttl/100+2*time.Millisecond, ttl/2)
}

// pause is how long to wait before retry n (from 0).
func (c *config) pause(n int, ttl time.Duration) time.Duration {
	longest := min(c.backoffMax, ttl/10)
	return backoff(n, min(c.backoffMin, longest), longest)
}

// operation is a call by the name that *Error gives it.
type operation string

const (
	opDo      operation = "do"
	opTryDo   operation = "trydo"
	opLock    operation = "lock"
	opTryLock operation = "trylock"
	opRenew   operation = "renew"
	opRelease operation = "release"
	opInspect operation = "inspect"
	opList    operation = "list"
	opForce   operation = "force"
)

func (o operation) try() bool  { return o == opTryDo || o == opTryLock }
func (o operation) runs() bool { return o == opDo || o == opTryDo }

// fail is the error of o on key.
func (o operation) fail(key string, err error) error {
	return &Error{Op: string(o), Key: key, Err: err}
}
