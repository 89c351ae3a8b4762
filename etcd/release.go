package etcd

import (
	"context"
	"errors"
	"runtime"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/internal/storekit"
)

// Release implements [lock.Locker].
func (l *Locker) Release(ctx context.Context, g lock.Grant) error {
	if err := l.ready(ctx, lock.CheckGrant(g)); err != nil {
		return err
	}
	return l.fail(ctx, l.within(ctx, func(ctx context.Context) error {
		if g.Token == 0 {
			return l.undo(ctx, g)
		}
		return l.release(ctx, g)
	}))
}

// release ends g. If that fails it is tried again later: until then the grant may live on.
func (l *Locker) release(ctx context.Context, g lock.Grant) error {
	h := l.holds.of(g.Key, g.Owner)
	if h == nil {
		h, err := l.find(ctx, g)
		if err != nil {
			return err
		}
		_, err = l.end(ctx, g, h, l.revisionOf(g.Token))
		return err
	}
	if _, live := l.holds.has(h, g.Token); !live {
		_, err := l.end(ctx, g, h, l.revisionOf(g.Token))
		return err
	}
	l.holds.leaving(h)
	rev, err := l.give(ctx, g, h)
	switch {
	case err == nil:
		l.holds.forget(h, rev)
	case errors.Is(err, lock.ErrLost):
		l.holds.vanished(h)
	default:
		l.pruner.add(0, h)
	}
	return err
}

// give ends g, and lets the next in line have the lock if that is one of this Locker's. It
// returns the revision at which the key was deleted, unless the next knows of it.
func (l *Locker) give(ctx context.Context, g lock.Grant, h *hold) (rev int64, err error) {
	if !g.Shared && !h.doubt { // other readers may hold it too
		if next := l.lines.behind(h.name); next != nil {
			return l.handOver(ctx, g, h, next)
		}
	}
	return l.end(ctx, g, h, h.rev)
}

// end deletes the key of g, which has that create revision, and leaves a tombstone if a late
// request may create it again.
func (l *Locker) end(ctx context.Context, g lock.Grant, h *hold, created int64) (rev int64, err error) {
	out, err := l.bury(ctx, h, clientv3.Compare(clientv3.CreateRevision(h.name), "=", created))
	switch {
	case err != nil:
		return 0, err
	case out.ok:
		return out.rev, nil
	case out.doubt && h.number >= 0:
		return 0, nil // it was there, so an earlier sending has come through
	}
	return 0, lostTo(g, out.ops[0])
}

// bury deletes h's key on some conditions, or else reads who holds the lock. A tombstone goes
// with it if there is doubt.
func (l *Locker) bury(ctx context.Context, h *hold, conditions ...clientv3.Cmp) (outcome, error) {
	p := &part{
		conditions: conditions,
		then:       []clientv3.Op{clientv3.OpDelete(h.name)},
		or:         []clientv3.Op{everyone(h.base, 1)},
		every:      impatience(requestTimeout),
	}
	if h.lined {
		p.then, p.line = append(p.then, h.leaveTail()), h.base
	}
	if !h.doubt {
		return l.writes.send(ctx, p)
	}
	q := *p
	le, err := l.leases.get(ctx, storekit.UndoLife)
	if err == nil {
		grave := h.grave(le)
		q.then, q.or = append(q.then[:len(q.then):len(q.then)], grave), append(q.or[:1:1], grave)
		var out outcome
		if out, err = l.writes.send(ctx, &q); err == nil {
			return out, nil
		}
		l.leases.suspect(err, le)
	}
	if !isFull(err) {
		return outcome{}, err
	}
	out, err := l.writes.send(ctx, p)
	if err == nil {
		l.pruner.add(undoDelay, h) // for the tombstone
	}
	return out, err
}

// grave puts the tombstone of h's owner.
func (h *hold) grave(le *lease) clientv3.Op {
	return clientv3.OpPut(tomb(h.base, h.g.Owner), "", clientv3.WithLease(le.id))
}

// leaveTail deletes the tail if it names h, which waits no more.
func (h *hold) leaveTail() clientv3.Op {
	t := tail(h.base)
	return clientv3.OpTxn([]clientv3.Cmp{clientv3.Compare(clientv3.Value(t), "=", h.name)},
		[]clientv3.Op{clientv3.OpDelete(t)}, nil)
}

