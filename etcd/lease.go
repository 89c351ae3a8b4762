package etcd

import (
	"context"
	"errors"
	"sync"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/seed-215fdefa/lock"
)

// leases are a Locker's etcd leases. None is kept alive but by begin.
type leases struct {
	l *Locker

	mu       sync.Mutex          // guards what follows, and all fields of leases that change
	current  map[int64]*lease    // by TTL in seconds, as asked for
	granting map[int64]*granting // likewise
}

// lease is one etcd lease.
type lease struct {
	id  clientv3.LeaseID
	ttl time.Duration // as granted

	// confirmed was taken before the last request was sent that the server has answered:
	// the lease lives until confirmed + ttl, at least.
	confirmed time.Time
	dead      bool
	flight    *flight // a keepalive under way
	next      *flight // and one to be sent after it, for those who came later
}

// flight is a keepalive that many may wait for.
type flight struct {
	start time.Time // before it is sent
	done  chan struct{}
	err   error // once done is closed
}

// granting is a request for a new lease.
type granting struct {
	flight
	lease *lease
}

// landed is a flight that nobody needs to wait for.
var landed = func() *flight {
	f := &flight{done: make(chan struct{})}
	close(f.done)
	return f
}()

func (f *flight) wait(ctx, closed context.Context) error {
	select {
	case <-f.done:
		return f.err
	default:
	}
	select {
	case <-f.done:
		return f.err
	case <-ctx.Done():
		return ctx.Err()
	case <-closed.Done():
		return lock.ErrClosed
	}
}

// eighth is the moment after which a keepalive need not be sent for a grant at start.
func (le *lease) eighth(start time.Time) time.Time { return start.Add(-le.ttl / 8) }

// impatience is how long a part of a renewal goes unanswered before a copy is sent: a renewal
// is tried for a sixth of the TTL, in which the third copy meets a member that answers even if
// others' requests have come in between.
func (le *lease) impatience() time.Duration { return min(le.ttl/4, requestTimeout) / 4 }

// get returns the lease for a TTL, a new one if there is none that is known to live on for a
// while. An unanswered request is sent again, maybe to another member: what may have come of
// it is a lease without keys, which ends by itself.
func (ls *leases) get(ctx context.Context, ttl time.Duration) (*lease, error) {
	for n, broken := 0, 0; ; n++ {
		le, err := ls.ask(ctx, seconds(ttl), n-broken)
		switch {
		case err == nil || ctx.Err() != nil:
			return le, err
		case isBroken(err) && broken < breaks:
			broken++
		case !errors.Is(err, errUnanswered):
			return le, err
		}
	}
}

// ask returns a usable lease or waits for a request for one, its own or another's. It is the
// nth time.
func (ls *leases) ask(ctx context.Context, s int64, n int) (*lease, error) {
	ls.mu.Lock()
	if le := ls.usable(s); le != nil {
		ls.mu.Unlock()
		return le, nil
	}
	g := ls.granting[s]
	if g == nil {
		if ls.granting == nil {
			ls.granting, ls.current = make(map[int64]*granting), make(map[int64]*lease)
		}
		g = &granting{flight: flight{done: make(chan struct{})}}
		ls.granting[s] = g
		if !ls.l.spawn(func() { ls.grant(s, g, n) }) {
			g.err = lock.ErrClosed
			close(g.done)
		}
	}
	ls.mu.Unlock()
	if err := g.wait(ctx, ls.l.ctx); err != nil {
		return nil, err
	}
	return g.lease, nil
}

// alive is get without a request: nil if there is no lease.
func (ls *leases) alive(ttl time.Duration) *lease {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	return ls.usable(seconds(ttl))
}

// usable takes a lease for gone when three quarters of its TTL have passed unconfirmed: the
// server may end it before a keepalive arrives. A new one costs no more than that.
func (ls *leases) usable(s int64) *lease {
	le := ls.current[s]
	if le == nil || le.dead || time.Since(le.confirmed) > le.ttl*3/4 {
		return nil
	}
	return le
}

