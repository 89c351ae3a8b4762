// Package etcd keeps locks in etcd 3.6 or newer, a single member or a cluster.
//
//	cli, err := clientv3.New(clientv3.Config{
//		Endpoints:         endpoints,
//		DialKeepAliveTime: 10 * time.Second, DialKeepAliveTimeout: 3 * time.Second,
//	})
//	…
//	client := lock.New(etcd.New(cli))
//
// # What it survives
//
// A grant is a key under an etcd lease. It is decided by one transaction, which a majority
// of the members has on disk before it is answered: the oldest key of a lock holds it, and
// its create revision is the token. So a live grant stays exclusive, and tokens rise, over
// the loss of any minority of members, the leader included, and over a restart of all.
//
// # What breaks it
//
// A cluster without a majority answers nothing: leases end at their local deadline. Keys
// that are deleted by hand, or go with a lease that is revoked by hand, are grants lost; the
// holder is told at once. Restoring a backup moves revisions back, and with them the tokens:
// restore with etcdutl's --bump-revision and --mark-compacted, by more than was written
// since. Each change of leader starts the TTL of every etcd lease anew, so a dead holder may
// block for up to a TTL longer; Capabilities.ExpirySlack allows for one such change, see
// [WithMaxTTL].
//
// A write of the client library may rarely be sent twice (when a proxy in between cancels
// it): an acquisition is then still one grant, a release may be told as ErrLost.
//
// # Waiting
//
// Waiters stand in line in order of arrival. The last in line has its name in a key of its own,
// the tail, so lining up costs the same however long the line is. After every wait a linearizable
// transaction verifies that the own key is there and first. A Locker has one watch, of the
// deletions from the first to the last lock that it waits for or has held for some time: Lockers
// with unrelated locks that change hands often had better have prefixes of their own. A wake-up
// that is lost costs a recheck: every third of the heartbeat of min(TTL, 5 s), and every tenth
// from then on until the watch tells something again. When a grant is released whose successor
// waits in the same process, one transaction does both. Once in line, a wait goes on through
// errors of the cluster for lock.Patience.
//
// What a failed acquisition left, or a grant whose release has failed, is pruned by its Locker,
// at most once a second. If a late request may yet create its key, a tombstone refuses that for
// two minutes. Deletions are all that needs, so a server that has run out of space does it too.
//
// # What an operator may delete
//
// Any key under the prefix, at any time: a holder is told, a waiter lines up again. The marks of
// a [Fence], under "fence/", only when no holder of an older token can still be running.
//
// # A member that stops
//
// A member that is frozen, or cut off without a word, keeps its connections open, and what is
// sent to it is not answered. The Locker sends a copy of all that it needs for an acquire, a wait
// or a release after a quarter of the TTL, 1.25 s at most, while ctx lives and for 30 s: the client
// asks its members in turn, so another gets it. A renewal, which is not to be late, sends one
// after a sixteenth of the TTL, 0.3 s at most. The first answer counts. One request in so many as
// there are members takes that much longer, until the client gives the connection up. That it does
// only if its Config says so:
//
//	DialKeepAliveTime:    10 * time.Second, // after which a silent connection is tried
//	DialKeepAliveTimeout: 3 * time.Second,  // after which it is given up
//
// Set both. gRPC makes 10 s of a shorter DialKeepAliveTime. Until the connection is given up
// watches on that member keep silent too: a forced release is told at the next renewal only, and
// a wake-up costs a recheck.
//
// # Cost
//
// An uncontended acquire is one transaction and a release another. Those of concurrent callers
// travel together, as parts of one. A Locker has one etcd
// lease for each distinct TTL in whole seconds; a TTL for which none is alive costs one
// request more. A renewal is a keepalive, shared by all grants of that TTL, and one
// linearizable read of the own key. Leases are kept alive by renewals, acquisitions and
// waiters, and never on their own: a grant that is not renewed is deleted at its end by its
// own Locker, even if others under the same etcd lease are renewed.
// An idle lock costs no goroutine and half a kilobyte. Keepalives go by one stream.
//
// # Moving
//
// etcd's tokens are revisions, far below those of other stores, and a fence that has seen one of
// theirs refuses all of etcd's. Stop all holders, and give every Locker [WithTokenBase] with the
// newest token that the old store has granted, or that the fences' marks show. To move a mark into
// a [Fence], call its Do with that token and no operations.
//
// With etcd's authentication a role needs read and write permission for all keys that begin
// with the prefix.
package etcd