// handOver ends g, which this Locker knows to hold the lock, alone, and grants to next,
// all in one transaction. Nobody stands between the two: next has seen g as the newest entry
// older than its own, and entries are created at the end of the line only. If next is gone,
// g ends all the same. If the reply is lost, next looks by itself.
func (l *Locker) handOver(ctx context.Context, g lock.Grant, h *hold, next *place) (rev int64, err error) {
	delivered, le := false, next.lease
	defer func() {
		if !delivered {
			next.failed()
		}
		runtime.Gosched() // the next holder goes first: those behind it wait for its release
	}()
	start := time.Now()
	l.leases.begin(le, le.eighth(start))
	from, ttl := l.leases.term(le, start, start)
	if ttl < le.ttl*3/4 {
		return l.end(ctx, g, h, h.rev) // next sees to its lease
	}
	a := next.a
	mine := clientv3.Compare(clientv3.CreateRevision(h.name), "=", h.rev)
	gone := clientv3.OpDelete(h.name)
	out, err := l.writes.send(ctx, &part{
		conditions: []clientv3.Cmp{mine, a.is(next.rev)},
		then: []clientv3.Op{
			gone, clientv3.OpPut(a.h.name, a.value(true), clientv3.WithLease(le.id)), a.h.leaveTail(),
		},
		or:    []clientv3.Op{clientv3.OpTxn([]clientv3.Cmp{mine}, []clientv3.Op{gone}, []clientv3.Op{everyone(h.base, 1)})},
		line:  h.base,
		every: impatience(g.TTL), alone: true, // a line waits for it
	})
	switch {
	case isGone(err), isFull(err): // g is as it was
		l.leases.suspect(err, le)
		return l.end(ctx, g, h, h.rev)
	case err != nil:
		return 0, err
	case out.ok:
		token := l.tokenOf(next.rev)
		l.holds.granted(a.h, lock.Grant{
			Key: a.req.Key, Owner: a.req.Owner, Token: token, TTL: ttl, Start: from,
		}, out.rev, le, false)
		a.box.Deliver(storekit.Handover{Token: token, Start: from})
		delivered = true
		return 0, nil
	}
	inner := out.ops[0].GetResponseTxn()
	switch {
	case inner.Succeeded:
		return out.rev, nil
	case out.doubt:
		return 0, nil
	}
	return 0, lostTo(g, inner.Responses[0])
}

// find returns what another Locker has acquired. There need not be such a key any more.
func (l *Locker) find(ctx context.Context, g lock.Grant) (*hold, error) {
	base := l.baseOf(g.Key)
	resp, err := l.read(ctx, everyone(base, 0))
	if err != nil {
		return nil, err
	}
	for _, e := range entriesOf(l.prefix, resp.Kvs) {
		if e.owner == g.Owner && (g.Token == 0 || e.kv.CreateRevision == l.revisionOf(g.Token)) {
			return &hold{
				g: g, name: string(e.kv.Key), base: base, number: -1, rev: e.kv.CreateRevision, lined: true, index: -1,
			}, nil
		}
	}
	return nil, lostTo(g, &pb.ResponseOp{Response: &pb.ResponseOp_ResponseRange{ResponseRange: resp}})
}

// undo deletes whatever g.Owner has of g.Key, and refuses what it may yet get.
func (l *Locker) undo(ctx context.Context, g lock.Grant) error {
	h := l.holds.of(g.Key, g.Owner)
	if h == nil {
		h, err := l.find(ctx, g)
		if errors.Is(err, lock.ErrLost) {
			return nil
		}
		if err == nil {
			_, err = l.bury(ctx, h, clientv3.Compare(clientv3.CreateRevision(h.name), "=", h.rev))
		}
		return err
	}
	l.holds.undone(h)
	if h.foreign {
		l.holds.forget(h, 0)
		return nil
	}
	out, err := l.bury(ctx, h, h.sure()...)
	if err != nil {
		l.pruner.add(0, h)
		return err
	}
	if !out.ok {
		out.rev = 0
	}
	l.holds.forget(h, out.rev)
	return nil
}

// undone ends h, whose outcome nobody is told any more. While its Acquire is under way
// everything is possible.
func (hs *holds) undone(h *hold) {
	hs.mu.Lock()
	h.doubt, h.lined = h.doubt || h.pending, h.lined || h.pending
	leave := hs.remove(h)
	hs.mu.Unlock()
	leave()
}

// sure is the condition on which a key may be deleted of whom nobody has told of a grant. In
// doubt there is none: the name is not used again.
func (h *hold) sure() []clientv3.Cmp {
	if h.doubt {
		return nil
	}
	return []clientv3.Cmp{clientv3.Compare(clientv3.CreateRevision(h.name), "=", h.rev)}
}

// lostTo says why g is not live: rest is the first entry of the line.
func lostTo(g lock.Grant, rest *pb.ResponseOp) error {
	err := &lock.LostError{Token: g.Token}
	switch {
	case len(rest.GetResponseRange().Kvs) > 0:
		err.Reason = lock.ReasonTaken
	case !g.Start.IsZero():
		err.Reason = storekit.Vanished(g)
	}
	return err
}
