package zookeeper

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/go-zookeeper/zk"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/internal/storekit"
)

// acquisition is one Acquire. Only its own goroutine uses it.
type acquisition struct {
	l      *Locker
	c      *claim
	req    lock.Request
	t      tries
	stood  bool        // it has had a node
	behind int         // how many nodes were in front of that
	told   bool        // req.Waiting has been called
	seen   lock.Record // what was last seen of who is in front; its Key is set if anybody is
	front  node        // of whom it waits for
	nobody bool        // a watch would be no use: whom it waits for is a claim of ours
}

// run acquires: it gets a node in line, and waits until that is first. When the node is
// gone, since the session has expired, it begins again.
func (a *acquisition) run(ctx context.Context) (lock.Grant, error) {
	for {
		var start time.Time
		var first bool
		err := storekit.WithinPatience(ctx, func(ctx context.Context) (err error) {
			start, first, err = a.join(ctx)
			return err
		})
		if err == nil && first {
			return a.granted(start)
		}
		var g lock.Grant
		if err == nil {
			g, err = a.stand(ctx, start)
		}
		if !errors.Is(err, errGone) {
			return g, a.ended(ctx, err)
		}
		a.l.displaced(a.c)
	}
}

// granted makes the claim held since start.
func (a *acquisition) granted(start time.Time) (lock.Grant, error) {
	g, ok := a.l.hold(a.c, start)
	if !ok {
		return lock.Grant{}, errUndone
	}
	return g, nil
}

// ended makes an error that is ctx's say that the key was seen held.
func (a *acquisition) ended(ctx context.Context, err error) error {
	if err == nil || a.seen.Key == "" || ctx.Err() == nil || !errors.Is(err, ctx.Err()) || errors.Is(err, lock.ErrHeld) {
		return err
	}
	return &lock.HeldError{Record: a.seen, Err: err}
}

// join creates the node. start is from before it was sent. first says that no other node
// is there, so the lock is ours: the transaction that creates the node writes its parent as
// well, and what the server says of that has the czxid and the number of children.
func (a *acquisition) join(ctx context.Context) (start time.Time, first bool, err error) {
	l, c := a.l, a.c
	for {
		u := a.unit()
		made, err := l.ensure(ctx, c.key)
		if err == nil {
			err = l.lane.do(ctx, u)
		}
		if made != nil && errors.Is(err, zk.ErrNoNode) {
			err = outcome(ctx, made)
		}
		switch {
		case err == nil && u.err != nil: // the container is there now
		case err == nil && u.session != 0:
			n, ok := parseNode(u.replies[0].String[len(l.parent(c.key))+1:])
			if !ok {
				return start, false, errReply
			}
			a.t.reset()
			stat := u.replies[1].Stat
			a.stood, a.behind = true, int(stat.NumChildren)-1
			return u.start, stat.NumChildren == 1, a.placed(n, stat.Mzxid, u.session)
		case err == nil, isUnknown(err):
			l.doubt(c)
			if found, err := a.resolve(ctx); found || err != nil {
				return start, false, err
			}
		case errors.Is(err, zk.ErrNoNode):
			l.parents.forget(c.key) // its container was empty for too long
		case isTransient(err):
			if err := a.t.pause(ctx, l.done, err); err != nil {
				return start, false, err
			}
			if a.t.noServer > 1 && !a.stood { // the first may have been said before any was asked
				return start, false, err
			}
		default:
			return start, false, a.t.end(ctx, err)
		}
	}
}

// outcome waits for what made tells.
func outcome(ctx context.Context, made <-chan error) error {
	select {
	case err := <-made:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// unit is the creation of a's node. When it is done after a has given up, the node goes.
func (a *acquisition) unit() *unit {
	l, c := a.l, a.c
	parent := l.parent(c.key)
	return &unit{
		key: c.key, size: len(c.data) + 2*len(parent), slow: a.req.Wait && l.crowded(c.key),
		ops: []any{
			&zk.CreateRequest{
				Path: parent + "/" + prefix(c.owner, c.shared), Data: c.data, Acl: l.acl, Flags: zk.FlagEphemeralSequential,
			},
			&zk.SetDataRequest{Path: parent, Version: -1},
		},
		late: func(u *unit) {
			switch {
			case u.err == nil:
				l.discard(u.replies[0].String)
			case isUnknown(u.err):
				go l.sweep(c.key, c.owner)
			}
		},
	}
}

// placed notes the node that a has in line. Its czxid is the token.
func (a *acquisition) placed(n node, czxid, session int64) error {
	token := a.l.tokenOf(czxid)
	err := a.l.placed(a.c, n, token, session)
	if err == nil && (czxid <= 0 || token > lock.MaxToken) {
		err = fmt.Errorf("lock: zookeeper: zxid %#x is no token: with the token base %d it must be from 1 to %d", czxid, a.l.base, lock.MaxToken)
	}
	if err == nil {
		err = a.l.short()
	}
	if err != nil {
		a.l.discard(a.l.path(a.c.key, n.name))
	}
	return err
}

// resolve finds out whether the node is there after a creation whose outcome is unknown.
// Until that is known there is no second creation: its node would stand behind the first.
func (a *acquisition) resolve(ctx context.Context) (found bool, err error) {
	for {
		found, err := a.find(ctx)
		if err == nil || !isTransient(err) {
			return found, a.t.end(ctx, err)
		}
		if err := a.t.pause(ctx, a.l.done, err); err != nil {
			return false, err
		}
	}
}

// find looks for the node of a creation whose outcome is unknown, once it is decided. A
// node of another session, which is to die with it, is not ours to hold: it is deleted.
func (a *acquisition) find(ctx context.Context) (found bool, err error) {
	l, c := a.l, a.c
	session, err := l.barrier(ctx)
	if err != nil {
		return false, err
	}
	line, err := l.line(ctx, c.key)
	if err != nil {
		return false, err
	}
	for _, n := range line {
		if n.owner != c.owner {
			continue
		}
		path := l.path(c.key, n.name)
		_, stat, err := l.get(ctx, path)
		switch {
		case errors.Is(err, zk.ErrNoNode):
		case err != nil:
			return false, err
		case stat.EphemeralOwner != session || found:
			l.discard(path)
		default:
			found = true
			if err := a.placed(n, stat.Czxid, session); err != nil {
				return false, err
			}
		}
	}
	return found, nil
}

func (l *Locker) get(ctx context.Context, path string) ([]byte, *zk.Stat, error) {
	type reply struct {
		data []byte
		stat *zk.Stat
	}
	r, err := call(ctx, func() (reply, error) {
		data, stat, err := l.conn.Get(path)
		return reply{data, stat}, err
	})
	return r.data, r.stat, err
}

// glance is what a try sees of a key that was held a moment ago, without standing in line.
func (l *Locker) glance(ctx context.Context, req lock.Request) (lock.Record, error) {
	line, err := l.current(ctx, req.Key)
	if err != nil {
		return lock.Record{}, err
	}
	if req.Shared && holders(line) == len(line) && (len(line) == 0 || line[0].shared) {
		line = nil // readers beside whom it may be
	}
	return l.inFront(ctx, req.Key, line)
}