import (
	"context"
	"fmt"
	"sync"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/internal/storekit"
)

var (
	_ lock.Locker = (*Locker)(nil)
	_ lock.Admin  = (*Locker)(nil)
)

// Locker keeps locks in etcd. It is safe for concurrent use. Close it before its client.
type Locker struct {
	cli    *clientv3.Client
	prefix string
	maxTTL time.Duration
	base   lock.Token
	stable bool  // ExpirySlack leaves changes of leader out
	err    error // of an option; returned by every call

	writes, reads lane
	leaser        func() pb.LeaseClient
	beats         beats

	mu       sync.Mutex // guards the rest, and what it points to
	names    names
	byOwner  map[string]*hold
	byName   map[string]*hold
	behind   map[string][]*acquisition // who waits for an entry
	lines    map[string]*line          // by base
	leases   map[int64]*lease          // by TTL in seconds, as asked for
	granting map[int64]*call           // likewise
	watch    watch
	ticker   *time.Timer
	ticking  bool

	ctx    context.Context // ends with Close, or with the client
	cancel context.CancelFunc
	life   sync.Mutex // guards closed, and wg.Add against wg.Wait; taken after mu
	closed bool
	wg     sync.WaitGroup // of what spawn started
}

// Option sets up a [Locker].
type Option func(*Locker) error

// WithPrefix sets what the names of all keys begin with. Default "lock/". Lockers with the
// same prefix on the same cluster share their locks. An empty prefix is refused.
func WithPrefix(prefix string) Option {
	return func(l *Locker) error {
		if prefix == "" {
			return fmt.Errorf("%w: etcd: prefix is empty: the whole keyspace is not for locks", lock.ErrInvalid)
		}
		l.prefix = prefix
		return nil
	}
}

// WithMaxTTL sets the longest TTL that is accepted; a longer one is ErrInvalid. At least
// 1 s, default 1 min. It bounds how long a change of leader may keep a dead holder's grant,
// and is part of Capabilities.ExpirySlack for that reason.
func WithMaxTTL(d time.Duration) Option {
	return func(l *Locker) error {
		if d < minTTL {
			return fmt.Errorf("%w: etcd: max TTL %v: must be at least %v", lock.ErrInvalid, d, minTTL)
		}
		l.maxTTL = d
		return nil
	}
}

// WithTokenBase adds base to all tokens. Default 0: a token is a revision of etcd. All Lockers with
// the same prefix must have the same base. See "Moving" above.
func WithTokenBase(base lock.Token) Option {
	return func(l *Locker) error {
		if base > lock.MaxToken/2 {
			return fmt.Errorf("%w: etcd: token base %d: must be at most %d", lock.ErrInvalid, base, lock.MaxToken/2)
		}
		l.base = base
		return nil
	}
}

// New returns a Locker on cli, doing no I/O. A nil client or a bad option is an error that
// every call returns. cli stays the caller's to close. Give it DialKeepAliveTime and
// DialKeepAliveTimeout, 10 s and a few: see "A member that stops" above.
func New(cli *clientv3.Client, opts ...Option) *Locker {
	l := &Locker{cli: cli, prefix: "lock/", maxTTL: time.Minute}
	l.writes.stuck, l.reads.stuck = batchStuck, batchStuck
	l.err = l.setUp(opts)
	parent := context.Background()
	if l.err == nil {
		parent = cli.Ctx()
	}
	l.ctx, l.cancel = context.WithCancel(parent)
	l.names.process = storekit.ProcessName()
	l.writes.l, l.reads.l, l.beats.l = l, l, l
	l.leaser = func() pb.LeaseClient { return pb.NewLeaseClient(cli.ActiveConnection()) }
	l.byOwner, l.byName = make(map[string]*hold), make(map[string]*hold)
	l.behind, l.lines = make(map[string][]*acquisition), make(map[string]*line)
	l.leases, l.granting = make(map[int64]*lease), make(map[int64]*call)
	return l
}

func (l *Locker) setUp(opts []Option) error {
	for _, o := range opts {
		if o == nil {
			return fmt.Errorf("%w: etcd: option is nil", lock.ErrInvalid)
		}
		if err := o(l); err != nil {
			return err
		}
	}
	if l.cli == nil || l.cli.ActiveConnection() == nil {
		return fmt.Errorf("%w: etcd: client is nil or has no connection", lock.ErrInvalid)
	}
	return nil
}

