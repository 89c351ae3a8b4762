package lock

import (
	"fmt"
	"maps"
	"slices"
	"time"
)

// DefaultTTL is the TTL of a lock for which [WithTTL] sets no other.
const DefaultTTL = 15 * time.Second

const (
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
	minHold    time.Duration
	headStart  time.Duration
	backoffMin time.Duration
	backoffMax time.Duration
	detect     time.Duration // how often to look for deadlocks; 0: never
	metadata   map[string]string
	observers  []Observer
	shared     bool
	reentrant  bool
	renewal    bool

	given given // by the call itself, as opposed to New: some options are not for some calls
	err   error // the first option that cannot be right in itself
}

// given is a set of options.
type given uint16

const (
	givenTTL given = 1 << iota
	givenWait
	givenMetadata
	givenReentrant
	givenRenewal
	givenDrift
	givenObserver
	givenBackoff
	givenHeadStart
	givenMinHold
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
// bound. For DoAll it is one bound for all keys. TryDo, TryLock and Lead ignore it when it was
// given to New; given to them it is ErrInvalid. Default: until ctx ends.
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

// WithHeadStart has Do and Lock stand in line as if they had come d earlier. So urgent calls
// pass others, and starve nobody: a waiter is overtaken only by those who came at most the
// largest head start after it. Calls with equal ones are served in the order in which they
// came. The store's clock decides. d must be from 0 to MaxTTL. On a store without
// Capabilities.Priority it is ErrUnsupported. TryDo, TryLock and WithWait(0), which stand in no
// line, ignore it when it was given to New; given to such a call it is ErrInvalid. Default: 0.
func WithHeadStart(d time.Duration) Option {
	return func(c *config) {
		c.headStart, c.given = d, c.given|givenHeadStart
		if d < 0 || d > MaxTTL {
			c.fail("head start %v: must be from 0 to %v", d, MaxTTL)
		}
	}
}

// WithShared asks for a lock beside other shared ones, never beside an exclusive one. On a
// store without shared mode it is ErrUnsupported. Given to New or to Lead it is ErrInvalid.
// Default: exclusive.
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
// ErrDeadlock. Lock and TryLock return a lease that must be released, a term of Lead is one of
// its own, and DoAll takes its keys in one order, so for them true is ErrInvalid. Default:
// false.
func WithReentrant(on bool) Option {
	return func(c *config) { c.reentrant, c.given = on, c.given|givenReentrant }
}

// WithRenewal says whether the lease is renewed while it is held. If not, it ends a TTL after
// the grant, or after the last Lease.Renew. Default: true.
func WithRenewal(on bool) Option {
	return func(c *config) { c.renewal, c.given = on, c.given|givenRenewal }
}

// WithDrift sets how much sooner than in the store the lease ends locally. It must cover the time
// to stop working, and how far the clocks of holder and store may drift apart within a TTL. d
// must be less than the TTL, and less than a shorter TTL that the store grants.
// Default: TTL/100 + 2 ms, at most half the TTL.
func WithDrift(d time.Duration) Option {
	return func(c *config) {
		c.drift, c.given = d, c.given|givenDrift
		if d < 0 {
			c.fail("drift %v: must not be negative", d)
		}
	}
}

// WithDeadlockDetection ends deadlocks that go through several Clients. A call that holds
// leases, since its ctx comes from the fn of a Do, looks for one whenever it has waited for d:
// see [FindDeadlocks]. If it is the youngest in the cycle, it stops waiting and returns a
// *DeadlockError; the others get their keys once its fn has returned. The youngest is the one
// whose newest lease has the highest token: the tokens are what all of them see alike, however
// their clocks differ, so only one gives up even if all look at the same time. Give the option
// to all Clients of the store, since each ends only its own calls.
//
// Looking means one List of the whole store, or two if there is a cycle: make d longer than waits
// usually are. One look serves all calls of the Client that have waited for so long. A look that
// fails is repeated after d. Others cannot see a call that stands behind the first MaxRecord in
// line, so it gives up itself, though it may not be the youngest. A cycle through two such calls
// of different Clients is not found.
//
// d must be at least 1 ms, or 0 for no detection. On a store without FIFO or without an [Admin]
// it is ErrUnsupported: such a store shows nobody who waits. Default: 0.
func WithDeadlockDetection(d time.Duration) Option {
	return func(c *config) {
		c.detect = d
		if d != 0 && d < time.Millisecond {
			c.fail("deadlock detection after %v: must be at least 1ms, or 0 for none", d)
		}
	}
}

// WithMinHold keeps the key taken for d after the grant, even if the work is done sooner: Do and
// Lease.Release return at once, and the Client releases the key when d is over. It is for
// scheduled jobs that take less time than the clocks of the replicas differ by. Without it, a
// replica whose clock is behind would run such a job again. [Client.Close] does not wait for d: it
// leaves the key to its TTL, as a crash does. So d must be at most the TTL less the drift
// ([WithDrift]); if the store grants a shorter TTL, that one counts.
//
// For its holder such a lease has ended: its Err is ErrReleased, [Client.Held] does not show it,
// and only an [Observer] learns of its loss. A call that gets no lease keeps nothing. Default: 0.
func WithMinHold(d time.Duration) Option {
	return func(c *config) {
		c.minHold, c.given = d, c.given|givenMinHold
		if d < 0 {
			c.fail("minimum hold %v: must not be negative", d)
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

// with is c changed by opts.
func (c config) with(opts []Option) config {
	c.given = 0
	for i, o := range opts {
		if o == nil {
			c.fail("option %d is nil", i)
			break
		}
		o(&c)
	}
	return c
}

// check tests the relations between options, once all have been applied.
func (c *config) check(caps Capabilities) error {
	if c.err != nil {
		return c.err
	}
	if err := checkTTL(c.ttl, caps); err != nil {
		return err
	}
	if err := c.suits(c.ttl, ""); err != nil {
		return err
	}
	if c.shared && !caps.Shared {
		return unsupported("shared mode", caps)
	}
	if c.headStart > 0 && !caps.Priority {
		return unsupported("head starts", caps)
	}
	return checkMetadata(c.metadata)
}

// suits returns an error if a TTL is too short for c; of says where it comes from.
func (c *config) suits(ttl time.Duration, of string) error {
	drift := c.driftOf(ttl)
	switch {
	case drift >= ttl:
		return fmt.Errorf("%w: drift %v with TTL %v%s: drift must be less than the TTL", ErrInvalid, drift, ttl, of)
	case c.minHold > ttl-drift:
		return fmt.Errorf("%w: minimum hold %v with TTL %v%s and drift %v: must be at most the TTL less the drift",
			ErrInvalid, c.minHold, ttl, of, drift)
	}
	return nil
}

// fits says whether the call's own options suit op.
func (c *config) fits(op operation) error {
	if op.try() && c.given.has(givenWait) {
		return fmt.Errorf("%w: WithWait(%v) on %s: a try does not wait", ErrInvalid, c.wait, op)
	}
	if !c.waits(op) && c.given.has(givenHeadStart) && c.headStart > 0 {
		return fmt.Errorf("%w: WithHeadStart(%v) on %s without waiting: a try does not stand in line", ErrInvalid, c.headStart, op)
	}
	if !op.nests() && c.given.has(givenReentrant) && c.reentrant {
		return fmt.Errorf("%w: WithReentrant(true) on %s: only Do and TryDo can run under an outer lease", ErrInvalid, op)
	}
	if op == opLead && c.given.has(givenWait) {
		return fmt.Errorf("%w: WithWait(%v) on %s: a candidate waits until ctx ends", ErrInvalid, c.wait, op)
	}
	if op == opLead && c.shared {
		return fmt.Errorf("%w: WithShared on %s: there is one leader", ErrInvalid, op)
	}
	return nil
}

// waits reports whether op stands in line, as opposed to trying once. A candidate always does.
func (c *config) waits(op operation) bool { return !op.try() && (c.wait != 0 || op == opLead) }

// limit bounds op; 0 is no bound. A try may take a TTL: a later grant would be over.
func (c *config) limit(op operation) time.Duration {
	switch {
	case !c.waits(op):
		return c.ttl
	case c.wait == unlimited || op == opLead:
		return 0
	}
	return c.wait
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
	opDoAll   operation = "doall"
	opLock    operation = "lock"
	opTryLock operation = "trylock"
	opRenew   operation = "renew"
	opRelease operation = "release"
	opInspect operation = "inspect"
	opList    operation = "list"
	opForce   operation = "force"
	opLead    operation = "lead"
	opWatch   operation = "watch"
)

func (o operation) try() bool   { return o == opTryDo || o == opTryLock }
func (o operation) runs() bool  { return o.nests() || o == opDoAll || o == opLead } // a function
func (o operation) nests() bool { return o == opDo || o == opTryDo }                // under an outer lease

// fail is the error of o on key.
func (o operation) fail(key string, err error) error {
	return &Error{Op: string(o), Key: key, Err: err}
}
