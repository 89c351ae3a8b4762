// Package lock is a distributed lock for Go. It keeps two copies of a program from doing the
// same thing at once, on the store that you already run.
//
// A critical section is a function:
//
//	lock.SetDefault(lock.New(redis.New(rdb)))
//
//	err := lock.Do(ctx, "order:123", func(ctx context.Context, l *lock.Lease) error {
//		return orders.Save(ctx, order, l.Token()) // the store rejects a stale token
//	})
//
// It makes three promises:
//
//   - Every grant carries a fencing token ([Token]), minted in the same atomic step
//     as the grant and strictly increasing per key. A lock without one cannot protect a
//     resource: see
//     https://martin.kleppmann.com/2016/02/08/how-to-do-distributed-locking.html.
//   - A holder learns of a loss by itself, and early. A timer ends the lease's context at
//     a deadline that counts from before the request was sent, even while a renewal hangs
//     on a frozen server.
//   - The promises are executable. Package locktest checks each sentence of the
//     [Locker] contract against real servers, under faults.
//
// Applications make a [Client] with [New], from a store such as package memory or redis.
// It gives them a [Lease]. [Observer] is for logs and metrics, [Guard] for fencing, and
// package memory has a store for tests.
//
// Authors of a store implement [Locker], which takes a [Request] and returns a [Grant].
// They need [CheckRequest], [Poll], [HeldError] and [LostError] too.
//
// # What a lock cannot do
//
// A scheduler, a hypervisor or a garbage collector may pause a process after it has looked
// at its lease and before it writes. No lock can prevent that write. Only the resource can,
// by refusing a token that is older than the newest it has seen. [Guard] does so for a
// resource in this process; each store package has a helper that does so in the store.
package lock

import (
	"context"
	"iter"
	"time"
)

