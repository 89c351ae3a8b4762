// Package zookeeper keeps locks in ZooKeeper 3.8 or newer, a single server or an ensemble.
//
//	d := zookeeper.NewDialer(10*time.Second, nil)
//	conn, _, err := zk.Connect(servers, 10*time.Second, zk.WithDialer(d.Dial))
//	client := lock.New(zookeeper.New(conn, zookeeper.WithDialer(d)))
//
// A lock is a container node with one ephemeral sequential node for each holder and waiter.
// Tokens are the czxid of that node, the number of the transaction that created it: they
// rise for as long as the ensemble lives, whatever happens to the nodes.
//
// # The session is the lease
//
// A dead process keeps its locks until the server expires its session. How long that takes
// the client asks for, and the server decides: the [Dialer] knows. Request.TTL is honored up to
// [Locker.MaxTTL], two thirds of the session timeout less a tick; a longer one is granted
// as that much, and is to be renewed in that time. A shorter one ends a grant that a living
// process does not renew, since the Locker then deletes the node; if the process dies the
// key passes with its session all the same. So a short session timeout, and not a short
// TTL, makes keys of dead holders pass soon.
//
// The rest of the session timeout is not ours to grant. A server that is not the leader
// tells the leader twice a tick which sessions live, and a write by way of it does not: if
// it is cut off, the session's time runs since the last of the pings, which the client
// sends at each third of the timeout, that had been told before.
//
// # What it survives
//
// A write is on the disks of a majority before it is acknowledged: grants and tokens
// survive the restart of a server and the loss of a minority, the leader included. A lease
// does if the client finds a server that serves before the lease's own end: see [Dialer].
// Renewals are writes, so a server that is cut off from its leader, and does not know it
// yet, cannot prolong a lease by answering pings.
//
// The election of a leader takes less than a second as a rule. But a follower that does not
// find its leader listening yet, as on a slow machine, goes back to vote, and that leader gives
// up only after initLimit ticks, 20 s in the usual configuration: longer than a lease of the
// usual session timeouts. Servers of 3.6 or newer give up sooner if they are run with
// -Dzookeeper.leader.maxTimeToWaitForEpoch=2000.
//
// When the session expires all its grants are lost,
// Request.Lost is called, waiters stand in line anew, and the Locker goes on with the new
// session that the client makes.
//
// # What breaks it
//
// Without a [Dialer], a session timeout that is shorter than [WithSessionTimeout] says, as
// after a zk.Connect with a longer one than the server's maxSessionTimeout; servers whose
// limits of it differ; a server without
// forceSync that loses power; a restored backup, which sets tokens back as well; a leader,
// or the client's own process, that stands still for long and then loses its connection at
// once. A token tells a late holder apart: write to fenced resources ([Fence] for nodes).
//
// # Waiting and cost
//
// Waiters stand in line in the order of arrival, and each watches the one in front of it
// only. Within one Locker a release hands over in its own round trip; among several the
// next waiter gets the event, looks at the line and verifies its node by a write. A lost
// event costs a look at each third of min(TTL, 5 s), or at each tenth while events are seen not
// to arrive. Who lines up behind others of its own Locker reads nothing, however long the line;
// among several Lockers it reads the names of all in line, some 50 bytes each.
//
// Every call outlives broken connections. Where there is no server an acquire that is not in
// line yet ends with zk.ErrNoServer when the client has found none twice, and all else
// after [lock.Patience].
//
// An uncontended acquire is one write, and so are a release and a renewal; a key that this
// Locker has not used lately costs one more, for its container. Concurrent calls of a
// Locker share writes. ZooKeeper removes containers that are empty, but no more than 10,000 a
// minute: above 165 new keys a second they would grow without end. So a Locker deletes, beside
// its calls, those that it has created and not used for the last 4,096 to 8,192 keys.
//
// An idle held lock costs 2 KB, and a goroutine for each 64 of them: zk.Conn tells of a node's
// end on a channel of that node's own.
//
// # What it needs
//
// Rights: create, read, write and delete on the root and on what is below it, and create on the
// node above the root if that is to be made.
//
// An operator may delete any node below the root, and the root as well: a holder whose node is
// gone is told at once, or a fifth of a second after its grant if that is later, a waiter lines
// up anew, and tokens rise all the same. Nobody may delete the marks of a [Fence].
package zookeeper

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/go-zookeeper/zk"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/internal/storekit"
)

var (
	_ lock.Locker = (*Locker)(nil)
	_ lock.Admin  = (*Locker)(nil)
)

// Locker keeps locks in ZooKeeper. It is safe for concurrent use. Close it before its
// connection.
type Locker struct {
	conn    *zk.Conn
	root    string
	acl     []zk.ACL
	timeout time.Duration // the session's, as far as it is known from the first
	dialer  *Dialer       // if not nil, knows what the server says of it
	tick    time.Duration // the server's
	base    lock.Token    // of all tokens
	err     error         // of an option; returned by every call

	lane    *lane
	parents parents
	deaf    atomic.Bool // a node that was watched has gone, and no event has come since
	// busy has the keys that a try found held a moment ago. The next try looks at the line
	// before it stands in it: that costs reads instead of writes if the key is held still. A
	// wrong guess costs a round trip, and nothing else.
	busy     *storekit.Recent
	keeper   keeper
	begin    sync.Once // starts what watches the session
	done     context.Context
	shutDown context.CancelFunc

	registry
}

