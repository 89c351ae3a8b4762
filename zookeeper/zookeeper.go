// Package zookeeper keeps locks in ZooKeeper 3.8 or newer, a single server or an ensemble.
//
//	d := zookeeper.NewDialer(10*time.Second, nil)
//	conn, _, err := zk.Connect(servers, 10*time.Second, zk.WithDialer(d.Dial))
//	client := lock.New(zookeeper.New(conn, zookeeper.WithDialer(d)))
//
// A lock is a container node with one ephemeral sequential node for each holder and waiter. A
// token is the czxid of that node, the number of the transaction that created it. Tokens rise
// for as long as the ensemble lives, whatever happens to the nodes.
//
// # The session is the lease
//
// A dead process keeps its locks until the server expires its session. The client asks for a
// session timeout, and the server decides; the [Dialer] learns the result. A TTL is honored up
// to [Locker.MaxTTL], two thirds of the session timeout less a tick. A longer TTL is cut to
// that, and the grant must be renewed within it. If a living process does not renew a grant, its
// Locker deletes the node after the TTL. If the process dies, the key passes only when its
// session expires, however short the TTL. So set a short session timeout, not a short TTL, if
// keys of dead holders must pass soon.
//
// The rest of the session timeout cannot be granted. A follower tells the leader only twice a
// tick which sessions live, and a write through it does not tell. If the follower is cut off,
// the leader counts the session's timeout from the last ping it was told of. The client pings
// every third of the timeout.
//
// # What it survives
//
// A majority has a write on disk before the write is acknowledged. Grants and tokens survive the
// restart of a server and the loss of a minority, the leader included. A lease survives if the
// client finds a working server before the lease ends: see [Dialer]. Renewals are writes. So a
// server that is cut off from its leader, and does not know it yet, cannot prolong a lease by
// answering pings.
//
// An election usually takes less than a second. But on a slow machine a follower may not find
// its new leader listening yet, and goes back to vote. That leader gives up only after initLimit
// ticks, 20 s in the usual configuration, which is longer than the usual lease. Servers give up
// sooner if run with -Dzookeeper.leader.maxTimeToWaitForEpoch=2000.
//
// When the session expires, all its grants are lost, the Locker calls Request.Lost, and waiters
// line up again. The Locker goes on with the client's next session.
//
// # What breaks it
//
//   - Without a Dialer: a session timeout shorter than [WithSessionTimeout] says. That happens
//     when zk.Connect asks for more than the server's maxSessionTimeout.
//   - Servers with different limits of the session timeout.
//   - A server without forceSync that loses power.
//   - A restored backup, which also sets tokens back.
//   - A leader, or the client's own process, that stands still for long and then at once loses
//     its connection.
//
// A token tells a late holder apart: write to fenced resources ([Fence] for nodes).
//
// # Waiting
//
// Waiters stand in line in the order of arrival, and each watches only the one in front of it.
// Within one Locker a release hands over in its own round trip. Otherwise the next waiter gets
// an event, reads the line and verifies its node by a write. A lost event costs a recheck:
// waiters recheck every third of min(TTL, 5 s), and every tenth while events are seen not to
// arrive. A request that lines up behind others of its own Locker reads nothing, however long
// the line. Behind another Locker's it reads all names in line, some 50 bytes each.
//
// Every call outlives a broken connection. If there is no server, a call ends with
// zk.ErrNoServer after some seconds; a waiter goes on for [lock.Patience].
//
// # Cost
//
// Without contention an acquire, a renewal and a release are one write each. A refused try is
// two writes and two reads, and one read more if the holder did not wait either. A key that this
// Locker has not used lately costs one write more, for its container. Concurrent calls of a Locker
// share writes, except that each write brings one node of a key: a thousand waiters of one Locker for
// one key line up in a thousand round trips.
//
// ZooKeeper removes empty containers, but at most 10,000 a minute, so above 165 new keys a
// second they would pile up. So each Locker deletes the containers that it created and has not
// used for the last 4,096 to 8,192 keys.
//
// An idle held lock costs 2 KB. Each 64 of them cost a goroutine, because zk.Conn reports the
// end of each node on a channel of its own.
//
// # Limits
//
// The server numbers the nodes of a container with 31 bits. It begins anew only after the container
// was empty for a while and it has removed it. A key that always has a holder or a waiter runs out after
// 2^31 acquires: at 960 hand-overs a second, after 26 days. Then its Acquires fail, with an error
// that says so, until those in line have been served. The Lockers then delete the container, and
// the key works again.
//
// All holders and waiters of a Locker are nodes of one session, and the end of that is one
// transaction with their paths. A server could not read one of 2 MiB again, and would not start any
// more. So a Locker takes no more than 768 KiB, a Client's 11,000 holders and waiters with keys of
// 16 bytes, and then refuses with [ErrFull]. A byte other than A-Z, a-z, 0-9, "-", "_" and ":" counts
// three times. Lockers that share a connection, and other ephemeral nodes of it, add up.
//
// # What it needs
//
// The connection needs the rights to create, read, write and delete on the root and everything
// below. If the root does not exist, it also needs the right to create it. A [Fence] needs the
// rights to create, read and write below "/fence", and those for the nodes that it guards.
//
// # What an operator may delete
//
// Any node below the root, and the root as well. A holder whose node is
// gone is told at once, though no sooner than 0.2 s after its grant. A waiter lines up again.
// Tokens still rise. Nobody may delete the marks of a [Fence].
package zookeeper

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/go-zookeeper/zk"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/internal/storekit"
)