// Locker is a store of locks. Stores implement it; applications do not call it, but
// use a [Client]. A Locker that holds connections of its own also has a method
// Close() error.
//
// All methods must be safe for concurrent use, must return promptly when ctx ends,
// and must never return a zero Grant together with a nil error.
//
// A store must keep the following. Package locktest has a group of cases for each:
//
//   - Exclusion. By the store's own clock at most one exclusive grant of a key is
//     live; shared grants live only beside shared grants. This holds while the store
//     keeps what it acknowledged, its clock does not jump forward, and nobody forces
//     the lock: Capabilities.HoldSurvives says which faults it stands. Otherwise the
//     loss is told at the next renewal, and the token is the guard.
//   - Partial loss is loss. Whatever part of what the store keeps of a key disappears
//     (a row, an item or a node that an operator deletes), two grants that exclude each
//     other must never both survive their next renewal.
//   - Tokens rise. An exclusive grant's token must exceed every token granted for the
//     key before it; a shared one must exceed every exclusive one before it. After
//     release, expiry, a lost record, a restart, a failover: as far as
//     Capabilities.TokenSurvives declares. It must be minted in the same atomic step
//     as the grant, or as the place in line where line order is grant order, so that
//     no pause between two client steps can reorder tokens.
//   - One owner, one grant. Inside one Acquire a store may send its request again
//     after an unknown outcome; it must end up with one grant and one token. An Owner
//     is spent once Acquire has returned an error or Release has been called.
//   - Renew never creates. Renew must restart the TTL of a live grant of that owner
//     and token, changing only TTL and Start, or return ErrLost, with the reason where
//     known.
//   - Release is yours alone. Release must end the grant of that owner and token only;
//     a stale one must return ErrLost and change nothing. Without a token
//     (Grant{Key, Owner}) it must undo an acquisition whose outcome is unknown, or a
//     place in line, and return nil if there is nothing to undo.
//   - Failure leaves nothing. An Acquire that returned an error must leave no grant
//     and no place in line once the undo, a Release without a token, has arrived. If
//     the undo can overtake its own late request, the grant must at worst end a TTL
//     after it took effect. Without an undo, whatever else the same process keeps
//     alive, a place in line must end by its heartbeat and a grant by its TTL.
//   - Dead holders pass. A key whose holder died must be acquirable within TTL +
//     Capabilities.ExpirySlack, by a first try without Wait too.
//   - Dead waiters are skipped. A waiter must live by a heartbeat of min(TTL, 5 s):
//     a dead one must not block the line for longer than that.
//   - Nobody passes a waiting writer. Where FIFO is declared, a shared try must be
//     refused while an exclusive waiter is in line, and an exclusive one while anybody
//     is.
//   - A head start is a place in line. Where Priority is declared, waiters must be served
//     in the order of their arrival minus Request.HeadStart, by the store's clock, and
//     equal ones in the order of arrival. So nobody is overtaken by one who came later
//     than the largest head start. A request that is sent again must keep its place; one
//     whose place was lost arrives anew, with its head start.
//   - Wake-ups are hints. A release must wake the next waiter promptly if Push is
//     declared, and a lost wake-up must cost no more than a bounded recheck. After any
//     wait the claim must be verified, and Start taken before the verification was
//     sent. A Locker must notice by itself that its wake-ups do not arrive, then
//     recheck every tenth of the heartbeat, and find its way back.
//   - A wait outlives the store's trouble. The first request's failure must be
//     returned at once; if it is not answered, within [Patience]. Once in line, what
//     may pass (a restart, an election, a refused connection, a full disk, a read-only
//     or busy server, throttling, a timeout) must end the wait only after Patience
//     without an answer; what cannot pass (a missing right, a wrong type, a missing
//     table) must end it at once. The error must wrap the store's own.
//   - Cancel is prompt. When ctx ends every method must return promptly with an error
//     for which errors.Is(err, ctx.Err()) holds; it is ErrHeld as well if Acquire saw
//     the key held, and wraps the store's last error if that was in trouble. A grant
//     already known at that moment may be returned instead.
//   - Expiry is the store's. No client's wall clock may decide it.
//   - A reason is a fact. ReasonExpired must be told only if the TTL can have run out;
//     a grant that vanished before is ReasonForced, ReasonTaken or unknown (0).
//   - Records are bounded. A [Record] must hold at most [MaxRecord] holders and as
//     many waiters, with the true counts beside them. Standing in line must cost the
//     same behind 10 waiters as behind 10,000.
//   - Durations are bounded. A TTL above [MaxTTL] must be ErrInvalid before any I/O;
//     MaxTTL itself must be granted and released exactly.
//   - Keys are opaque. Any non-empty UTF-8 string of up to [MaxKeyLen] bytes is a key
//     of its own: "/", "{}", a leading "}", "..", NUL, controls, case. Stores must
//     encode injectively.
type Locker interface {
	// Acquire grants req.Key to req.Owner. Without req.Wait it returns an error that
	// is ErrHeld (a *HeldError where the holder is known) when the key is taken; with
	// it, it stands in line until ctx ends. Other errors are ErrInvalid before any
	// I/O, ErrUnsupported for a capability that is not declared, ctx's own, or the
	// store's; after the last two the outcome is unknown and the caller must undo it
	// with Release(Grant{Key, Owner}).
	Acquire(ctx context.Context, req Request) (Grant, error)

	// Renew restarts g's TTL and returns g with a new TTL and Start. It returns an
	// error that is ErrLost when the grant is not there any more, and must not create
	// one. After any other error the grant is as it was or renewed.
	Renew(ctx context.Context, g Grant) (Grant, error)

	// Release ends g. It returns an error that is ErrLost when g is not live any more,
	// and then changes nothing. With g.Token == 0 it undoes whatever g.Owner has on
	// g.Key, returning nil when that is nothing. After any other error the grant may
	// live on until its TTL is over; Release may be called again.
	Release(ctx context.Context, g Grant) error

	// Inspect returns what the store knows of key. A key that nobody holds is no
	// error: its Record has no Holders.
	Inspect(ctx context.Context, key string) (Record, error)

	// Capabilities says what the store promises. It must be constant and do no I/O.
	Capabilities() Capabilities
}

// Request is what [Locker].Acquire is asked for.
type Request struct {
	// Key is the lock's name: see the contract's "Keys are opaque".
	Key string
	// Owner is unique to this try: 1 to 64 of [A-Za-z0-9_-], with 128 random bits.
	Owner string
	// TTL is how long the grant lives if it is not renewed, at most MaxTTL. Stores round
	// it up to their granularity.
	TTL time.Duration
	// Shared asks for a grant beside other shared ones, never beside an exclusive one.
	Shared bool
	// Wait asks to stand in line until ctx ends, instead of ErrHeld.
	Wait bool
	// HeadStart asks for the place in line of a request that came this much earlier, at
	// most MaxTTL. Without Wait it must be 0: a try stands in no line.
	HeadStart time.Duration
	// Metadata says who and why; Inspect shows it. At most MaxMetadataLen bytes.
	Metadata map[string]string
	// Under are the owners of what the caller holds while it waits, at most MaxRecord. Where
	// Inspect and List show the line, Waiter.Under shows them. They decide nothing.
	Under []string
	// Waiting, if not nil, is called once when the wait begins, with what is known of
	// holders and line. Where FIFO is declared the place in line is taken by then. It must
	// not cost the store an extra round trip.
	Waiting func(Record)
	// Lost, if not nil, is an early notice that the grant is gone. A store that
	// declares EarlyLoss calls it at most once, under no mutex of its own, never for a
	// loss that it learns of after the holder's own Release, maybe before Acquire
	// returns. It must not block.
	Lost func(LostReason)
}

// Grant is a granted Request.
type Grant struct {
	Key, Owner string
	Token      Token
	// TTL as granted: may be longer or shorter than asked.
	TTL time.Duration
	// Start is a local time with a monotonic reading, no later than the store's own
	// start of TTL: it was taken before the request was sent whose reply proved the
	// grant.
	Start  time.Time
	Shared bool
}

