// Package dynamo keeps locks in a table of Amazon DynamoDB.
//
//	client := dynamodb.NewFromConfig(cfg)
//	err := dynamo.CreateTable(ctx, client, "locks") // once, or by other means
//	locks := lock.New(dynamo.New(client, "locks"))
//
// # What it survives
//
// A lock is one item, and each decision is one conditional write of it, which DynamoDB
// makes atomic, and durable in several availability zones before it is acknowledged. So
// grants survive whatever DynamoDB itself survives, and so do tokens. A token is
// max(previous + 1, DynamoDB's time in µs): it rises even after the item was deleted or
// replaced by an older one, as by a table restored from a backup, if that takes longer
// than DynamoDB's time is known to, which is about a second.
//
// Leases end by DynamoDB's clock, as far as the Date header of its replies tells it: to the
// second. Each Locker keeps an upper and a lower bound of that clock, by its machine's
// monotonic clock between replies. A holder stamps its lease with the upper one, and others
// compare the stamp with their lower one. So nobody takes over too early, whatever the wall
// clocks of the machines say; and a lock whose holder died may stay held for up to 2.5 s
// after its TTL, which is what Capabilities.ExpirySlack declares, and why a TTL of less than
// some seconds gains nothing. A reply which shows that a holder's bound was too low, as
// after a sleep of its machine, has the grant taken back and made anew. Who waits for a lock
// also takes it over when it has not been renewed for all of its lease by the monotonic
// clock of the one who waits, should it have been stamped by a clock gone wrong.
//
// # What breaks it
//
// Hosts of DynamoDB whose clocks differ by more than 100 ms, or jump; a proxy on the way that
// keeps the Date of replies. A global table with eventual consistency, used in more than one
// region: each region would grant on its own. DynamoDB's TTL on an attribute of the locks, or
// a program that writes their items: give locks a table of their own. DAX, which does not pass
// DynamoDB's time on. The first call of a Locker looks at the table's key and TTL, unless it
// lacks the right to, and refuses what is unfit with [ErrUnfit].
//
// A holder that was paused may write after it has lost its lock: guard what it writes, by
// [Fence] if that is in DynamoDB.
//
// # Waiting
//
// DynamoDB cannot wake anybody, so waiters poll. Those of one Locker stand in line, and only
// the first of a key looks at the table, for all of them; a release by the same Locker wakes
// it at once. It reads, at half a read unit, after pauses that grow from 0.1 s to between
// 0.1 s and 1 s (see [WithPoll]) and end with the holder's lease: about one read unit a
// second, and no write unit as long as one holds the lock. A writer who finds readers makes
// new ones hold back until those there have left, at one write unit for two and a half
// seconds.
//
// The lines of several Lockers have no order among them, but take turns. A Locker may hand a
// lock on among its own waiters, or take it again and again, until another has asked for it
// or had it in between. Then it keeps it for turns of 0.2 s, and leaves it to the others after
// each. To ask is a write, of who sees that the lock was handed on past it, and the release
// that is asked takes two. Who has waited for longer than others looks more often, at up to
// three read units a second while it sees the lock handed on.
//
// # Cost
//
// Uncontended, Acquire, Renew and Release are one write each: one write unit, while an item
// is no larger than 1 KiB, and its Metadata counts. One more is needed to acquire a lock
// that another Locker had within about a second, or whose holder died, and to renew within
// a second of a Locker's beginning. A refused Acquire is one write as well, which brings the
// holder's record. A Locker that has not heard of DynamoDB for two minutes reads an item
// first, to know the time.
//
// Items stay, one for each key that was ever locked, since they have the last token:
// [Locker.Sweep] deletes those not used for long. All shared holders of a key are in one
// item, of which DynamoDB bills each KiB with every write, and which has at most 400 KiB: some
// 900 holders without Metadata, 90 with 4 KiB each. The next one is refused with [ErrFull], or
// waits. Holders that died make room for it.
//
// A client for many concurrent locks needs an HTTP client that keeps as many connections:
// the SDK's keeps 10 idle ones to a host, see MaxIdleConnsPerHost.
//
// # Trouble
//
// Throttling, conflicts with transactions, errors of the network and credentials that have
// expired are asked again for about two seconds, then the error is told. Who stands in line
// goes on for [lock.Patience] without an answer. A missing right or table is told at once.
//
// # Rights, and what may be deleted
//
// The rights needed are dynamodb:PutItem, UpdateItem and GetItem; DescribeTable and DescribeTimeToLive
// for the look at the table; Scan for List and, with DeleteItem, for Sweep.
//
// An operator may delete the item of any key, which is the whole lock: its holders learn at
// their next renewal that they have lost it, and tokens rise as said above. To end one holder,
// [Locker.ForceRelease] is better, as its reason is told. Single attributes must be left alone:
// an item without some of them is no lock any more, and each call for its key says so until it
// is deleted.
package dynamo