func (ls *leases) grant(s int64, g *granting, n int) {
	ctx, cancel := context.WithTimeout(ls.l.ctx, limit(time.Duration(s)*time.Second, n))
	defer cancel()
	start := time.Now()
	resp, err := ls.l.cli.Grant(ctx, s)
	if err != nil && ctx.Err() != nil {
		err = errUnanswered
	}
	ls.mu.Lock()
	defer ls.mu.Unlock()
	if err == nil {
		g.lease = &lease{id: resp.ID, ttl: time.Duration(resp.TTL) * time.Second, confirmed: start}
		ls.current[s] = g.lease
	}
	delete(ls.granting, s)
	g.err = err
	close(g.done)
}

// suspect has new leases granted instead of some of which a request said that they are gone.
func (ls *leases) suspect(err error, suspects ...*lease) {
	if !isGone(err) {
		return
	}
	ls.mu.Lock()
	defer ls.mu.Unlock()
	for s, le := range ls.current {
		for _, x := range suspects {
			if le == x {
				delete(ls.current, s)
			}
		}
	}
}

// remaining is how long le lives at least after start, and no more than its TTL.
func (ls *leases) remaining(le *lease, start time.Time) time.Duration {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	return min(le.ttl, le.confirmed.Add(le.ttl).Sub(start))
}

// overdue reports whether le may have expired.
func (ls *leases) overdue(le *lease, now time.Time) bool {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	return le.dead || now.Sub(le.confirmed) >= le.ttl
}

// begin returns a keepalive of le that is sent after since: one that has been answered, one
// that is under way, or a new one. It never blocks.
func (ls *leases) begin(le *lease, since time.Time) *flight {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	switch {
	case le.dead:
		return &flight{done: landed.done, err: rpctypes.ErrLeaseNotFound}
	case !le.confirmed.Before(since):
		return landed
	case le.flight == nil:
		le.flight = &flight{start: time.Now(), done: make(chan struct{})}
		f := le.flight
		if !ls.l.spawn(func() { ls.beat(le) }) {
			le.flight, f.err = nil, lock.ErrClosed
			close(f.done)
		}
		return f
	case !le.flight.start.Before(since):
		return le.flight
	case le.next == nil:
		le.next = &flight{done: make(chan struct{})}
	}
	return le.next
}

// beat sends le's keepalive, and those that are asked for meanwhile.
func (ls *leases) beat(le *lease) {
	for more := true; more; {
		ls.mu.Lock()
		f := le.flight
		f.start = time.Now()
		ls.mu.Unlock()
		err := ls.keepAlive(le)
		ls.mu.Lock()
		if err == nil {
			le.confirmed = f.start
		}
		le.dead = le.dead || isGone(err)
		le.flight, le.next = le.next, nil
		more = le.flight != nil
		f.err = err
		close(f.done)
		ls.mu.Unlock()
		if isGone(err) {
			ls.l.holds.leaseGone(le)
		}
	}
}

// keepAlive sends a keepalive, and copies of it while it is not answered: whichever is, the lease
// lives from before the first.
func (ls *leases) keepAlive(le *lease) error {
	ctx, cancel := context.WithTimeout(ls.l.ctx, max(min(le.ttl/4, requestTimeout), minTTL/2))
	defer cancel()
	_, err := insist(ctx, le.impatience(), func(ctx context.Context) (struct{}, error) {
		return struct{}{}, ls.keepAliveOnce(ctx, le)
	})
	if err != nil && ctx.Err() != nil {
		return errors.Join(errUnanswered, err)
	}
	return err
}

// keepAliveOnce sends one keepalive. The client's would send again without a pause while there
// is no connection.
func (ls *leases) keepAliveOnce(ctx context.Context, le *lease) error {
	stream, err := pb.NewLeaseClient(ls.l.cli.ActiveConnection()).LeaseKeepAlive(ctx)
	if err == nil {
		err = stream.Send(&pb.LeaseKeepAliveRequest{ID: int64(le.id)})
	}
	var resp *pb.LeaseKeepAliveResponse
	if err == nil {
		resp, err = stream.Recv()
	}
	if err == nil && resp.TTL <= 0 {
		return rpctypes.ErrLeaseNotFound
	}
	return err
}

// seconds is etcd's granularity, rounded up.
func seconds(d time.Duration) int64 { return int64((d + time.Second - 1) / time.Second) }
