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
	began  bool        // its first claim is over
	stands bool        // it has a node
	start  time.Time   // before the creation of that was sent, if it has not waited since
	count  int         // how many nodes were in front of it when it came
	doubt  bool        // the outcome of a creation is unknown
	seen   lock.Record // what is known of who is in front; its Key is set if anybody is
	front  node        // of whom it waits for, or of a try that may leave; its name is set if there is one
	ours   bool        // that is a claim of this Locker, so a watch would be no use
}

// try is an Acquire that does not wait.
func (a *acquisition) try(ctx context.Context) (lock.Grant, error) {
	g, no, err := a.claim(ctx, true)
	if err != nil || no == nil {
		return g, err
	}
	return g, &lock.HeldError{Record: no.Record, Err: a.l.remove(ctx, a.c)}
}

// claim gets a node in line, and looks whether that is first. Errors that pass it stands by
// itself only before it is in line.
func (a *acquisition) claim(ctx context.Context, woken bool) (g lock.Grant, no *storekit.Refusal, err error) {
	if a.began {
		return a.claimOnce(ctx, woken)
	}
	_, err = storekit.Repeat(ctx, classify, func(ctx context.Context, _ int) error {
		g, no, err = a.claimOnce(ctx, woken)
		return err
	})
	a.began = !errors.Is(err, storekit.ErrQueued)
	return g, no, err
}

// claimOnce gets a node where there is none, and else looks at the line, unless nothing has
// happened to the one in front. When a's node is gone, since the session has expired or an
// operator has deleted it, it begins anew.
func (a *acquisition) claimOnce(ctx context.Context, woken bool) (lock.Grant, *storekit.Refusal, error) {
	switch {
	case a.stands:
		a.start = time.Time{} // it has waited since
		if !woken && a.front.name != "" && a.inPlace(ctx) {
			return lock.Grant{}, &storekit.Refusal{Record: a.seen}, nil
		}
	default:
		if err := a.join(ctx); err != nil {
			return lock.Grant{}, nil, err
		}
		if a.count == 0 && !a.start.IsZero() {
			return lock.Grant{Token: a.c.token, Start: a.start}, nil, nil
		}
		if a.afterOurs() {
			return lock.Grant{}, &storekit.Refusal{Record: a.seen}, nil
		}
	}
	first, err := a.look(ctx)
	start := a.start
	if first && start.IsZero() {
		start, err = a.verify(ctx)
	}
	switch {
	case errors.Is(err, errGone) && a.l.displace(a.c):
		a.stands, a.front = false, node{}
		return a.claimOnce(ctx, true)
	case err != nil && !errors.Is(err, errGone):
		return lock.Grant{}, nil, err
	case err == nil && first:
		return lock.Grant{Token: a.c.token, Start: start}, nil, nil
	}
	return lock.Grant{}, &storekit.Refusal{Record: a.seen}, nil
}

// join creates the node. a.start is from before that was sent. If no other node is there the
// lock is ours: the transaction that creates the node writes its parent as well, and what the
// server says of that has the czxid and the number of children.
func (a *acquisition) join(ctx context.Context) error {
	l, c := a.l, a.c
	if a.doubt { // or a second node would stand behind the first
		if err := a.find(ctx); err != nil || a.stands {
			return err
		}
	}
	for {
		u := a.unit()
		err := l.ensure(ctx, c.key)
		if err == nil {
			err = l.lane.do(ctx, u)
		}
		switch {
		case err == nil && u.session != 0:
			n, ok := parseNode(u.replies[0].String[len(l.parent(c.key))+1:])
			if !ok {
				return errReply
			}
			stat := u.replies[1].Stat
			a.start, a.count = u.start, int(stat.NumChildren)-1
			return a.placed(n, stat.Mzxid, u.session)
		case errors.Is(err, zk.ErrNoNode): // its container was empty for too long
			l.parents.forget(c.key)
			continue
		case err == nil:
			err = zk.ErrSessionMoved // it was sent in either of two
		}
		a.doubt = a.doubt || classify(err) == storekit.Unknown
		return err
	}
}

// unit is the creation of a's node. When it is done after a has given up, the node goes.
func (a *acquisition) unit() *unit {
	l, c := a.l, a.c
	parent := l.parent(c.key)
	return &unit{
		key: c.key, slow: a.req.Wait && l.headed(c.key),
		ops: []any{
			&zk.CreateRequest{
				Path: parent + "/" + prefix(c.owner, c.shared, !a.req.Wait), Data: c.data, Acl: l.acl, Flags: zk.FlagEphemeralSequential,
			},
			&zk.SetDataRequest{Path: parent, Version: -1},
		},
		late: func(u *unit) {
			switch {
			case u.err == nil:
				l.discard(u.replies[0].String)
			case classify(u.err) == storekit.Unknown:
				l.pruneOwner(c.key, c.owner)
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
	if err == nil && n.spent() {
		err = fmt.Errorf("lock: zookeeper: the sequence numbers of %s are used up: it takes nobody until all in line have gone and it was deleted",
			a.l.parent(a.c.key))
		a.l.retire(a.c.key, n.name)
	}
	if err == nil {
		err = a.l.short()
	}
	if err != nil {
		a.l.discard(a.l.path(a.c.key, n.name))
	}
	a.stands = err == nil
	return err
}

// find looks for the node of a creation whose outcome is unknown, once it is decided. A
// node of another session, which is to die with it, is not ours to hold: it is deleted.
func (a *acquisition) find(ctx context.Context) error {
	l, c := a.l, a.c
	session, err := l.barrier(ctx)
	if err != nil {
		return err
	}
	line, err := l.line(ctx, c.key)
	if err != nil {
		return err
	}
	for i, n := range line {
		if n.owner != c.owner {
			continue
		}
		path := l.path(c.key, n.name)
		_, stat, err := get(ctx, l.conn, path)
		switch {
		case errors.Is(err, zk.ErrNoNode):
		case err != nil:
			return err
		case stat.EphemeralOwner != session || a.stands:
			l.discard(path)
		default:
			a.start, a.count = time.Time{}, i
			if err := a.placed(n, stat.Czxid, session); err != nil {
				return err
			}
		}
	}
	a.doubt = false
	return nil
}