import (
	"context"
	"errors"
	"fmt"
	"time"
	"unicode/utf8"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/internal/storekit"
)

var (
	_ lock.Locker = (*Locker)(nil)
	_ lock.Admin  = (*Locker)(nil)
)

// Locker keeps locks in a table of DynamoDB. It is safe for concurrent use.
type Locker struct {
	api     API
	table   string
	prefix  string
	minPoll time.Duration
	maxPoll time.Duration
	err     error // of an argument; returned by every call

	clock   clock
	fit     fitness
	lines   lines
	settled settled
	closing context.Context // ends with the Locker
	shut    context.CancelFunc
}

// Option sets up a [Locker].
type Option func(*Locker) error

// maxPrefix leaves room for the longest key: DynamoDB takes 2048 bytes.
const maxPrefix = 1024

// WithPrefix sets what the keys of all items begin with. Default: nothing. Lockers with
// the same prefix on the same table share their locks.
func WithPrefix(prefix string) Option {
	return func(l *Locker) error {
		if len(prefix) > maxPrefix || !utf8.ValidString(prefix) {
			return fmt.Errorf("%w: dynamo: prefix %.40q: must be UTF-8 of at most %d bytes", lock.ErrInvalid, prefix, maxPrefix)
		}
		l.prefix = prefix
		return nil
	}
}

// WithPoll sets the pauses between two looks of who waits for a key, which grow from shortest
// to longest and are jittered. Default 100 ms and 1 s. Waiters of one Locker look as one.
func WithPoll(shortest, longest time.Duration) Option {
	return func(l *Locker) error {
		if shortest <= 0 || shortest > longest {
			return fmt.Errorf("%w: dynamo: poll from %v to %v: shortest must be positive and no more than longest", lock.ErrInvalid, shortest, longest)
		}
		l.minPoll, l.maxPoll = shortest, longest
		return nil
	}
}

// New returns a Locker on a table, such as [CreateTable] makes, doing no I/O. client is a
// *dynamodb.Client as a rule, and stays the caller's. A nil client, a name that no table
// can have or a bad option is an error that every call returns.
func New(client API, table string, opts ...Option) *Locker {
	l := &Locker{
		api: client, table: table, minPoll: 100 * time.Millisecond, maxPoll: time.Second,
		fit: newFitness(),
	}
	l.closing, l.shut = context.WithCancel(context.Background())
	l.err = l.setUp(opts)
	return l
}

func (l *Locker) setUp(opts []Option) error {
	if missing(l.api) {
		return fmt.Errorf("%w: dynamo: client is nil", lock.ErrInvalid)
	}
	if err := checkTable(l.table); err != nil {
		return err
	}
	for _, o := range opts {
		if o == nil {
			return fmt.Errorf("%w: dynamo: option is nil", lock.ErrInvalid)
		}
		if err := o(l); err != nil {
			return err
		}
	}
	return nil
}

