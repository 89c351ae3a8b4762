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
// A grant is a key under an etcd lease. One transaction decides it: the oldest key of a lock
// holds the lock, and that key's create revision is the token. A majority of the members has the
// transaction on disk before it is answered. So a live grant stays exclusive, and tokens rise,
// when any minority of members is lost, the leader included, and when all restart.
//
// # What breaks it
//
// A cluster without a majority answers nothing: leases end at their local deadline. If somebody
// deletes a key by hand, or revokes its lease, that grant is lost, and its holder is told at
// once. A restored backup moves revisions back, and with them the tokens: restore with etcdutl's
// --bump-revision and --mark-compacted, by more than was written since. Each change of leader
// restarts the TTL of every etcd lease, so a dead holder may block for up to one TTL longer.
// Capabilities.ExpirySlack allows for one such change; see [WithMaxTTL].
//
// In rare cases the client library sends a write twice (when a proxy in between cancels it). An
// acquisition is then still one grant; a release may return ErrLost.
//
// # Waiting
//
// Waiters stand in line in order of arrival. A key of its own, the tail, has the name of the
// last in line, so lining up costs the same however long the line is. After every wait, a
// linearizable transaction verifies that the waiter's own key is there and first.
//
// A Locker has one watch. It covers the deletions from the first to the last key of the locks
// that the Locker waits for or has held for some time. So if unrelated locks change hands often,
// give their Lockers different prefixes. A lost wake-up costs a recheck. Waiters recheck every
// third of the heartbeat, min(TTL, 5 s), and every tenth after a lost wake-up until the watch
// delivers again. If the next waiter is in the releasing process, one transaction releases the
// key and grants it. Once in line, a wait goes on through errors of the cluster for
// lock.Patience.
//
// The Locker prunes what a failed acquisition or release left behind. If a late request may still
// create its key, a tombstone refuses that request for two minutes or longer. Pruning needs only
// deletions, which a server accepts even when it has run out of space.
//
// # Cost
//
// An uncontended acquire is one transaction, and so is a release. Concurrent callers share
// transactions. A Locker has one etcd lease for each distinct TTL in whole seconds; the first
// grant with a TTL costs one more request. A renewal is one linearizable read of the grant's key
// and a keepalive, which all grants of that TTL share. All keepalives use one stream.
//
// Renewals, acquisitions and waiters keep an etcd lease alive, and so does a renewal that was given up
// for as long as it may take effect; nothing else does. If a grant is not renewed, its own Locker
// deletes it at its end, even if others under the same etcd lease are renewed. An idle lock costs
// half a kilobyte and no goroutine.
//
// # What it needs
//
// With authentication, the etcd role needs read and write permission for all keys that begin
// with the prefix. A [Fence] needs it for those that begin with "fence/", and for the keys that
// it guards.
//
// # What an operator may delete
//
// Any key under the prefix, at any time: a holder is told, a waiter lines up again. The marks of
// a Fence, under "fence/", only when no holder of an older token can still be running.
//
// # A member that stops
//
// A leader that stops for longer than the shortest TTL and comes back, such as a suspended machine, may
// end etcd leases that are alive: it takes them for expired, and its requests to end them go to the new
// leader (seen with etcd 3.6.14; see etcd issue 15247). The holders are told at once, and somebody else may have
// the lock in the same moment. Fence the writes that must not overlap.
//
// A member that is frozen or silently cut off keeps its connections open and answers nothing. So
// the Locker repeats a request that goes unanswered. The client asks its members in turn, so
// another member gets the copy; the first answer counts. Copies of a release follow after 1.25 s,
// those of an acquire or a wait after a quarter of the TTL if that is less. A renewal must not be
// late, so its copies follow after each sixteenth of the TTL, at most 0.3 s. After three, copies
// become rarer. The Locker repeats while ctx lives, for at most 30 s. If one of three members is
// frozen, one request in three is that much slower until the client gives the connection up. The
// client does so only if its Config says so:
//
//	DialKeepAliveTime:    10 * time.Second, // after which a silent connection is tried
//	DialKeepAliveTimeout: 3 * time.Second,  // after which it is given up
//
// Set both. gRPC raises a shorter DialKeepAliveTime to 10 s. Until the client gives the
// connection up, watches on that member keep silent too: a holder learns of a forced release at
// its next renewal, a wake-up costs a recheck, and Client.Watch sees a change only when a
// holder's TTL is over.
//
// # Moving
//
// etcd's tokens are revisions, far below the tokens of other stores. A fence that has seen a
// token of another store refuses all of etcd's. So stop all holders, and give every Locker
// [WithTokenBase] with a number that no token of the old store exceeds: see docs/fencing.md. To move
// a mark into a Fence, call [Fence.Do] with the mark's token and no operations.
package etcd

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/internal/storekit"
)

