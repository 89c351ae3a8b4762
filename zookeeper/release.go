package zookeeper

import (
	"context"
	"errors"
	"time"

	"github.com/go-zookeeper/zk"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/internal/storekit"
)

// release deletes the node of a grant. It is repeated while the outcome is unknown: when
// a second try finds the node gone, the first has deleted it.
func (l *Locker) release(ctx context.Context, c grip) error {
	next := l.next(c)
	for t := (tries{}); ; {
		doubtful := l.isDoubtful(c.claim)
		u := l.handOver(c, next)
		err := l.lane.do(ctx, u)
		switch {
		case err == nil:
			l.take(u, next)
			l.end(c.claim)
			return nil
		case errors.Is(err, zk.ErrNoNode) && u.failed > 0:
			next = nil // one of them has left: the others are to look themselves
			continue
		case errors.Is(err, zk.ErrNoNode):
			l.end(c.claim)
			if doubtful {
				return nil
			}
			return &lock.LostError{Reason: l.howLost(c), Token: c.token}
		case isUnknown(err):
			l.doubt(c.claim)
		case ctx.Err() != nil && errors.Is(err, ctx.Err()):
			if u.sent {
				l.doubt(c.claim)
			}
			return t.end(ctx, err)
		case !isTransient(err):
			return err
		}
		if s := l.conn.SessionID(); s != 0 && s != c.session {
			l.end(c.claim)
			return &lock.LostError{Reason: lock.ReasonExpired, Token: c.token}
		}
		if err := t.pause(ctx, l.done, err); err != nil {
			return err
		}
	}
}

// next is who holds the lock as soon as the node of c is gone, as far as they wait in this
// Locker: an exclusive claim right behind it, or all shared ones that wait for it. Since c
// is first in line, they are then. Those that are too many for one request look themselves.
func (l *Locker) next(c grip) []grip {
	if c.shared {
		return nil // others may read still, so nobody is known to be first
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	behind := l.behind[c.at]
	var next []grip
	size := 0
	for _, f := range behind {
		if f.phase != waiting || f.undone || f.session != c.session || !f.shared && len(behind) > 1 {
			return nil
		}
		n := l.grip(f)
		if size += n.size(); len(next) < maxBatch && size <= maxBytes {
			next = append(next, n)
		}
	}
	return next
}

// size is what the verification of c adds to a request, about.
func (c grip) size() int { return len(c.path) + len(c.data) }

// handOver is the release of c, in one transaction with the verification of the nodes that
// are next. It is refused if one of those is gone.
func (l *Locker) handOver(c grip, next []grip) *unit {
	u := &unit{ops: []any{&zk.DeleteRequest{Path: c.path, Version: -1}}}
	for _, n := range next {
		u.size += n.size()
		u.ops = append(u.ops, &zk.SetDataRequest{Path: n.path, Data: n.data, Version: -1})
	}
	u.late = func(u *unit) {
		switch {
		case u.err == nil:
			l.take(u, next)
			l.end(c.claim)
		case errors.Is(u.err, zk.ErrNoNode) && u.failed == 0:
			l.end(c.claim)
		}
	}
	return u
}

// take makes those claims held whose nodes u has verified.
func (l *Locker) take(u *unit, next []grip) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, n := range next {
		c := n.claim
		if c.phase != waiting || c.undone || u.session != c.session || l.path(c.key, c.node.name) != n.path {
			continue
		}
		l.holds(c, u.start)
		c.handed <- u.start
	}
}

func (r *registry) isDoubtful(c *claim) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return c.doubtful
}

func (r *registry) doubt(c *claim) {
	r.mu.Lock()
	defer r.mu.Unlock()
	c.doubtful = true
}

// howLost is why the node of a grant is not there although nobody has released it.
func (l *Locker) howLost(c grip) lock.LostReason {
	if l.conn.SessionID() != c.session {
		return lock.ReasonExpired
	}
	return lock.ReasonForced
}

// releaseOther releases a grant that is none of this Locker's claims: of another process,
// or one that is over.
func (l *Locker) releaseOther(ctx context.Context, g lock.Grant) error {
	n, err := l.locate(ctx, g)
	if err != nil {
		return err
	}
	return l.delete(ctx, g, l.path(g.Key, n.name))
}

// delete deletes the node of a grant.
func (l *Locker) delete(ctx context.Context, g lock.Grant, path string) error {
	doubtful := false
	for t := (tries{}); ; {
		err := l.lane.do(ctx, &unit{ops: []any{&zk.DeleteRequest{Path: path, Version: -1}}})
		switch {
		case err == nil, errors.Is(err, zk.ErrNoNode) && doubtful:
			return nil
		case errors.Is(err, zk.ErrNoNode):
			return &lock.LostError{Token: g.Token}
		case isUnknown(err):
			doubtful = true
		case !isTransient(err):
			return t.end(ctx, err)
		}
		if err := t.pause(ctx, l.done, err); err != nil {
			return err
		}
	}
}

// locate returns the node of a grant that is none of our claims. If it is not there the
// error is ErrLost.
func (l *Locker) locate(ctx context.Context, g lock.Grant) (n node, err error) {
	err = l.again(ctx, func(ctx context.Context) (err error) {
		n, err = l.locateOnce(ctx, g)
		return err
	})
	return n, err
}

