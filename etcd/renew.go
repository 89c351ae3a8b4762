package etcd

import (
	"context"
	"errors"
	"fmt"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/internal/storekit"
)

// Renew implements [lock.Locker]. If another Locker acquired the grant, or for a shorter TTL, Renew
// moves it to another etcd lease, of this one.
func (l *Locker) Renew(ctx context.Context, g lock.Grant) (lock.Grant, error) {
	if err := l.ready(ctx, storekit.CheckRenewal(g)); err != nil {
		return lock.Grant{}, err
	}
	if g.Token == 0 {
		return lock.Grant{}, fmt.Errorf("%w: token 0: must be positive", lock.ErrInvalid)
	}
	err := l.within(ctx, func(ctx context.Context) (err error) {
		if err = l.endOf(ctx, g); err != nil {
			return err
		}
		h, renew := l.renewing(g), l.confirm
		if h == nil {
			e, err := l.find(ctx, g)
			if err != nil {
				return err
			}
			h, renew = l.revive(g, e), l.adopt
		}
		g, err = renew(ctx, h, g)
		l.renewed(h, g, err)
		return err
	})
	if err != nil {
		return lock.Grant{}, l.fail(ctx, err)
	}
	return g, nil
}

// endOf is what has been told of the end of g, nil if nothing: nobody may renew or release it
// then, although its key may be there until it is pruned. But if it has ended by its TTL, and another
// Locker has renewed it meanwhile, under an etcd lease of its own, it lives.
func (l *Locker) endOf(ctx context.Context, g lock.Grant) error {
	l.mu.Lock()
	h := l.byOwner[idOf(g)]
	if h == nil || h.ended == nil || h.ended.Token != g.Token {
		l.mu.Unlock()
		return nil
	}
	x := *h
	l.mu.Unlock()
	if x.ended.Reason != lock.ReasonExpired {
		return x.ended
	}
	resp, err := l.read(ctx, clientv3.OpGet(x.name, clientv3.WithKeysOnly()))
	if err != nil {
		return err
	}
	for _, kv := range resp.Kvs {
		if kv.CreateRevision == x.rev && kv.ModRevision != x.mod && !l.owns(kv) {
			return nil
		}
	}
	return x.ended
}

// owns reports whether the key is under an etcd lease of this Locker.
func (l *Locker) owns(kv *mvccpb.KeyValue) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.own[clientv3.LeaseID(kv.Lease)] != nil
}

// renewing returns the grant and keeps it from ending until renewed.
func (l *Locker) renewing(g lock.Grant) *hold {
	l.mu.Lock()
	defer l.mu.Unlock()
	h := l.byOwner[idOf(g)]
	if h == nil || h.over || h.lease == nil || h.g.Token != g.Token {
		return nil
	}
	h.renewals++
	return h
}

// revive does so with a grant of which e is the entry, and that does not live in the books: another Locker
// has acquired it, or renewed it when it had ended here. What it was here makes room, and a prune of that
// which is under way has no effect once the key is put anew. Its doubt stays, and what is acquiring is in
// doubt: it ends here, and copies of its request may come.
func (l *Locker) revive(g lock.Grant, e entry) *hold {
	l.mu.Lock()
	defer l.mu.Unlock()
	known := l.holdOf(g, e)
	old := l.byName[known.name]
	if old == known && !known.over && known.g.Token == g.Token { // another try of its owner was later
		known.renewals++
		l.byOwner[idOf(g)] = known
		return known
	}
	acquiring := !known.over && known.g.Token == 0 && known.attempt != ""
	g.Shared, g.Start, g.TTL = e.shared, time.Now(), min(g.TTL, l.maxTTL)
	h := &hold{
		g: g, name: known.name, base: known.base, number: known.number, attempt: known.attempt,
		lined: true, doubt: known.doubt || acquiring, rev: e.kv.CreateRevision, mod: known.mod,
		seen: known.seen, until: known.until, tried: known.tried, renewals: 1,
	}
	switch {
	case old == nil:
	case old.rev <= h.rev && (old == known || old.attempt == ""): // an Acquire under way is refused
		old.over, old.lost = true, nil
		if l.byOwner[idOf(old.g)] == old {
			delete(l.byOwner, idOf(old.g))
		}
	default: // the entry has gone since it was read, and its name is in use again
		return h
	}
	l.byOwner[idOf(g)], l.byName[h.name] = h, h
	l.arm()
	return h
}

