package etcd

import (
	"context"
	"errors"
	"runtime"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/seed-215fdefa/lock"
)

// Release implements [lock.Locker].
func (l *Locker) Release(ctx context.Context, g lock.Grant) error {
	if err := l.check(ctx, g); err != nil {
		return err
	}
	if g.Token == 0 {
		return l.fail(ctx, l.undo(ctx, g))
	}
	name, x, err := l.find(ctx, g)
	if err != nil {
		return l.fail(ctx, err)
	}
	h := l.holds.leaving(name, g.Token)
	err = l.again(ctx, g.TTL, func(ctx context.Context, n int) error {
		err := l.give(ctx, g, name, h)
		if n > 0 && h != nil && errors.Is(err, lock.ErrLost) {
			return nil // it was there, so the earlier sending has come through
		}
		return err
	})
	if h != nil {
		l.holds.left(h, err)
	}
	if err == nil || h != nil && errors.Is(err, lock.ErrLost) {
		l.gone(x, g.TTL)
	}
	return l.fail(ctx, err)
}

// give ends g, and lets the next in line have the lock if that is one of this Locker's.
func (l *Locker) give(ctx context.Context, g lock.Grant, name string, h *hold) error {
	if h != nil && !g.Shared { // other readers may hold it too
		if next := l.line.behind(name); next != nil {
			return l.handOver(ctx, g, name, next)
		}
	}
	return l.end(ctx, g, name)
}

// find returns the name of g's key, and its slot if it is one of this Locker's. The token tells
// the key of a grant that another Locker acquired. There need not be such a key any more.
func (l *Locker) find(ctx context.Context, g lock.Grant) (string, *slot, error) {
	if x := l.slots.of(g.Key, g.Owner); x != nil {
		return x.name, x, nil
	}
	entries, err := l.entries(ctx, g.Key)
	if err != nil {
		return "", nil, err
	}
	for _, e := range entries {
		if e.owner == g.Owner && e.kv.CreateRevision == int64(g.Token) {
			return string(e.kv.Key), nil, nil
		}
	}
	why := &lock.LostError{Token: g.Token}
	switch {
	case len(entries) > 0:
		why.Reason = lock.ReasonTaken
	case !g.Start.IsZero() && time.Since(g.Start) >= g.TTL:
		why.Reason = lock.ReasonExpired
	}
	return "", nil, why
}

// ending is the transaction that deletes the key of g, and nothing but that, or else reads who
// holds the lock.
func (l *Locker) ending(g lock.Grant, name string) *part {
	return &part{
		conditions: []clientv3.Cmp{clientv3.Compare(clientv3.CreateRevision(name), "=", int64(g.Token))},
		then:       []clientv3.Op{clientv3.OpDelete(name)},
		or:         []clientv3.Op{l.firstOf(g.Key)},
	}
}

// end deletes the key of g.
func (l *Locker) end(ctx context.Context, g lock.Grant, name string) error {
	out, err := l.lane.send(ctx, l.ending(g, name))
	if err != nil {
		return err
	}
	if !out.ok {
		return lost(g, out.ops[0].GetResponseRange())
	}
	l.watches.gone(l.base(g.Key), name, out.rev)
	return nil
}

// handOver ends g, which this Locker knows to hold the lock, alone, and grants to next,
// all in one transaction. Nobody stands between the two: next has seen g as the newest entry
// older than its own, and entries are created at the end of the line only. If next is gone,
// g ends all the same. If the reply is lost, next looks by itself.
func (l *Locker) handOver(ctx context.Context, g lock.Grant, name string, next *place) error {
	h := handover{rev: next.rev, start: time.Now(), lease: next.lease}
	defer func() {
		next.deliver(h)
		runtime.Gosched() // the next holder goes first: those behind it wait for its release
	}()
	l.leases.begin(h.lease, h.lease.eighth(h.start))
	if l.leases.remaining(h.lease, h.start) < h.lease.ttl*3/4 {
		return l.end(ctx, g, name) // next sees to its lease
	}
	end := l.ending(g, name)
	p := &part{
		conditions: append(end.conditions[:1:1], clientv3.Compare(clientv3.CreateRevision(next.name), "=", next.rev)),
		then:       append(end.then[:1:1], clientv3.OpPut(next.name, next.value(), clientv3.WithLease(h.lease.id))),
		or:         []clientv3.Op{clientv3.OpTxn(end.conditions, end.then, end.or)},
	}
	out, err := l.lane.ahead(ctx, l.base(g.Key), p) // a line waits for it
	switch {
	case isGone(err): // the lease for next: g is as it was
		l.leases.suspect(err, h.lease)
		return l.end(ctx, g, name)
	case err != nil:
		return err
	case out.ok:
		h.ok, h.mod = true, out.rev
		return nil
	}
	if inner := out.ops[0].GetResponseTxn(); !inner.Succeeded {
		return lost(g, inner.Responses[0].GetResponseRange())
	}
	l.watches.gone(l.base(g.Key), name, out.rev)
	return nil
}

