// Package dynamo keeps locks in a table of Amazon DynamoDB.
//
//	client := dynamodb.NewFromConfig(cfg)
//	err := dynamo.CreateTable(ctx, client, "locks") // once, or by other means
//	locks := lock.New(dynamo.New(client, "locks"))
//
// # What it survives
//
// A lock is one item, and each decision is one conditional write of that item. DynamoDB makes
// the write atomic, and durable in several availability zones before it acknowledges it. So
// grants and tokens survive whatever DynamoDB itself survives. A token is max(previous + 1,
// DynamoDB's time in µs). It rises even after the item was deleted, or replaced by an older one
// as by a restored backup, if that takes longer than two seconds: a Locker knows DynamoDB's time to
// a second, and an undone Acquire raises the next token by up to another.
//
// Leases end by DynamoDB's clock. A Locker learns it from the Date header of replies, to the
// second. Between replies it keeps an upper and a lower bound of that clock by its machine's
// monotonic clock. A holder stamps its lease with its upper bound; others compare the stamp with
// their lower bound. So nobody takes over too early, whatever the machines' wall clocks say. In
// exchange, a lock whose holder died may stay held for up to 2.5 s after its TTL
// (Capabilities.ExpirySlack), so a TTL of less than a few seconds gains little.
//
// If a reply shows that the holder's bound was too low, as after its machine slept, the Locker
// takes the grant back and acquires again. A wrong clock may also stamp a lease too far ahead.
// So a waiter takes over a lock that has not been renewed for a whole lease by the waiter's own
// monotonic clock.
//
// # What breaks it
//
//   - Hosts of DynamoDB whose clocks jump or differ by more than 100 ms.
//   - A proxy on the way that keeps the Date of old replies.
//   - A global table with eventual consistency in more than one region: each region grants on
//     its own.
//   - DynamoDB's TTL on an attribute of the locks, or another program that writes their items.
//     Give locks a table of their own.
//   - DAX, which does not pass DynamoDB's time on.
//
// The first Acquire of a Locker checks the table's key and TTL, if it has the right to, and returns
// [ErrUnfit] if they are wrong. So does its first Inspect, List or Prune. While DynamoDB throttles the
// check or does not answer it, calls go on without it, and the Locker checks again a minute later. Renew,
// Release and ForceRelease never wait for the check, and never fail because of it.
//
// A paused holder may write after it has lost its lock. Guard its writes: with [Fence] if they
// go to DynamoDB.
//
// # Waiting
//
// DynamoDB cannot wake anybody, so waiters poll. The waiters of one Locker stand in line; only
// the first for a key polls, and a release by the same Locker wakes it at once. Others ask too as
// long as it has no answer, with one write each. A poll costs half a read unit. Pauses grow from
// 0.1 s to between 0.1 s and 1 s (see [WithPoll]) and end with the holder's lease. Together that is
// about one read unit a second, and no write unit while one holder keeps the lock. A writer who
// finds readers keeps new readers out until those inside have left, at one write unit each 2.5 s.
//
// Several Lockers have no common line, but take turns. A Locker may hand a lock on among its own
// waiters, or take it again and again, as long as no other Locker asks for it or gets it. After
// that it keeps the lock for turns of 0.2 s, and leaves it to the others after each. A waiter
// that sees the lock handed on past it asks with a write; the release it asks for takes two. A
// Locker that has waited longer polls more often, at up to three read units a second while it
// sees the lock handed on.
//
// # Cost
//
// Without contention, Acquire, Renew and Release are one write each: one write unit while the
// item, with its Metadata, is no larger than 1 KiB. An Acquire takes one more write if another
// Locker had the lock within about a second, or if its holder died; so does a Renew within a
// second of the Locker's start. A refused Acquire is one write too, which returns the holder's
// record. A Locker that has not heard from DynamoDB for two minutes first reads an item, to
// learn the time.
//
// Each key that was ever locked keeps an item, which has its last token; [Locker.Prune] deletes
// the items of keys not used for long. All shared holders of a key are in one item. DynamoDB
// bills each KiB of it with every write, and allows 400 KiB: some 900 holders without Metadata,
// 90 with 4 KiB each. One holder more is refused with [ErrFull], or waits. Holders that died
// make room.
//
// For many concurrent locks, give the client an HTTP client that keeps as many connections. The
// SDK's keeps 10 idle ones to a host: see MaxIdleConnsPerHost.
//
// # What it needs
//
// A Locker needs the rights dynamodb:PutItem, UpdateItem and GetItem; DescribeTable and
// DescribeTimeToLive to check the table; Scan for List; Scan and DeleteItem for Prune.
// [CreateTable] needs CreateTable and both Describe rights. A [Fence] needs UpdateItem and PutItem on
// the tables that it guards, and for [Fence.Transact] the rights of each item's step.
//
// What is on the way must pass on the headers Date and x-amzn-RequestId: a reply without them is not
// taken for DynamoDB's.
//
// # What an operator may delete
//
// The item of any key, which is the whole lock. Its holders learn of it at their next renewal,
// and tokens still rise. To end one holder, [Locker.ForceRelease] is
// better, since it records the reason. Never delete single attributes: an item without some of
// them is no lock any more, and every call for its key returns an error until the item is
// deleted.
//
// # Trouble
//
// The Locker retries for a second or two after throttling, conflicts with transactions, broken
// connections and expired credentials; then it returns the error. A waiter retries for
// [lock.Patience]. A missing right or table ends a call at once. An answer that takes longer than the TTL
// is as good as none.
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
	fitness fitness
	lines   lines
	settled storekit.Doubts // the opposite: owners of whom the table certainly has nothing
	closing context.Context // ends with the Locker
	shut    context.CancelFunc
}

