package zookeeper

import (
	"context"
	"errors"
	"time"

	"github.com/go-zookeeper/zk"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/internal/storekit"
)

// renew proves by a transaction that the node of a grant is there.
func (l *Locker) renew(ctx context.Context, g lock.Grant) (lock.Grant, error) {
	c, ok := l.holder(g)
	if !ok {
		return lock.Grant{}, l.notMine(ctx, g)
	}
	_, err := storekit.Repeat(ctx, classify, func(ctx context.Context, _ int) error {
		u := &unit{ops: []any{&zk.CheckVersionRequest{Path: c.path, Version: -1}}}
		err := l.lane.do(ctx, u)
		switch {
		case errors.Is(err, zk.ErrNoNode):
			l.end(c.claim)
			return &lock.LostError{Reason: l.howLost(c), Token: g.Token}
		case (err != nil || u.session != c.session) && l.expired(c):
			l.end(c.claim)
			return &lock.LostError{Reason: lock.ReasonExpired, Token: g.Token}
		case err != nil:
			return err
		case u.session != c.session:
			return zk.ErrSessionMoved // it was sent in either of two
		}
		if err := l.short(); err != nil {
			return err
		}
		was := g
		g.TTL, g.Start = min(g.TTL, l.MaxTTL()), u.start
		if !l.prolong(c.claim, g) {
			return &lock.LostError{Reason: storekit.Vanished(was), Token: g.Token}
		}
		return nil
	})
	if err != nil {
		return lock.Grant{}, err
	}
	return g, nil
}

// hold makes c held since start, unless it has been released, or undone, before. One that was handed over
// and has ended since is granted all the same: its owner may have been told of the loss.
func (l *Locker) hold(c *claim, start time.Time) (lock.Grant, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case c.undone || c.phase == creating || c.phase == releasing:
		return lock.Grant{}, storekit.ErrUndone
	case l.done.Err() != nil: // zk.Conn may have been closed since the reply came, and nobody would tell
		return lock.Grant{}, context.Cause(l.done)
	case c.phase == waiting:
		l.holds(c, start)
	case c.phase == held: // a release has handed it over, while it was being verified
		if d := start.Add(c.ttl); d.After(c.deadline) {
			c.deadline = d
		}
	}
	return lock.Grant{
		Key: c.key, Owner: c.owner, Token: c.token, TTL: c.ttl, Start: start, Shared: c.shared,
	}, nil
}

// holds is hold under l.mu.
func (l *Locker) holds(c *claim, start time.Time) {
	l.unfollow(c)
	c.ttl = min(c.ttl, l.MaxTTL()) // by now the server has said what the session lives
	c.phase, c.deadline = held, start.Add(c.ttl)
	if !c.shared {
		l.heads[c.key] = c
	}
	c.timer = time.AfterFunc(min(c.ttl, watchAfter), func() { l.tend(c) })
}

// prolong takes a renewal. It reports false if the claim has ended meanwhile.
func (l *Locker) prolong(c *claim, g lock.Grant) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if c.phase != held && c.phase != releasing {
		return false
	}
	c.ttl = g.TTL
	if d := g.Start.Add(g.TTL); d.After(c.deadline) {
		c.deadline = d
	}
	return true
}

// lose ends a held claim and tells its holder, unless that has released it. A claim that has another
// node since is left: who waited may have lined up anew, and been granted.
func (r *registry) lose(c snapshot, why lock.LostReason) {
	r.mu.Lock()
	if c.phase != held || c.claim.token != c.token {
		r.mu.Unlock()
		return
	}
	r.close(c.claim)
	r.mu.Unlock()
	if c.lost != nil {
		c.lost(why)
	}
}

// watchAfter is how long a grant is held before its node is watched. Most are over before,
// and do without the read and the event.
const watchAfter = 200 * time.Millisecond

// tend has a held claim's node watched, or ends it if it was not renewed in time. It goes on
// after Close, since the node would else live as long as the session, which is the caller's.
func (l *Locker) tend(c *claim) {
	l.mu.Lock()
	if c.phase != held && c.phase != releasing {
		l.mu.Unlock()
		return
	}
	s := l.snapshot(c)
	if left := time.Until(c.deadline); left > 0 {
		c.timer.Reset(left)
		l.mu.Unlock()
		l.watch(s.at, s.path)
		return
	}
	lost := c.lost
	if c.phase == releasing { // that it ends is no loss
		lost = nil
	}
	l.close(c)
	l.mu.Unlock()
	l.discard(s.path) // its holder is as good as dead
	if lost != nil {
		lost(lock.ReasonExpired)
	}
}