func (l *Locker) locateOnce(ctx context.Context, g lock.Grant) (node, error) {
	line, err := l.current(ctx, g.Key)
	if err != nil {
		return node{}, err
	}
	for _, n := range line {
		if n.owner != g.Owner {
			continue
		}
		_, stat, err := l.get(ctx, l.path(g.Key, n.name))
		if err == nil && l.tokenOf(stat.Czxid) == g.Token {
			return n, nil
		}
		if err != nil && !errors.Is(err, zk.ErrNoNode) {
			return node{}, err
		}
	}
	lost := &lock.LostError{Token: g.Token}
	switch {
	case len(line) > 0:
		lost.Reason = lock.ReasonTaken
	case !g.Start.IsZero():
		lost.Reason = storekit.Vanished(g)
	}
	return node{}, lost
}

// errOther is for a renewal by a Locker that cannot vouch for the holder's session.
var errOther = errors.New("the grant is of another session: only the Locker that has acquired it can renew it")

// notMine is the error of a renewal of what is none of this Locker's claims.
func (l *Locker) notMine(ctx context.Context, g lock.Grant) error {
	if _, err := l.locate(ctx, g); err != nil {
		return err
	}
	return errors.Join(lock.ErrUnsupported, errOther)
}

// abandon ends the claim of an Acquire that failed, and sees to it that its node goes, be
// it there already or on its way.
func (l *Locker) abandon(c *claim) {
	l.mu.Lock()
	var path string
	if c.phase != ended && c.node.name != "" {
		path = l.path(c.key, c.node.name)
	}
	doubtful := c.doubtful
	wake := l.close(c)
	l.mu.Unlock()
	nudgeAll(wake)
	switch {
	case path != "":
		l.discard(path)
	case doubtful:
		go l.sweep(c.key, c.owner)
	}
}

// discard has a node deleted in the background. It goes on until it has seen to that, however
// long there is no server: the node would else live as long as the session. It stops when the
// session has ended, and its nodes with it, or the connection has.
func (l *Locker) discard(path string) { l.discardAgain(path, l.conn.SessionID(), &tries{}) }

func (l *Locker) discardAgain(path string, session int64, t *tries) {
	u := &unit{ops: []any{&zk.DeleteRequest{Path: path, Version: -1}}}
	u.late = func(u *unit) {
		if isTransient(u.err) && l.lasts(session, t, u.err) {
			time.AfterFunc(t.wait(), func() { l.discardAgain(path, session, t) })
		}
	}
	l.lane.post(u)
}

// lasts counts one more failure, and reports whether session may live still.
func (l *Locker) lasts(session int64, t *tries, err error) bool {
	t.failed(err)
	closed := t.broken > maxBroken && l.conn.State() == zk.StateDisconnected
	return !closed && l.conn.SessionID() == session
}

// remove deletes the node of a claim that nobody needs any more, and ends it.
func (l *Locker) remove(ctx context.Context, c *claim) error {
	l.mu.Lock()
	name := c.node.name
	l.mu.Unlock()
	if name == "" { // it has gone already
		return nil
	}
	path := l.path(c.key, name)
	err := l.delete(ctx, lock.Grant{}, path)
	if err == nil || errors.Is(err, lock.ErrLost) {
		l.end(c)
		return nil
	}
	return err
}

// undo takes away whatever owner has on key. A creation that is under way in this process
// is told; it is over, or refused, when the barrier is.
func (l *Locker) undo(ctx context.Context, key, owner string) error {
	l.mu.Lock()
	c := l.claims[id{key, owner}]
	known := c != nil && c.phase != creating
	if c != nil {
		c.undone = true
		if c.phase == held {
			c.phase = releasing
		}
	}
	l.mu.Unlock()
	if known {
		c.nudge()
		return l.remove(ctx, c)
	}
	for t := (tries{}); ; {
		err := l.sweepOnce(ctx, key, owner)
		if !isTransient(err) {
			return t.end(ctx, err)
		}
		if err := t.pause(ctx, l.done, err); err != nil {
			return err
		}
	}
}

// sweep deletes the nodes of an owner without a claim, whose creation was given up before
// its outcome was known. It goes on as long as discard does.
func (l *Locker) sweep(key, owner string) {
	session := l.conn.SessionID()
	for t := (tries{}); session != 0 && l.conn.SessionID() == session; {
		err := l.sweepOnce(context.Background(), key, owner)
		if !isTransient(err) || !l.lasts(session, &t, err) {
			return
		}
		_ = t.rest(context.Background(), context.Background())
	}
}

func (l *Locker) sweepOnce(ctx context.Context, key, owner string) error {
	if _, err := l.barrier(ctx); err != nil {
		return err
	}
	line, err := l.line(ctx, key)
	if err != nil {
		return err
	}
	for _, n := range line {
		if n.owner != owner {
			continue
		}
		if err := l.delete(ctx, lock.Grant{}, l.path(key, n.name)); err != nil && !errors.Is(err, lock.ErrLost) {
			return err
		}
	}
	return nil
}
