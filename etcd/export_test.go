package etcd

import (
	"context"
	"testing"
	"time"
	"unsafe"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/internal/storekit"
)

// WatchDelay is how old a grant is when its key begins to be watched.
const WatchDelay = tickEvery

// Breaks is how many broken connections one request gets over.
const Breaks = breaks

// Stable leaves changes of leader out of ExpirySlack, where there are none: the suite holds
// the store to what is left.
func Stable(l *Locker) error {
	l.stable = true
	return nil
}

// Gathering has a batch hold others up for as long as it takes.
func Gathering(l *Locker) error {
	l.writes.stuck = time.Hour
	return nil
}

// ForgetLeases has a new etcd lease asked for when one is needed, as if the last had not been
// confirmed for long.
func (l *Locker) ForgetLeases() {
	l.mu.Lock()
	defer l.mu.Unlock()
	clear(l.leases)
}

// GrantBy has etcd leases asked for by the client that way returns, if it is not nil. It is to be
// called before anything else.
func (l *Locker) GrantBy(way func() *clientv3.Client) {
	own := l.leaser
	l.leaser = func() pb.LeaseClient { return granter{own(), way} }
}

type granter struct {
	pb.LeaseClient
	way func() *clientv3.Client
}

// LeaseGrant asks for an etcd lease.
func (g granter) LeaseGrant(ctx context.Context, req *pb.LeaseGrantRequest, opts ...grpc.CallOption) (*pb.LeaseGrantResponse, error) {
	if cli := g.way(); cli != nil {
		return pb.NewLeaseClient(cli.ActiveConnection()).LeaseGrant(ctx, req, opts...)
	}
	return g.LeaseClient.LeaseGrant(ctx, req, opts...)
}

// CutKeepAlives has no keepalive sent: err is what comes of opening their stream. It is to be called
// before anything else.
func (l *Locker) CutKeepAlives(err error) {
	own := l.leaser
	l.leaser = func() pb.LeaseClient { return cutOff{own(), err} }
}

type cutOff struct {
	pb.LeaseClient
	err error
}

// LeaseKeepAlive opens no stream.
func (c cutOff) LeaseKeepAlive(context.Context, ...grpc.CallOption) (pb.Lease_LeaseKeepAliveClient, error) {
	return nil, c.err
}

// Late returns what sends a copy of the request of an Acquire that is under way, or has failed
// and is not undone, and reports whether it has taken the lock.
func (l *Locker) Late(tb testing.TB, req lock.Request) func() bool {
	tb.Helper()
	h := l.of(lock.Grant{Key: req.Key, Owner: req.Owner})
	if h == nil {
		tb.Fatal("nothing is known of ", req.Owner)
	}
	a := &acquisition{l: l, req: req, h: h}
	return func() bool {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		var err error
		if a.full, err = l.leaseFor(ctx, req.TTL); err != nil {
			tb.Fatal(err)
		}
		resp, err := l.cli.Txn(ctx).Then(a.entering()...).Commit()
		if err != nil {
			tb.Fatal(err)
		}
		return resp.Responses[0].GetResponseTxn().Succeeded
	}
}

// HandOver tells who waits for key as owner of a handover with that token.
func (l *Locker) HandOver(key, owner string, token lock.Token) {
	h := l.of(lock.Grant{Key: key, Owner: owner})
	l.mu.Lock()
	a := h.waiter
	l.mu.Unlock()
	if a == nil { // it has the lock by now
		return
	}
	a.box.Deliver(storekit.Handover{Token: token, Start: time.Now()})
}

// Suspend makes it so that the machine was suspended for d just now: the wall clock has gone on,
// and the monotonic one has stood still.
func (l *Locker) Suspend(d time.Duration) {
	before := func(t *time.Time) {
		*t = t.Add(-d)
		(*struct {
			wall uint64
			mono int64
		})(unsafe.Pointer(t)).mono += int64(d)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, le := range l.leases {
		before(&le.confirmed)
	}
	for _, h := range l.byName {
		if h.g.Token != 0 {
			before(&h.g.Start)
		}
	}
}

// LivesFor is how long the etcd lease for a TTL is known to live; 0 if it is not used any more.
func (l *Locker) LivesFor(ttl time.Duration) time.Duration {
	le := l.usable(ttl)
	if le == nil {
		return 0
	}
	now := time.Now()
	_, left := l.term(le, now, now)
	return left
}

// Unsent is the error of a part that waits to be sent when patience with it ends, if the server last
// answered ago.
func Unsent(ago time.Duration) error {
	n := &lane{heard: time.Now().Add(-ago)}
	_, err := n.leave(&part{done: make(chan struct{})}, context.DeadlineExceeded)
	return err
}

// Sent is the error of a part that was sent ago, when patience with it ends. The server has last
// answered another one heard ago.
func Sent(ago, heard time.Duration) error {
	now := time.Now()
	n := &lane{heard: now.Add(-heard)}
	p := &part{done: make(chan struct{}), batch: &batch{parts: make([]*part, 2), sent: now.Add(-ago)}}
	_, err := n.leave(p, context.DeadlineExceeded)
	return err
}

// Gathered is how many transactions wait to be sent together.
func (l *Locker) Gathered() int {
	l.writes.mu.Lock()
	defer l.writes.mu.Unlock()
	return len(l.writes.queue)
}

// Deaf reports whether wake-ups are thought to get lost.
func (l *Locker) Deaf() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.watch.deaf
}

// Unpruned is how many failed acquisitions and ended grants are to be pruned yet.
func (l *Locker) Unpruned() (n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, h := range l.byName {
		if h.over {
			n++
		}
	}
	return n
}