// Option sets up a [Locker].
type Option func(*Locker) error

// maxPrefix leaves room for the longest key: DynamoDB takes 2048 bytes.
const maxPrefix = 1024

// WithPrefix sets what the keys of all items begin with, at most 1024 bytes of UTF-8. Lockers
// with the same prefix on the same table share their locks. Default: nothing.
func WithPrefix(prefix string) Option {
	return func(l *Locker) error {
		if len(prefix) > maxPrefix || !utf8.ValidString(prefix) {
			return fmt.Errorf("%w: dynamo: prefix %.40q: must be UTF-8 of at most %d bytes", lock.ErrInvalid, prefix, maxPrefix)
		}
		l.prefix = prefix
		return nil
	}
}

// WithPoll sets the pauses between polls, which grow from shortest to longest, with jitter. The
// waiters of one Locker for a key poll as one. A writer that keeps new readers out pauses for at most a
// quarter of min(TTL, 5 s). Neither may be above [lock.MaxTTL]. Default 100 ms to 1 s.
func WithPoll(shortest, longest time.Duration) Option {
	return func(l *Locker) error {
		switch {
		case shortest <= 0 || shortest > longest:
			return fmt.Errorf("%w: dynamo: poll from %v to %v: shortest must be positive and no more than longest", lock.ErrInvalid, shortest, longest)
		case longest > lock.MaxTTL:
			return fmt.Errorf("%w: dynamo: poll from %v to %v: longest must be at most %v", lock.ErrInvalid, shortest, longest, lock.MaxTTL)
		}
		l.minPoll, l.maxPoll = shortest, longest
		return nil
	}
}

// New returns a Locker on a table such as [CreateTable] makes. It does no I/O. client is usually
// a *dynamodb.Client. Every call returns an error if client is nil, no table can have that name,
// or an option is bad.
func New(client API, table string, opts ...Option) *Locker {
	l := &Locker{api: client, table: table, minPoll: 100 * time.Millisecond, maxPoll: time.Second}
	l.closing, l.shut = context.WithCancel(context.Background())
	l.err = l.setUp(opts)
	return l
}

func (l *Locker) setUp(opts []Option) error {
	if storekit.IsNil(l.api) {
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

// Acquire implements [lock.Locker]. Without contention it is one write.
func (l *Locker) Acquire(ctx context.Context, req lock.Request) (lock.Grant, error) {
	if err := lock.CheckRequest(req, l.Capabilities()); err != nil {
		return lock.Grant{}, err
	}
	begun := time.Now()
	if err := l.ready(ctx); err != nil {
		return lock.Grant{}, err
	}
	a := l.acquisition(req)
	var g lock.Grant
	var err error
	if req.Wait {
		g, err = a.wait(ctx, begun)
	} else {
		err = storekit.WithinPatienceSince(ctx, begun, func(ctx context.Context) error {
			g, err = a.try(ctx, false)
			return err
		})
		err = storekit.Tried(ctx, req, err, a.doubt, l.undo)
	}
	if err != nil && req.Wait && !storekit.OwnerIsReused(ctx) && !a.doubt && len(a.sent) == 0 && !a.announced {
		l.settled.Add(req.Owner)
	}
	return g, err
}

// Renew implements [lock.Locker]. It is one write. If a grant's time is over by DynamoDB's
// clock, the grant is lost, even if nobody has taken the lock since.
func (l *Locker) Renew(ctx context.Context, g lock.Grant) (lock.Grant, error) {
	if err := storekit.CheckRenewal(g); err != nil {
		return lock.Grant{}, err
	}
	if err := l.usable(ctx); err != nil {
		return lock.Grant{}, err
	}
	r := &renewal{l: l, g: g, sent: make(map[int64]moment, 1)}
	if err := l.repeat(ctx, r.try); err != nil {
		return lock.Grant{}, err
	}
	return r.g, nil
}

// Release implements [lock.Locker]. It is one write. Without a token it is a read and a write,
// or nothing if the owner's wait has left nothing in the table. The item stays.
func (l *Locker) Release(ctx context.Context, g lock.Grant) error {
	if err := l.check(ctx, g); err != nil {
		return err
	}
	if g.Token == 0 {
		if l.settled.Take(g.Owner) {
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

// check is what the calls that end a grant do first.
func (l *Locker) check(ctx context.Context, g lock.Grant) error {
	if err := lock.CheckGrant(g); err != nil {
		return err
	}
	return l.usable(ctx)
}

// ready checks the Locker itself and its table.
func (l *Locker) ready(ctx context.Context) error {
	if err := l.usable(ctx); err != nil {
		return err
	}
	if l.fitness.sure.Load() {
		return nil
	}
	return l.checkFitness(ctx)
}

// usable checks the Locker itself. That is all for calls about a grant that is in the table already: to
// refuse them would leave it there, whatever is wrong with the table.
func (l *Locker) usable(ctx context.Context) error {
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
	return nil
}

// Close ends this Locker's waits with ErrClosed. All later calls return ErrClosed. It does not
// close the client. Grants remain until their TTL expires, unless another Locker releases them.
// Close is idempotent and returns at once.
func (l *Locker) Close() error {
	if l != nil && l.shut != nil {
		l.shut()
	}
	return nil
}

// ErrUnfit says that a table cannot hold locks: its key is wrong, or DynamoDB's TTL is on for an
// attribute of the locks. It comes wrapped in an error that says which.
var ErrUnfit = errors.New("lock: dynamo: unfit table")