// undo deletes whatever g.Owner has of g.Key. What an Acquire with an unknown outcome may
// bring about later is swept, and so is what the undo does not reach: its etcd lease, which
// others keep alive, would not end it.
func (l *Locker) undo(ctx context.Context, g lock.Grant) error {
	if x := l.slots.of(g.Key, g.Owner); x != nil {
		l.holds.forget(x.name)
		rev, err := l.drop(ctx, x)
		if err != nil {
			l.slots.doubt(x)
		} else if rev > 0 {
			l.watches.gone(x.base, x.name, rev)
		}
		l.gone(x, undoTTL)
		return err
	}
	entries, err := l.entries(ctx, g.Key)
	for _, e := range entries {
		if err == nil && e.owner == g.Owner {
			name := string(e.kv.Key)
			_, err = l.cli.Txn(ctx).
				If(clientv3.Compare(clientv3.CreateRevision(name), "=", e.kv.CreateRevision)).
				Then(clientv3.OpDelete(name)).Commit()
		}
	}
	return err
}

// drop deletes the key of x, and returns the revision of that, or 0 if there was none. The name
// may be another's by the time that a late request arrives, so it deletes no key but the one
// that it has seen to be of x's owner.
func (l *Locker) drop(ctx context.Context, x *slot) (rev int64, err error) {
	for seen := int64(0); ; {
		var resp *clientv3.TxnResponse
		err := l.again(ctx, undoTTL, func(ctx context.Context, _ int) (err error) {
			resp, err = l.cli.Txn(ctx).
				If(clientv3.Compare(clientv3.CreateRevision(x.name), "=", seen)).
				Then(clientv3.OpDelete(x.name)).
				Else(clientv3.OpGet(x.name)).Commit()
			return err
		})
		switch {
		case err != nil:
			return 0, err
		case resp.Succeeded && seen == 0:
			return 0, nil
		case resp.Succeeded:
			return resp.Header.Revision, nil
		}
		seen = 0
		for _, kv := range resp.Responses[0].GetResponseRange().Kvs {
			if e, ok := entryOf(l.prefix, kv); !ok || e.owner != x.owner {
				return 0, nil
			}
			seen = kv.CreateRevision
		}
	}
}

const (
	sweepFirst = time.Second
	// sweepLife is longer than a request may linger whose client has given it up.
	sweepLife = 2 * time.Minute
	// undoTTL bounds the pauses of sweeps after an undo, which knows no TTL.
	undoTTL = 5 * time.Second
)

// gone takes x back, whose key is gone. If a late request may yet create it, its name is swept
// before it is used again.
func (l *Locker) gone(x *slot, ttl time.Duration) {
	if x != nil && l.slots.free(x) {
		l.sweep(x, max(ttl, minTTL), sweepFirst, time.Now().Add(sweepLife))
	}
}

// sweep deletes x's key again and again: the pauses grow to a TTL, so that a late grant lives
// no longer than that. If this process dies, its etcd lease ends the grant.
func (l *Locker) sweep(x *slot, ttl, pause time.Duration, until time.Time) {
	time.AfterFunc(pause, func() {
		l.spawn(func() {
			ctx, cancel := context.WithTimeout(l.ctx, requestTimeout)
			defer cancel()
			if _, err := l.drop(ctx, x); err == nil && time.Now().After(until) {
				l.slots.swept(x)
				return
			}
			l.sweep(x, ttl, min(2*pause, ttl), until)
		})
	})
}

// lost says why g is not live: rest is the first entry of the line.
func lost(g lock.Grant, rest *pb.RangeResponse) error {
	err := &lock.LostError{Token: g.Token}
	switch {
	case len(rest.Kvs) > 0:
		err.Reason = lock.ReasonTaken
	case !g.Start.IsZero() && time.Since(g.Start) >= g.TTL:
		err.Reason = lock.ReasonExpired
	}
	return err
}