// New returns a Locker on conn, doing no I/O. A nil connection, a bad option, or none that
// says the session timeout, is an error that every call returns. conn stays the caller's
// to close. It may be used for other things, but two Lockers on one connection are one
// process to the server: what keeps one of them alive keeps the other.
func New(conn *zk.Conn, opts ...Option) *Locker {
	l := &Locker{conn: conn, root: "/lock", acl: zk.WorldACL(zk.PermAll), tick: 2 * time.Second}
	l.err = l.setUp(opts)
	l.lane = &lane{conn: conn}
	l.busy = storekit.NewRecent(busyFor)
	l.keeper.l = l
	l.parents.size = maxParents
	l.prepare()
	l.done, l.shutDown = context.WithCancel(context.Background())
	return l
}

// busyFor is how long a key counts as busy.
const busyFor = time.Second

const minTTL = 10 * time.Millisecond

// tokenOf is the token of a node that was created by the transaction czxid.
func (l *Locker) tokenOf(czxid int64) lock.Token { return l.base + lock.Token(czxid) }

// MaxTTL is the longest TTL that is granted: two thirds of the session timeout, less a tick.
// With a [Dialer] it is shorter from when the server has granted a shorter session timeout
// than the client has asked for.
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
			return fmt.Errorf("%w: zookeeper: the Dialer has not made the connection: pass its Dial to zk.Connect by zk.WithDialer", lock.ErrInvalid)
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

// Acquire implements [lock.Locker]. See the package's documentation for what a TTL gets.
func (l *Locker) Acquire(ctx context.Context, req lock.Request) (lock.Grant, error) {
	if err := l.ready(ctx, lock.CheckRequest(req, l.Capabilities())); err != nil {
		return lock.Grant{}, err
	}
	if err := l.short(); err != nil {
		return lock.Grant{}, err
	}
	l.begin.Do(func() { go l.watchSession() })
	if req.Wait {
		return l.acquire(ctx, req)
	}
	var g lock.Grant
	err := storekit.WithinPatience(ctx, func(ctx context.Context) (err error) {
		g, err = l.try(ctx, req)
		return err
	})
	return g, err
}

// try is an Acquire that does not wait.
func (l *Locker) try(ctx context.Context, req lock.Request) (lock.Grant, error) {
	if l.busy.Has(req.Key) {
		rec, err := l.glance(ctx, req)
		switch {
		case err != nil && !isTransient(err):
			return lock.Grant{}, l.explain(req.Key, err)
		case err == nil && len(rec.Holders) > 0:
			return lock.Grant{}, &lock.HeldError{Record: rec}
		}
	}
	return l.acquire(ctx, req)
}

func (l *Locker) acquire(ctx context.Context, req lock.Request) (lock.Grant, error) {
	a, err := l.enroll(req)
	if err != nil {
		return lock.Grant{}, err
	}
	g, err := a.run(ctx)
	if err != nil {
		l.abandon(a.c)
		return lock.Grant{}, l.explain(req.Key, err)
	}
	return g, nil
}

// Renew implements [lock.Locker]. It must be called on the Locker that has acquired, whose
// session has the grant.
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

func (l *Locker) renew(ctx context.Context, g lock.Grant) (lock.Grant, error) {
	c, ok := l.holder(g)
	if !ok {
		return lock.Grant{}, l.notMine(ctx, g)
	}
	for t := (tries{}); ; {
		u := &unit{ops: []any{&zk.CheckVersionRequest{Path: c.path, Version: -1}}}
		err := l.lane.do(ctx, u)
		switch {
		case err == nil && u.session == c.session && l.short() != nil:
			return lock.Grant{}, l.short()
		case err == nil && u.session == c.session:
			was := g
			g.TTL, g.Start = min(g.TTL, l.MaxTTL()), u.start
			if !l.prolong(c.claim, g) {
				return lock.Grant{}, &lock.LostError{Reason: storekit.Vanished(was), Token: g.Token}
			}
			return g, nil
		case err == nil, isTransient(err):
			if l.conn.SessionID() != c.session {
				l.end(c.claim)
				return lock.Grant{}, &lock.LostError{Reason: lock.ReasonExpired, Token: g.Token}
			}
			if err := t.pause(ctx, l.done, err); err != nil {
				return lock.Grant{}, err
			}
		case errors.Is(err, zk.ErrNoNode):
			l.end(c.claim)
			return lock.Grant{}, &lock.LostError{Reason: l.howLost(c), Token: g.Token}
		default:
			return lock.Grant{}, t.end(ctx, err)
		}
	}
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
		c, ok := l.letGo(g)
		if !ok {
			return l.releaseOther(ctx, g)
		}
		return l.release(ctx, c)
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
		return lock.ErrClosed
	}
	return ctx.Err()
}

// Close ends this Locker's waits with ErrClosed. It leaves the connection alone, and the
// grants: those end with their TTL, or with the session if that is sooner. It is
// idempotent and waits for no server.
func (l *Locker) Close() error {
	if l == nil || l.done == nil {
		return errNotNew
	}
	l.shutDown()
	return nil
}