const (
	// minTTL is etcd's granularity. A server whose election timeout is above 667 ms
	// grants more: one and a half of them.
	minTTL = time.Second
	// expirySlack is for the leader's look at its leases every 500 ms, and the write that
	// ends one.
	expirySlack = 1500 * time.Millisecond
	// electionSlack is how long a cluster may be without a leader, which then starts all
	// TTLs anew.
	electionSlack = 2 * time.Second
)

// Capabilities implements [lock.Locker].
func (l *Locker) Capabilities() lock.Capabilities {
	c := lock.Capabilities{
		Store: "etcd", Shared: true, FIFO: true, Push: true, EarlyLoss: true,
		MinTTL: minTTL, ExpirySlack: expirySlack,
		TokenSurvives: lock.SurvivesRelease | lock.SurvivesExpiry | lock.SurvivesRestart | lock.SurvivesFailover,
		HoldSurvives:  lock.SurvivesRelease | lock.SurvivesExpiry | lock.SurvivesRestart | lock.SurvivesFailover,
	}
	if l != nil && !l.stable {
		c.ExpirySlack += l.maxTTL + electionSlack
	}
	return c
}

// Acquire implements [lock.Locker]. TTLs round up to seconds, and to the shortest that the
// server grants; a grant may be told up to a quarter of its TTL shorter, since the etcd
// lease is shared.
func (l *Locker) Acquire(ctx context.Context, req lock.Request) (lock.Grant, error) {
	if err := l.ready(ctx, lock.CheckRequest(req, l.Capabilities())); err != nil {
		return lock.Grant{}, err
	}
	if err := l.checkTTL(req.TTL); err != nil {
		return lock.Grant{}, err
	}
	a := l.acquisition(req)
	g, err := lock.Grant{}, error(nil)
	if req.Wait {
		g, err = a.wait(ctx)
	} else {
		err = l.within(ctx, func(ctx context.Context) (err error) {
			g, err = a.try(ctx)
			return err
		})
	}
	if err != nil {
		l.failed(a.h, a.doubt)
		return lock.Grant{}, l.fail(ctx, err)
	}
	return g, nil
}

func (l *Locker) checkTTL(ttl time.Duration) error {
	if ttl > l.maxTTL {
		return fmt.Errorf("%w: TTL %v: above the longest, %v: see etcd.WithMaxTTL", lock.ErrInvalid, ttl, l.maxTTL)
	}
	return nil
}

// ready is what every call does first. invalid is what is wrong with its arguments.
func (l *Locker) ready(ctx context.Context, invalid error) error {
	switch {
	case l == nil || l.ctx == nil:
		return errNotNew
	case l.err != nil:
		return l.err
	case invalid != nil:
		return invalid
	case l.ctx.Err() != nil:
		return l.over()
	}
	return ctx.Err()
}

// tokenOf is the token of an entry that was created at revision rev.
func (l *Locker) tokenOf(rev int64) lock.Token { return l.base + lock.Token(rev) }

// revisionOf is tokenOf's inverse; no entry has that of a token below the base.
func (l *Locker) revisionOf(t lock.Token) int64 { return int64(t) - int64(l.base) }

// over says why nothing can be sent any more.
func (l *Locker) over() error {
	l.life.Lock()
	defer l.life.Unlock()
	if l.closed {
		return lock.ErrClosed
	}
	return errClientClosed
}

// spawn runs f beside the caller, and reports whether the Locker is open. Close waits for f,
// which must end promptly when l.ctx does.
func (l *Locker) spawn(f func()) bool {
	l.life.Lock()
	defer l.life.Unlock()
	if l.closed {
		return false
	}
	l.wg.Go(f)
	return true
}

// Close ends this Locker's waits with ErrClosed, its watches and its timers. It leaves the
// client and the grants alone: those end with their etcd lease, unless another Locker
// releases or renews them. It is idempotent and waits for no server.
func (l *Locker) Close() error {
	if l == nil || l.ctx == nil {
		return errNotNew
	}
	l.life.Lock()
	l.closed = true
	l.life.Unlock()
	l.cancel()
	l.mu.Lock()
	if l.ticker != nil {
		l.ticker.Stop()
	}
	l.mu.Unlock()
	l.wg.Wait()
	return nil
}
