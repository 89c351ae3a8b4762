package zookeeper

import (
	"context"
	"errors"
	"time"

	"github.com/go-zookeeper/zk"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/internal/storekit"
)

// release deletes the node of a grant. When that is gone after a try of unknown outcome, in this
// call or again one before it, that try has deleted it.
func (l *Locker) release(ctx context.Context, c snapshot, again bool) error {
	next, found := l.next(c)
	_, err := storekit.Repeat(ctx, classify, func(ctx context.Context, _ int) error {
		err := l.handOver(ctx, c, next, found)
		switch {
		case errors.Is(err, zk.ErrNoNode):
			l.end(c.claim)
			if again {
				return nil
			}
			return &lock.LostError{Reason: l.howLost(c), Token: c.token}
		case err != nil && l.expired(c):
			l.end(c.claim)
			return &lock.LostError{Reason: lock.ReasonExpired, Token: c.token}
		}
		again = again || classify(err) == storekit.Unknown
		return err
	})
	return err
}

// next is who holds the lock as soon as the node of c is gone, if it waits in this Locker and is
// the only one right behind: since c is first in line, it is then.
func (l *Locker) next(c snapshot) (next snapshot, found bool) {
	if c.shared {
		return next, false // others may read still, so nobody is known to be first
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	behind := l.behind[c.at]
	if len(behind) != 1 || behind[0].phase != waiting || behind[0].undone || behind[0].session != c.session {
		return next, false
	}
	return l.snapshot(behind[0]), true
}

// handOver deletes the node of c, in one transaction with the verification of the node that is
// next, if one was found. Where that has left, nobody is handed over to.
func (l *Locker) handOver(ctx context.Context, c, next snapshot, found bool) error {
	u := &unit{ops: []any{&zk.DeleteRequest{Path: c.path, Version: -1}}}
	if found {
		u.ops = append(u.ops, &zk.SetDataRequest{Path: next.path, Data: next.data, Version: -1})
	}
	over := func(u *unit) {
		switch {
		case u.err == nil:
			if found {
				l.take(u, next)
			}
			l.end(c.claim)
		case errors.Is(u.err, zk.ErrNoNode) && u.failed == 0:
			l.end(c.claim)
		}
	}
	u.late = over
	err := l.lane.do(ctx, u)
	if errors.Is(err, zk.ErrNoNode) && u.failed > 0 {
		return l.handOver(ctx, c, snapshot{}, false)
	}
	if err == nil {
		over(u)
	}
	return err
}

// take makes the claim held whose node u has verified.
func (l *Locker) take(u *unit, next snapshot) {
	l.mu.Lock()
	defer l.mu.Unlock()
	c := next.claim
	if c.phase != waiting || c.undone || u.session != c.session || l.path(c.key, c.node.name) != next.path {
		return
	}
	l.holds(c, u.start)
	c.box.Deliver(storekit.Handover{Token: c.token, Start: u.start})
}

// expired reports whether the session of c has ended.
func (l *Locker) expired(c snapshot) bool { return l.conn.SessionID() != c.session }

// howLost is why the node of a grant is not there although nobody has released it.
func (l *Locker) howLost(c snapshot) lock.LostReason {
	if l.expired(c) {
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
	return l.delete(ctx, l.path(g.Key, n.name), g.Token)
}

// delete deletes the node of a grant with that token, or of a waiter.
func (l *Locker) delete(ctx context.Context, path string, token lock.Token) error {
	doubt := false
	_, err := storekit.Repeat(ctx, classify, func(ctx context.Context, _ int) error {
		err := l.lane.do(ctx, &unit{ops: []any{&zk.DeleteRequest{Path: path, Version: -1}}})
		switch {
		case !errors.Is(err, zk.ErrNoNode):
			doubt = doubt || classify(err) == storekit.Unknown
			return err
		case doubt: // an earlier try has deleted it
			return nil
		}
		return &lock.LostError{Token: token}
	})
	return err
}

// locate returns the node of a grant that is none of our claims. If it is not there the
// error is ErrLost.
func (l *Locker) locate(ctx context.Context, g lock.Grant) (found node, err error) {
	_, err = storekit.Repeat(ctx, classify, func(ctx context.Context, _ int) error {
		line, err := l.current(ctx, g.Key)
		if err != nil {
			return err
		}
		for _, n := range line {
			if n.owner != g.Owner {
				continue
			}
			_, stat, err := get(ctx, l.conn, l.path(g.Key, n.name))
			if err == nil && l.tokenOf(stat.Czxid) == g.Token {
				found = n
				return nil
			}
			if err != nil && !errors.Is(err, zk.ErrNoNode) {
				return err
			}
		}
		lost := &lock.LostError{Reason: storekit.Vanished(g), Token: g.Token}
		if len(line) > 0 {
			lost.Reason = lock.ReasonTaken
		}
		return lost
	})
	return found, err
}

// errOther is for a renewal by a Locker that cannot vouch for the holder's session.
var errOther = errors.New("the grant belongs to another session: only the Locker that acquired it can renew it")

// notMine is the error of a renewal of what is none of this Locker's claims.
func (l *Locker) notMine(ctx context.Context, g lock.Grant) error {
	if _, err := l.locate(ctx, g); err != nil {
		return err
	}
	return errors.Join(lock.ErrUnsupported, errOther)
}

// abandon ends the claim of an Acquire that failed, and sees to it that its node goes, be
// it there already or on its way.
func (l *Locker) abandon(a *acquisition) {
	c := a.c
	l.mu.Lock()
	name := c.node.name
	if c.phase == ended {
		name = ""
	}
	l.close(c)
	l.mu.Unlock()
	switch {
	case name != "":
		l.discard(l.path(c.key, name))
	case a.doubt:
		l.pruneOwner(c.key, c.owner)
	}
}

// discard has a node deleted in the background.
func (l *Locker) discard(path string) {
	go l.persist(func(ctx context.Context) error {
		return l.lane.do(ctx, &unit{ops: []any{&zk.DeleteRequest{Path: path, Version: -1}}})
	})
}

// retire has a node deleted in the background, and then its container: the server refuses that while
// others are in line.
func (l *Locker) retire(key, name string) {
	go func() {
		for _, path := range []string{l.path(key, name), l.parent(key)} {
			l.persist(func(ctx context.Context) error {
				return l.lane.do(ctx, &unit{ops: []any{&zk.DeleteRequest{Path: path, Version: -1}}})
			})
		}
	}()
}

// pruneOwner deletes, in the background, the nodes of an owner without a claim, whose creation was
// given up before its outcome was known. Those of other sessions stay: another process may hold the
// lock, or wait for it, as the same owner, as a replica of the lock service does.
func (l *Locker) pruneOwner(key, owner string) {
	go l.persist(func(ctx context.Context) error { return l.pruneOwnerOnce(ctx, key, owner, false) })
}

// persist calls f until what it does is done, however long there is no server: the node would else
// live as long as the session. It stops when the session has ended, and its nodes with it, or the
// connection was closed: then that stays disconnected.
func (l *Locker) persist(f func(context.Context) error) {
	session := l.conn.SessionID()
	for n, closed := 0, 0; closed < maxClosed && session != 0 && l.conn.SessionID() == session; {
		if !classify(f(context.Background())).Passing() {
			return
		}
		if l.conn.State() == zk.StateDisconnected {
			n, closed = 0, closed+1
		} else {
			n, closed = n+1, 0
		}
		_ = pauses.Sleep(context.Background(), n)
	}
}

// maxClosed is how often in a row a connection that was closed is seen disconnected. One that
// connects again is so for no time, and answers nothing meanwhile.
const maxClosed = 10

// pauses are those between two tries of what goes on in the background.
var pauses = storekit.Backoff{Min: 5 * time.Millisecond, Max: 500 * time.Millisecond}

// remove deletes the node of a claim that nobody needs any more, and ends it.
func (l *Locker) remove(ctx context.Context, c *claim) error {
	l.mu.Lock()
	name := c.node.name
	l.mu.Unlock()
	if name == "" { // it has gone already
		return nil
	}
	err := l.delete(ctx, l.path(c.key, name), 0)
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
		c.box.Wake()
		return l.remove(ctx, c)
	}
	_, err := storekit.Repeat(ctx, classify, func(ctx context.Context, _ int) error {
		return l.pruneOwnerOnce(ctx, key, owner, true)
	})
	return err
}

// pruneOwnerOnce deletes the nodes of an owner, all or those of this session, once its creations are
// decided. It spares the node of a later Acquire: an owner that has tried may be waiting in line now.
func (l *Locker) pruneOwnerOnce(ctx context.Context, key, owner string, all bool) error {
	session, err := l.barrier(ctx)
	if err != nil {
		return err
	}
	line, err := l.line(ctx, key)
	if err != nil {
		return err
	}
	live, err := l.liveNode(key, owner)
	if err != nil {
		return err
	}
	for _, n := range line {
		if n.owner != owner || n.name == live {
			continue
		}
		if !all {
			ours, err := l.isOf(ctx, session, l.path(key, n.name))
			if err != nil {
				return err
			}
			if !ours {
				continue
			}
		}
		if err := l.delete(ctx, l.path(key, n.name), 0); err != nil && !errors.Is(err, lock.ErrLost) {
			return err
		}
	}
	return nil
}

// isOf reports whether a node is there and of that session.
func (l *Locker) isOf(ctx context.Context, session int64, path string) (bool, error) {
	_, stat, err := get(ctx, l.conn, path)
	if errors.Is(err, zk.ErrNoNode) {
		return false, nil
	}
	return err == nil && stat.EphemeralOwner == session, err
}

// liveNode is the name of the node of an owner's claim, if there is one that has not been undone.
func (l *Locker) liveNode(key, owner string) (string, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch c := l.claims[id{key, owner}]; {
	case c == nil || c.undone:
		return "", nil
	case c.phase == creating:
		return "", errCreating
	default:
		return c.node.name, nil
	}
}
