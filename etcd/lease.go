package etcd

import (
	"context"
	"maps"
	"slices"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/seed-215fdefa/lock"
)

// lease is an etcd lease. A Locker has one for each TTL, which is kept alive by freshen only.
// The Locker's mutex guards what changes.
type lease struct {
	id  clientv3.LeaseID
	ttl time.Duration // as granted

	// confirmed was taken before the last request was sent that the server has answered:
	// the lease lives until confirmed + ttl, at least.
	confirmed time.Time
	dead      bool  // as a keepalive was answered
	beat      *call // a keepalive under way
	next      *call // and one to be sent after it, for those who came later
}

// ownFor is for how many TTLs an etcd lease counts as this Locker's though the server confirms it no more:
// longer than changes of leader will prolong it.
const ownFor = 10

// call is a request that many may wait for: a keepalive, or one for a new lease.
type call struct {
	start time.Time // before it is sent
	done  chan struct{}
	err   error // once done is closed
	lease *lease
}

func newCall() *call { return &call{start: time.Now(), done: make(chan struct{})} }

func (c *call) end(err error) *call {
	c.err = err
	close(c.done)
	return c
}

func (c *call) wait(ctx context.Context, l *Locker) error {
	select {
	case <-c.done:
		return c.err
	case <-ctx.Done():
		l.mu.Lock()
		sent := c.start
		l.mu.Unlock()
		l.writes.mu.Lock()
		defer l.writes.mu.Unlock()
		return l.writes.young(ctx.Err(), sent)
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

// seconds is etcd's granularity, rounded up.
func seconds(d time.Duration) int64 { return int64((d + time.Second - 1) / time.Second) }

// usable returns the lease for a TTL, nil if none is known to live on for a while: when three
// quarters have passed unconfirmed the server may end it before a keepalive arrives. A new one
// costs no more than that.
func (l *Locker) usable(ttl time.Duration) *lease {
	l.mu.Lock()
	defer l.mu.Unlock()
	le := l.leases[seconds(ttl)]
	if le == nil || le.dead || elapsed(le.confirmed, time.Now()) > le.ttl*3/4 {
		return nil
	}
	return le
}

// leaseFor returns the lease for a TTL, for 0 that of the tombstones. If it must be asked for, one request
// does for all.
func (l *Locker) leaseFor(ctx context.Context, ttl time.Duration) (*lease, error) {
	if le := l.usable(ttl); le != nil {
		return le, nil
	}
	s := seconds(ttl)
	l.mu.Lock()
	c := l.granting[s]
	if c == nil {
		c = newCall()
		if l.granting[s] = c; !l.spawn(func() { l.grant(s, c) }) {
			c.end(lock.ErrClosed)
		}
	}
	l.mu.Unlock()
	if err := c.wait(ctx, l); err != nil {
		return nil, err
	}
	return c.lease, nil
}

// grant asks for a lease. What may come of a copy is one without keys, which ends by itself. Tombstones
// have one that nobody renews.
func (l *Locker) grant(s int64, c *call) {
	ctx, cancel := context.WithTimeout(l.ctx, lock.Patience)
	defer cancel()
	ttl := time.Duration(s) * time.Second
	if s == 0 {
		ttl = tombLife
	}
	resp, _, err := insist(ctx, impatience(ttl), func(ctx context.Context) (*pb.LeaseGrantResponse, error) {
		resp, err := l.leaser().LeaseGrant(ctx, &pb.LeaseGrantRequest{TTL: seconds(ttl)})
		return resp, rpctypes.Error(err)
	})
	l.mu.Lock()
	defer l.mu.Unlock()
	if err == nil {
		c.lease = &lease{id: clientv3.LeaseID(resp.ID), ttl: time.Duration(resp.TTL) * time.Second, confirmed: c.start}
		l.leases[s] = c.lease
		maps.DeleteFunc(l.own, func(_ clientv3.LeaseID, le *lease) bool {
			return elapsed(le.confirmed, c.start) > ownFor*le.ttl
		})
		l.own[c.lease.id] = c.lease
	}
	delete(l.granting, s)
	c.end(err)
}

// suspect has new leases granted instead of some, one of which is gone, as a request said: that it is
// this one only its own keepalive can tell.
func (l *Locker) suspect(err error, suspects ...*lease) {
	if !isGone(err) {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	maps.DeleteFunc(l.leases, func(_ int64, le *lease) bool { return slices.Contains(suspects, le) })
}

// term is for how long le is known to live, from when: what it was confirmed by since start,
// or else the request that was sent at sent.
func (l *Locker) term(le *lease, start, sent time.Time) (from time.Time, ttl time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !le.confirmed.Before(start) {
		return le.confirmed, le.ttl
	}
	return sent, le.ttl - elapsed(le.confirmed, sent)
}

// freshen returns a keepalive of le that is sent after since: one that has been answered, one
// that is under way, or a new one. It never blocks.
func (l *Locker) freshen(le *lease, since time.Time) *call {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case le.dead:
		return newCall().end(rpctypes.ErrLeaseNotFound)
	case elapsed(le.confirmed, since) <= 0:
		return newCall().end(nil)
	case le.beat == nil:
		c := newCall()
		if le.beat = c; !l.spawn(func() { l.keepAlive(le) }) {
			le.beat = nil
			c.end(lock.ErrClosed)
		}
		return c
	case !le.beat.start.Before(since):
		return le.beat
	case le.next == nil:
		le.next = newCall()
	}
	return le.next
}

// keepAlive sends le's keepalive, and those that are asked for meanwhile.
func (l *Locker) keepAlive(le *lease) {
	for more := true; more; {
		l.mu.Lock()
		c := le.beat
		c.start = time.Now()
		l.mu.Unlock()
		err := l.beats.ask(le)
		l.mu.Lock()
		if err == nil {
			le.confirmed = c.start
			l.own[le.id] = le // it was none any more if the server has not answered for long
		}
		le.dead = le.dead || isGone(err)
		le.beat, le.next = le.next, nil
		more = le.beat != nil
		c.end(err)
		l.mu.Unlock()
		if isGone(err) {
			l.leaseGone(le)
		}
	}
}