var (
	_ lock.Locker  = (*Locker)(nil)
	_ lock.Admin   = (*Locker)(nil)
	_ lock.Watcher = (*Locker)(nil)
)

// Locker keeps locks in ZooKeeper. It is safe for concurrent use. Close it before its
// connection. Closing the connection ends the session: grants are lost, and waits and calls end
// with [lock.ErrClosed].
type Locker struct {
	conn    *zk.Conn
	root    string
	acl     []zk.ACL
	timeout time.Duration // the session's, as far as it is known from the first
	dialer  *Dialer       // if not nil, knows what the server says of it
	tick    time.Duration // the server's
	base    lock.Token    // of all tokens
	err     error         // of an option; returned by every call

	lane     *lane
	parents  parents
	deaf     atomic.Bool // a node that was watched has gone, and no event has come since
	armed    armed
	begin    sync.Once // starts what watches the session
	done     context.Context
	shutDown context.CancelCauseFunc // with what calls return from then on

	registry
}

// New returns a Locker on conn. It does no I/O. Every call returns an error if conn is nil, an
// option is bad, or no option gives the session timeout. conn stays the caller's to close, and
// may be used for other things. Give each Locker a connection of its own, though: two Lockers on
// one connection share its session, so if one stops, the other keeps its grants alive.
func New(conn *zk.Conn, opts ...Option) *Locker {
	l := &Locker{conn: conn, root: "/lock", acl: zk.WorldACL(zk.PermAll), tick: 2 * time.Second}
	l.err = l.setUp(opts)
	l.lane = &lane{conn: conn, hurry: make(chan struct{}, 1)}
	l.parents.size = maxParents
	l.prepare()
	l.done, l.shutDown = context.WithCancelCause(context.Background())
	return l
}

const minTTL = 10 * time.Millisecond

// tokenOf is the token of a node that was created by the transaction czxid.
func (l *Locker) tokenOf(czxid int64) lock.Token { return l.base + lock.Token(czxid) }

// MaxTTL returns the longest TTL that is granted: two thirds of the session timeout, less a
// tick. With a [Dialer], it becomes shorter once the server has granted a shorter session
// timeout than the client asked for.
func (l *Locker) MaxTTL() time.Duration {
	if l == nil || l.done == nil {
		return 0
	}
	return l.mostOf(l.sessionTimeout())
}

// mostOf is what may be granted of a session.
func (l *Locker) mostOf(timeout time.Duration) time.Duration { return timeout*2/3 - l.tick }

// sessionTimeout is what is known of the session by now.
func (l *Locker) sessionTimeout() time.Duration {
	if l.dialer != nil && l.conn != nil {
		if granted, ok := l.dialer.granted(l.conn.SessionID()); ok {
			return min(l.timeout, granted)
		}
	}
	return l.timeout
}

// short is the error of a session that leaves nothing to grant, or of which it is not known what
// it leaves.
func (l *Locker) short() error {
	if l.dialer != nil {
		id := l.conn.SessionID()
		if _, ok := l.dialer.granted(id); !ok && id != 0 {
			return fmt.Errorf("%w: zookeeper: the Dialer did not make the connection: pass its Dial to zk.Connect with zk.WithDialer", lock.ErrInvalid)
		}
	}
	timeout := l.sessionTimeout()
	if l.mostOf(timeout) >= minTTL {
		return nil
	}
	return fmt.Errorf("lock: zookeeper: the server has granted a session timeout of %v: with a tick of %v that leaves no TTL",
		timeout, l.tick)
}