var (
	_ lock.Locker  = (*Locker)(nil)
	_ lock.Admin   = (*Locker)(nil)
	_ lock.Watcher = (*Locker)(nil)
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
	byOwner  map[id]*hold // the last of each
	byName   map[string]*hold
	behind   map[string][]*acquisition   // who waits for an entry
	lines    map[string]*line            // by base
	leases   map[int64]*lease            // by TTL in seconds, as asked for; 0: that of the tombstones
	granting map[int64]*call             // likewise
	own      map[clientv3.LeaseID]*lease // all that the server may have yet; what is under others is another Locker's
	watch    watch
	ticker   *time.Timer
	ticking  bool

	pruneFailures int       // in a row: while there are some, one is tried for all
	pruneAgain    time.Time // not before

	ctx    context.Context // ends with Close, or with the client
	cancel context.CancelFunc
	life   sync.Mutex // guards closed, and wg.Add against wg.Wait; taken after mu
	closed bool
	wg     sync.WaitGroup // of what spawn started
}

// Option sets up a [Locker].
type Option func(*Locker) error

// WithPrefix sets what the names of all keys begin with. Lockers with the same prefix on the
// same cluster share their locks. Otherwise neither prefix may begin with the other: with "app/" and
// "app/jobs/", what has a lock of the latter may block the lock "jobs" of the former. An empty prefix is
// ErrInvalid. Default "lock/".
func WithPrefix(prefix string) Option {
	return func(l *Locker) error {
		if prefix == "" {
			return fmt.Errorf("%w: etcd: prefix is empty: locks must not use the whole keyspace", lock.ErrInvalid)
		}
		l.prefix = prefix
		return nil
	}
}

// WithMaxTTL sets the longest TTL that is granted, at least 1 s; a longer TTL is cut to it. It
// is part of Capabilities.ExpirySlack, since a change of leader may keep a dead holder's grant
// for as long. Default 1 min.
func WithMaxTTL(d time.Duration) Option {
	return func(l *Locker) error {
		if d < minTTL {
			return fmt.Errorf("%w: etcd: max TTL %v: must be at least %v", lock.ErrInvalid, d, minTTL)
		}
		l.maxTTL = d
		return nil
	}
}

// WithTokenBase adds base, at most half of lock.MaxToken, to all tokens. All Lockers with the
// same prefix must have the same base. See "Moving" above. Default 0: a token is a revision of
// etcd.
func WithTokenBase(base lock.Token) Option {
	return func(l *Locker) error {
		if base > lock.MaxToken/2 {
			return fmt.Errorf("%w: etcd: token base %d: must be at most %d", lock.ErrInvalid, base, lock.MaxToken/2)
		}
		l.base = base
		return nil
	}
}

// New returns a Locker on cli. It does no I/O. Every call returns an error if cli is nil or an
// option is bad. cli stays the caller's to close. Give it a DialKeepAliveTime of 10 s and a
// DialKeepAliveTimeout of a few seconds: see "A member that stops" above.
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
	l.byOwner, l.byName = make(map[id]*hold), make(map[string]*hold)
	l.behind, l.lines = make(map[string][]*acquisition), make(map[string]*line)
	l.leases, l.granting = make(map[int64]*lease), make(map[int64]*call)
	l.own = make(map[clientv3.LeaseID]*lease)
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
// server grants; a TTL above that of [WithMaxTTL] is cut to it. A grant may be up to a quarter
// of its TTL shorter, since the etcd lease is shared, and up to half while keepalives fail.
func (l *Locker) Acquire(ctx context.Context, req lock.Request) (lock.Grant, error) {
	if err := l.ready(ctx, lock.CheckRequest(req, l.Capabilities())); err != nil {
		return lock.Grant{}, err
	}
	req.TTL = min(req.TTL, l.maxTTL)
	if g := l.already(req); g.Token != 0 {
		if g, err := l.Renew(ctx, g); !errors.Is(err, lock.ErrLost) {
			return g, err
		}
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
		l.failed(a.h)
		return lock.Grant{}, l.fail(ctx, err)
	}
	return g, nil
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

// Close ends this Locker's waits with ErrClosed, its watches and its timers. It does not close
// the client. Grants remain until their etcd lease expires, unless another Locker releases or
// renews them. Close is idempotent and waits for no server.
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
