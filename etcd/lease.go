package etcd

import (
	"context"
	"sync"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/seed-215fdefa/lock"
)

// leases are a Locker's etcd leases, one for each TTL. None is kept alive but by begin.
type leases struct {
	l      *Locker
	client func() pb.LeaseClient
	beats  beats

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

func (f *flight) wait(ctx context.Context, l *Locker) error {
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
	case <-l.ctx.Done():
		return l.over()
	}
}

// eighth is the moment after which a keepalive need not be sent for a grant at start.
func (le *lease) eighth(start time.Time) time.Time { return start.Add(-le.ttl / 8) }

// impatience is how long a part of a renewal goes unanswered before a copy is sent: a renewal
// is tried for a sixth of the TTL, in which the third copy meets a member that answers even if
// others' requests have come in between.
func (le *lease) impatience() time.Duration { return impatience(le.ttl) / 4 }

// impatience is how long a request goes unanswered before a copy is sent, where that is not
// urgent.
func impatience(ttl time.Duration) time.Duration { return min(ttl, requestTimeout) / 4 }

// elapsed is the time from a to b by the clock that has seen more of it: the monotonic one
// stands still while the machine sleeps, the wall clock may be set back.
func elapsed(a, b time.Time) time.Duration { return max(b.Sub(a), b.Round(0).Sub(a.Round(0))) }

// get returns the lease for a TTL, a new one if there is none that is known to live on for a
// while. It waits for a request, its own or another's.
func (ls *leases) get(ctx context.Context, ttl time.Duration) (*lease, error) {
	s := seconds(ttl)
	ls.mu.Lock()
	if le := ls.usable(s); le != nil {
		ls.mu.Unlock()
		return le, nil
	}
	g := ls.granting[s]
	if g == nil {
		g = &granting{flight: flight{done: make(chan struct{})}}
		ls.granting[s] = g
		if !ls.l.spawn(func() { ls.grant(s, g) }) {
			g.err = lock.ErrClosed
			close(g.done)
		}
	}
	ls.mu.Unlock()
	if err := g.wait(ctx, ls.l); err != nil {
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
	if le == nil || le.dead || elapsed(le.confirmed, time.Now()) > le.ttl*3/4 {
		return nil
	}
	return le
}

// grant asks for a lease. What may come of a copy is one without keys, which ends by itself.
func (ls *leases) grant(s int64, g *granting) {
	ctx, cancel := context.WithTimeout(ls.l.ctx, lock.Patience)
	defer cancel()
	start := time.Now()
	resp, _, err := insist(ctx, impatience(time.Duration(s)*time.Second), func(ctx context.Context) (*pb.LeaseGrantResponse, error) {
		resp, err := ls.client().LeaseGrant(ctx, &pb.LeaseGrantRequest{TTL: s})
		return resp, rpctypes.Error(err)
	})
	err = ls.l.heard(err)
	ls.mu.Lock()
	defer ls.mu.Unlock()
	if err == nil {
		g.lease = &lease{id: clientv3.LeaseID(resp.ID), ttl: time.Duration(resp.TTL) * time.Second, confirmed: start}
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

// term is for how long le is known to live, from when: what it was confirmed by since start,
// or else the request that was sent after sent.
func (ls *leases) term(le *lease, start, sent time.Time) (from time.Time, ttl time.Duration) {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	if !le.confirmed.Before(start) {
		return le.confirmed, le.ttl
	}
	return sent, le.ttl - elapsed(le.confirmed, sent)
}

// overdue reports whether le may have expired.
func (ls *leases) overdue(le *lease) bool {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	return elapsed(le.confirmed, time.Now()) >= le.ttl
}

// begin returns a keepalive of le that is sent after since: one that has been answered, one
// that is under way, or a new one. It never blocks.
func (ls *leases) begin(le *lease, since time.Time) *flight {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	switch {
	case le.dead:
		return &flight{done: landed.done, err: rpctypes.ErrLeaseNotFound}
	case elapsed(le.confirmed, since) <= 0:
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
		err := ls.l.heard(ls.beats.ask(le))
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

// seconds is etcd's granularity, rounded up.
func seconds(d time.Duration) int64 { return int64((d + time.Second - 1) / time.Second) }