// Capabilities implements [lock.Locker].
func (l *Locker) Capabilities() lock.Capabilities {
	if l == nil {
		l = new(Locker)
	}
	return lock.Capabilities{
		Store: "zookeeper", Shared: true, FIFO: true, Push: true, EarlyLoss: true,
		MinTTL: minTTL,
		// The session of a process that dies expires at the first tick after its timeout,
		// counted by the leader from when another server has told it of the last ping.
		ExpirySlack: l.timeout + 2*l.tick,
		TokenSurvives: lock.SurvivesRelease | lock.SurvivesExpiry | lock.SurvivesRecordLoss |
			lock.SurvivesRestart | lock.SurvivesFailover,
		HoldSurvives: lock.SurvivesRelease | lock.SurvivesExpiry | lock.SurvivesRestart | lock.SurvivesFailover,
	}
}

// Acquire implements [lock.Locker]. See "The session is the lease" above for what a TTL means. It
// returns [ErrFull] at once, also with Wait, when this Locker has too many holders and waiters.
func (l *Locker) Acquire(ctx context.Context, req lock.Request) (lock.Grant, error) {
	if err := l.ready(ctx, lock.CheckRequest(req, l.Capabilities())); err != nil {
		return lock.Grant{}, err
	}
	if err := l.short(); err != nil {
		return lock.Grant{}, err
	}
	a, err := l.enroll(req)
	if err != nil {
		return lock.Grant{}, err
	}
	var g lock.Grant
	if req.Wait {
		g, err = a.wait(ctx)
	} else {
		err = storekit.WithinPatience(ctx, func(ctx context.Context) (err error) {
			g, err = a.try(ctx)
			return err
		})
	}
	if err == nil {
		g, err = l.hold(a.c, g.Start)
	}
	if err != nil {
		l.abandon(a)
		return lock.Grant{}, l.explain(req.Key, err)
	}
	return g, nil
}

// Renew implements [lock.Locker]. Call it on the Locker that acquired: the grant belongs to its
// session.
func (l *Locker) Renew(ctx context.Context, g lock.Grant) (lock.Grant, error) {
	if err := l.ready(ctx, storekit.CheckRenewal(g)); err != nil {
		return lock.Grant{}, err
	}
	var renewed lock.Grant
	err := storekit.WithinPatience(ctx, func(ctx context.Context) (err error) {
		renewed, err = l.renew(ctx, g)
		return err
	})
	return renewed, l.explain(g.Key, err)
}

// Release implements [lock.Locker].
func (l *Locker) Release(ctx context.Context, g lock.Grant) error {
	if err := l.ready(ctx, lock.CheckGrant(g)); err != nil {
		return err
	}
	return l.explain(g.Key, storekit.WithinPatience(ctx, func(ctx context.Context) error {
		if g.Token == 0 {
			return l.undo(ctx, g.Key, g.Owner)
		}
		c, again, ok := l.letGo(g)
		if !ok {
			return l.releaseOther(ctx, g)
		}
		return l.release(ctx, c, again)
	}))
}

// errNotNew is told by what New has not made.
var errNotNew = fmt.Errorf("%w: zookeeper: the Locker was not made by New", lock.ErrInvalid)

// ready is what every call does first. invalid is what is wrong with its arguments.
func (l *Locker) ready(ctx context.Context, invalid error) error {
	switch {
	case l == nil || l.done == nil:
		return errNotNew
	case l.err != nil:
		return l.err
	case invalid != nil:
		return invalid
	case l.done.Err() != nil:
		return context.Cause(l.done)
	case ctx.Err() != nil:
		return ctx.Err()
	}
	l.begin.Do(func() { go l.watchSession() })
	return nil
}

// Close ends this Locker's waits with ErrClosed. It does not close the connection. Grants remain
// until their TTL expires, or the session ends if that is sooner. Close is idempotent and waits
// for no server.
func (l *Locker) Close() error {
	if l == nil || l.done == nil {
		return errNotNew
	}
	l.shutDown(lock.ErrClosed)
	return nil
}