// Record is what a store knows of a key at one moment. It shows at most [MaxRecord]
// holders and as many waiters; the counts are of all.
type Record struct {
	Key         string
	Token       Token    // the highest known to have been granted; 0 = unknown
	Holders     []Holder // more than one only if all are shared
	Waiters     []Waiter // the first in line, in line order
	HolderCount int      // of all live holders
	WaiterCount int      // of all live waiters
}

// Holder is one live grant in a [Record].
type Holder struct {
	Owner     string
	Token     Token
	Shared    bool
	Held      time.Duration // since it was granted; negative = unknown
	ExpiresIn time.Duration // until its TTL is over; negative = unknown
	Metadata  map[string]string
}

// Waiter is one place in line in a [Record].
type Waiter struct {
	Owner    string
	Shared   bool
	Waited   time.Duration
	Metadata map[string]string
	Under    []string // as in its Request: what it holds meanwhile
}

// Survival is a set of faults that a promise outlives.
type Survival uint8

// The faults of a [Survival].
const (
	SurvivesRelease    Survival = 1 << iota // the grant was released
	SurvivesExpiry                          // the grant's TTL ran out
	SurvivesRecordLoss                      // the store lost the key's record, its counter too
	SurvivesRestart                         // the server was killed and started again
	SurvivesFailover                        // another server took over
)

// Has reports whether s has every fault of f.
func (s Survival) Has(f Survival) bool { return s&f == f }

// String lists the faults by name, joined with "|", or says "none".
func (s Survival) String() string {
	names := ""
	for i, n := range []string{"release", "expiry", "record loss", "restart", "failover"} {
		if s.Has(1 << i) {
			if names != "" {
				names += "|"
			}
			names += n
		}
	}
	if names == "" {
		return "none"
	}
	return names
}

// Capabilities says what a store promises beyond the contract. A capability that is
// not declared is refused with ErrUnsupported, never silently approximated.
type Capabilities struct {
	Store         string        // its name, for people
	Shared        bool          // Request.Shared is served
	FIFO          bool          // waiters are served in the order of arrival
	Priority      bool          // Request.HeadStart is served
	Push          bool          // a waiter is woken, it does not poll
	EarlyLoss     bool          // Request.Lost is called
	MinTTL        time.Duration // less is ErrInvalid before any I/O
	ExpirySlack   time.Duration // how long after its TTL a dead holder may still block
	TokenSurvives Survival      // the faults after which tokens still rise
	HoldSurvives  Survival      // the faults after which a live grant is still exclusive
}

// Admin is what operators need of a store. It is optional: [Client.List] and
// [Client.ForceRelease] use it, and [As] finds it.
type Admin interface {
	// List yields the Record of every key that begins with prefix and is held or
	// waited for, in no order, each once. Keys that change while it runs may be seen
	// or not. An error ends it.
	List(ctx context.Context, prefix string) iter.Seq2[Record, error]

	// ForceRelease ends owner's grant of key, and no other. Its holder learns it
	// through Request.Lost or at its next renewal, with ReasonForced or ReasonTaken. It
	// returns ErrLost when owner does not hold key. If it has to ask twice it returns nil
	// then, since the first request may have ended the grant. The holder may still be
	// working: only fenced resources are safe.
	ForceRelease(ctx context.Context, key, owner string) error
}

// Watcher tells when a key has changed. It is optional: [Client.Watch] uses it, and [As] finds
// it. Without one, Watch looks by itself now and then.
type Watcher interface {
	// Watch calls changed once it can tell of every change of key from then on, and again
	// after each: when anybody gets key, loses it or lets it go, joins the line or leaves
	// it. Renewals are no changes. It may leave out an expiry if Inspect gives Holder.ExpiresIn,
	// from which the caller knows of it. One call may stand for several changes, or for none.
	// The caller learns what has changed from an Inspect that it sends after the call.
	//
	// It must make no request while nothing changes, and call changed under no mutex, by
	// one goroutine at a time, and not after it has returned. changed does not block.
	//
	// It returns only with an error: ctx's, ErrInvalid, ErrClosed, ErrUnsupported where this
	// Locker does not push, and else the store's, as soon as it knows that changes may have
	// been missed, as by a connection that broke. Then the caller looks, and watches anew.
	Watch(ctx context.Context, key string, changed func()) error
}

// As finds a T, such as an [Admin], in l or in what l wraps. It tries l itself, then what l's
// method Unwrap() Locker returns, and so on.
func As[T any](l Locker) (T, bool) {
	for l != nil {
		if t, ok := l.(T); ok {
			return t, true
		}
		u, ok := l.(interface{ Unwrap() Locker })
		if !ok {
			break
		}
		l = u.Unwrap()
	}
	var zero T
	return zero, false
}