// Capabilities implements [lock.Locker].
func (l *Locker) Capabilities() lock.Capabilities {
	return lock.Capabilities{
		Store: "dynamo", Shared: true,
		MinTTL: 100 * time.Millisecond,
		// The holder takes DynamoDB's clock for up to a second later than it is, who comes
		// after it for up to a second earlier: the Date header has whole seconds. The rest
		// is for hostSkew, the drift of staleAfter, and two round trips.
		ExpirySlack: 2500 * time.Millisecond,
		TokenSurvives: lock.SurvivesRelease | lock.SurvivesExpiry | lock.SurvivesRecordLoss |
			lock.SurvivesRestart | lock.SurvivesFailover,
		HoldSurvives: lock.SurvivesRelease | lock.SurvivesExpiry | lock.SurvivesRestart | lock.SurvivesFailover,
	}
}

// Acquire implements [lock.Locker]. Uncontended it is one write.
func (l *Locker) Acquire(ctx context.Context, req lock.Request) (lock.Grant, error) {
	if err := lock.CheckRequest(req, l.Capabilities()); err != nil {
		return lock.Grant{}, err
	}
	if err := l.ready(ctx); err != nil {
		return lock.Grant{}, err
	}
	a := l.acquisition(req)
	var g lock.Grant
	var err error
	if req.Wait {
		g, err = a.wait(ctx)
	} else {
		err = storekit.WithinPatience(ctx, func(ctx context.Context) error {
			g, err = a.try(ctx, false)
			return err
		})
	}
	if err != nil && !a.doubt && len(a.sent) == 0 && !a.announced {
		l.settled.add(req.Owner)
	}
	return g, err
}

// Renew implements [lock.Locker]. It is one write. A grant that is over by DynamoDB's
// clock is lost, even if nobody has taken the lock since.
func (l *Locker) Renew(ctx context.Context, g lock.Grant) (lock.Grant, error) {
	if err := storekit.CheckRenewal(g); err != nil {
		return lock.Grant{}, err
	}
	if err := l.ready(ctx); err != nil {
		return lock.Grant{}, err
	}
	r := &renewal{l: l, g: g, sent: make(map[int64]moment, 1)}
	if err := l.repeat(ctx, r.try); err != nil {
		return lock.Grant{}, err
	}
	return r.g, nil
}

// Release implements [lock.Locker]. It is one write; without a token a read and a write, or
// nothing where this Locker knows that the owner has left nothing. The item stays.
func (l *Locker) Release(ctx context.Context, g lock.Grant) error {
	if err := l.check(ctx, g); err != nil {
		return err
	}
	if g.Token == 0 {
		if l.settled.take(g.Owner) {
			return nil
		}
		return l.undo(ctx, g)
	}
	r := &release{l: l, g: g}
	err := l.repeat(ctx, r.try)
	switch {
	case !r.free:
	case g.Shared:
		l.lines.released(g.Key)
	case !l.lines.yield(g.Key, r.asked, l.restOf()):
		l.lines.released(g.Key)
	}
	return err
}

// check is what every call but Acquire does first.
func (l *Locker) check(ctx context.Context, g lock.Grant) error {
	if err := lock.CheckGrant(g); err != nil {
		return err
	}
	return l.ready(ctx)
}

// ready checks the Locker itself and, once, its table.
func (l *Locker) ready(ctx context.Context) error {
	switch {
	case l == nil || l.closing == nil:
		return fmt.Errorf("%w: dynamo: a Locker is made by New", lock.ErrInvalid)
	case l.err != nil:
		return l.err
	case l.closing.Err() != nil:
		return lock.ErrClosed
	case ctx.Err() != nil:
		return ctx.Err()
	}
	return l.fit.check(ctx, l)
}

// Close ends this Locker's waits with ErrClosed, as it does all later calls. It leaves the
// client and the grants alone: those end with their TTL, unless another Locker releases
// them. It is idempotent and waits for nothing.
func (l *Locker) Close() error {
	if l != nil && l.shut != nil {
		l.shut()
	}
	return nil
}

// ErrUnfit is what an error wraps that says why a table is not for locks: its key, or
// DynamoDB's TTL on an attribute of the locks.
var ErrUnfit = errors.New("lock: dynamo: unfit table")