// renewed notes what came of a renewal. The grant lives for as long as any has promised.
func (l *Locker) renewed(h *hold, g lock.Grant, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	h.renewals--
	switch {
	case h.g.Token != g.Token: // it has been undone meanwhile, or has lined up anew
	case errors.Is(err, lock.ErrLost):
		h.lost, h.over, h.due = nil, true, time.Now()
	case err == nil && g.Start.Add(g.TTL).After(h.g.Start.Add(h.g.TTL)):
		h.g.Start, h.g.TTL = g.Start, g.TTL
	}
}

// confirm keeps the etcd lease of h alive and reads its key, side by side: in whatever order
// they take effect, the key is there for a TTL from now on unless somebody deletes it.
func (l *Locker) confirm(ctx context.Context, h *hold, g lock.Grant) (lock.Grant, error) {
	l.mu.Lock()
	le, mod := h.lease, h.mod
	l.mu.Unlock()
	start := time.Now()
	beat := l.freshen(le, start)
	out, err := l.reads.send(ctx, part{
		ops: []clientv3.Op{clientv3.OpGet(h.name, clientv3.WithKeysOnly())}, every: le.impatience(),
	})
	if err != nil {
		return g, err
	}
	kvs := out.ops[0].GetResponseRange().Kvs
	there := len(kvs) > 0 && kvs[0].CreateRevision == l.revisionOf(g.Token)
	if there && (kvs[0].ModRevision != mod || le.ttl < min(g.TTL, l.maxTTL)) {
		return l.adopt(ctx, h, g)
	}
	if there {
		err = beat.wait(ctx, l)
	}
	if !there || isGone(err) {
		l.mu.Lock()
		defer l.mu.Unlock()
		return g, &lock.LostError{Reason: h.reason(), Token: g.Token, Err: err}
	}
	g.TTL, g.Start = le.ttl, start
	return g, err
}

// adopt renews a grant that this Locker did not know, that another has renewed meanwhile, or whose
// lease is too short, by putting its key under a lease of its own. The other will not delete the key then: it
// looks at the mod revision. So does this put, which may take effect late: it must not take
// the key from a newer lease to an older one.
func (l *Locker) adopt(ctx context.Context, h *hold, g lock.Grant) (lock.Grant, error) {
	le, err := l.leaseFor(ctx, min(g.TTL, l.maxTTL))
	if err != nil {
		return g, err
	}
	for seen := int64(-1); ; { // no key has that one
		start := time.Now()
		beat := l.freshen(le, start)
		out, err := l.writes.send(ctx, part{every: le.impatience(), ops: transaction(
			[]clientv3.Cmp{clientv3.Compare(clientv3.ModRevision(h.name), "=", seen)},
			[]clientv3.Op{clientv3.OpPut(h.name, "", clientv3.WithIgnoreValue(), clientv3.WithLease(le.id))},
			[]clientv3.Op{clientv3.OpGet(h.name, clientv3.WithKeysOnly()), everyone(h.base, 1)},
		)})
		if err != nil {
			l.suspect(err, le)
			if (out.doubt || out.full) && seen >= 0 {
				l.attempted(h, seen, le)
			}
			return g, err
		}
		ok, ops := did(out.ops)
		if ok {
			g.TTL, g.Start = le.ttl, start
			l.moved(h, le, out.rev)
			return g, beat.wait(ctx, l)
		}
		kvs := ops[0].GetResponseRange().Kvs
		if len(kvs) == 0 || kvs[0].CreateRevision != l.revisionOf(g.Token) {
			return g, lostTo(g, ops[1].GetResponseRange())
		}
		seen = kvs[0].ModRevision
	}
}

// moved notes that h's key is under le since revision mod. A later renewal may have been answered before.
func (l *Locker) moved(h *hold, le *lease, mod int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if mod > h.mod {
		h.mod, h.lease = mod, le
	}
	if mod > h.seen {
		h.seen = 0
	}
}

// attempted notes that the answer to an adoption was not waited for. It may have put the key under le, or may do
// so as long as that is at revision seen.
func (l *Locker) attempted(h *hold, seen int64, le *lease) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if seen >= h.seen {
		h.seen, h.until, h.tried = seen, time.Now().Add(storekit.UndoLife), le
	}
}
