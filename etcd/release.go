package etcd

import (
	"context"
	"errors"
	"runtime"
	"slices"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/internal/storekit"
)

const (
	// undoDelay is how long what a failed acquisition has left waits for the caller's undo.
	undoDelay = 250 * time.Millisecond
	// tombLife is the TTL of the etcd lease that tombstones share, of which a quarter is left for the
	// last.
	tombLife = 4 * storekit.UndoLife
	// pruneAtOnce is how many are pruned at one tick. They share their requests.
	pruneAtOnce = 1000
)

// pruneRetries are the pauses while that fails.
var pruneRetries = storekit.Backoff{Min: 200 * time.Millisecond, Max: time.Second}

// Release implements [lock.Locker]. If it fails, the Locker prunes the grant as soon as the
// server answers.
func (l *Locker) Release(ctx context.Context, g lock.Grant) error {
	if err := l.ready(ctx, lock.CheckGrant(g)); err != nil {
		return err
	}
	return l.fail(ctx, l.within(ctx, func(ctx context.Context) error {
		if err := l.endOf(ctx, g); err != nil {
			return err
		}
		h := l.of(g)
		if h == nil || g.Token != 0 && !l.leaving(h, g.Token) {
			e, err := l.find(ctx, g)
			switch {
			case g.Token == 0 && errors.Is(err, lock.ErrLost):
				return nil
			case err != nil:
				return err
			}
			l.mu.Lock()
			h = l.holdOf(g, e)
			l.mu.Unlock()
		}
		if g.Token != 0 && l.leaving(h, g.Token) {
			return l.give(ctx, g, h)
		}
		return l.undo(ctx, h) // or an acquire has got g that has not heard of it
	}))
}

// leaving notes that h's holder is about to release it, of which nothing is told any more. It
// reports whether h is that grant.
func (l *Locker) leaving(h *hold, token lock.Token) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if h.g.Token != token {
		return false
	}
	h.lost, h.leaving = nil, true
	return true
}

// give ends g, which h is, and lets the next in line have the lock if both are this Locker's.
func (l *Locker) give(ctx context.Context, g lock.Grant, h *hold) (err error) {
	var next next
	l.mu.Lock()
	x := *h
	if l.byName[h.name] == h {
		next = l.nextOf(h)
	}
	l.mu.Unlock()
	rev := int64(0)
	if next.a != nil {
		rev, err = l.handOver(ctx, g, x, next)
	} else {
		rev, err = l.end(ctx, g, x, false)
	}
	if (err == nil || errors.Is(err, lock.ErrLost)) && !x.doubt {
		l.forget(h, rev)
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	h.over, h.leaving, h.due = true, false, time.Now()
	return err
}

// end deletes the key of g, and returns at which revision, if that is known. again says that a request
// before it may have done so.
func (l *Locker) end(ctx context.Context, g lock.Grant, x hold, again bool) (rev int64, err error) {
	out, _, err := l.bury(ctx, x, x.g.Owner, clientv3.Compare(clientv3.CreateRevision(x.name), "=", l.revisionOf(g.Token)))
	if err != nil {
		return 0, err
	}
	ok, ops := did(out.ops)
	switch {
	case ok:
		return out.rev, nil
	case out.doubt || out.full || again:
		return 0, nil // it was there, so an earlier sending has come through
	}
	return 0, lostTo(g, ops[0].GetResponseRange())
}

// bury deletes x's key on some conditions, or else reads who holds the lock, and x's key. Either way it
// deletes the tail if x is the last in line. In doubt a tombstone goes with it, of the owner or of the attempt, which
// refuses what may yet arrive of the acquisition. A server that is full takes none: then later reports that it is to
// be tried again.
func (l *Locker) bury(ctx context.Context, x hold, of string, conditions ...clientv3.Cmp) (out outcome, later bool, err error) {
	then := []clientv3.Op{clientv3.OpDelete(x.name)}
	or := []clientv3.Op{everyone(x.base, 1), clientv3.OpGet(x.name, clientv3.WithKeysOnly())}
	p := part{every: impatience(requestTimeout)}
	if x.lined || x.doubt {
		then, or, p.line = append(then, x.leaveTail()), append(or, x.leaveTail()), x.base
	}
	if x.doubt {
		var le *lease
		if le, err = l.leaseFor(ctx, 0); err == nil {
			grave := clientv3.OpPut(tomb(x.base, of), "", clientv3.WithLease(le.id))
			p.ops = transaction(conditions, append(slices.Clip(then), grave), append(slices.Clip(or), grave))
			out, err = l.writes.send(ctx, p)
			l.suspect(err, le)
		}
		if !isFull(err) {
			return out, false, err
		}
		p.out.full = true
	}
	p.ops = transaction(conditions, then, or)
	out, err = l.writes.send(ctx, p)
	return out, x.doubt, err
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
func (l *Locker) handOver(ctx context.Context, g lock.Grant, x hold, next next) (rev int64, err error) {
	h, le, delivered := next.h, next.lease, false
	defer func() {
		if !delivered {
			next.a.handed()
		}
		runtime.Gosched() // the next holder goes first: those behind it wait for its release
	}()
	start := time.Now()
	l.freshen(le, le.eighth(start))
	from, ttl := l.term(le, start, start)
	if ttl < le.ttl*3/4 {
		return l.end(ctx, g, x, false) // next sees to its lease
	}
	mine, gone := clientv3.Compare(clientv3.CreateRevision(x.name), "=", x.rev), clientv3.OpDelete(x.name)
	out, err := l.writes.send(ctx, part{
		line: x.base, every: impatience(le.ttl), alone: true, // a line waits for it
		ops: transaction(
			[]clientv3.Cmp{mine, clientv3.Compare(clientv3.CreateRevision(h.name), "=", next.rev)},
			[]clientv3.Op{gone, clientv3.OpPut(h.name, next.a.value(true), clientv3.WithLease(le.id)), h.leaveTail()},
			transaction([]clientv3.Cmp{mine}, []clientv3.Op{gone}, []clientv3.Op{everyone(x.base, 1)})),
	})
	if isGone(err) || isFull(err) { // g is as it was, if the server was full before
		l.suspect(err, le)
		return l.end(ctx, g, x, isFull(err))
	}
	if err != nil {
		return 0, err
	}
	ok, ops := did(out.ops)
	if ok {
		token := l.tokenOf(next.rev)
		delivered = l.granted(h, lock.Grant{
			Key: g.Key, Owner: h.g.Owner, Token: token, TTL: ttl, Start: from,
		}, out.rev, le)
		if delivered {
			next.a.box.Deliver(storekit.Handover{Token: token, Start: from})
		}
		return 0, nil
	}
	if ok, ops = did(ops); ok {
		return out.rev, nil
	}
	if out.doubt {
		return 0, nil
	}
	return 0, lostTo(g, ops[0].GetResponseRange())
}

// find returns the entry that g's owner has, if it is still there.
func (l *Locker) find(ctx context.Context, g lock.Grant) (entry, error) {
	resp, err := l.read(ctx, everyone(l.baseOf(g.Key), 0))
	if err != nil {
		return entry{}, err
	}
	for _, e := range entriesOf(l.prefix, resp.Kvs) {
		if e.owner == g.Owner && (g.Token == 0 || e.kv.CreateRevision == l.revisionOf(g.Token)) {
			return e, nil
		}
	}
	return entry{}, lostTo(g, resp)
}

// holdOf returns what is known of e, an entry of g's owner: if another Locker has acquired it, what it says.
// l.mu is held.
func (l *Locker) holdOf(g lock.Grant, e entry) *hold {
	name := string(e.kv.Key)
	if h := l.byName[name]; h != nil && idOf(h.g) == idOf(g) {
		return h
	}
	g.Shared = e.shared
	return &hold{g: g, name: name, base: l.baseOf(g.Key), number: -1, rev: e.kv.CreateRevision, lined: true}
}

// undo deletes whatever h's owner has, and refuses what it may yet get.
func (l *Locker) undo(ctx context.Context, h *hold) error {
	l.mu.Lock()
	if !h.over && h.g.Token == 0 && h.attempt != "" { // its Acquire is under way: everything is possible
		h.doubt = true
	}
	h.lost, h.over, h.g.Token, h.due = nil, true, 0, time.Now().Add(undoDelay)
	l.mu.Unlock()
	return l.drop(ctx, h, true)
}

// prune deletes what nobody uses any more: a grant that has ended, a place whose waiter has given
// up, what a late request has brought about. As long as that fails one is tried for all, so that an
// outage does not become a flood. Nothing is given up for a refusal: the key is there, and others
// keep its etcd lease alive.
func (l *Locker) prune(h *hold) {
	ctx, cancel := context.WithTimeout(l.ctx, requestTimeout)
	defer cancel()
	err := l.drop(ctx, h, false)
	l.mu.Lock()
	defer l.mu.Unlock()
	if err == nil {
		l.pruneFailures = 0
		return
	}
	if !classify(err).Passing() { // a right has been taken away, say: the others' turn
		h.due = time.Now().Add(requestTimeout)
	}
	l.pruneAgain = time.Now().Add(pruneRetries.Pause(l.pruneFailures))
	l.pruneFailures++
}

// drop deletes h's key, and in doubt leaves a tombstone: the owner's if that has been undone. If not, the
// owner may ask again, and have a grant by then, maybe by way of another Locker. So the key is deleted only
// as this Locker has put it. drop is tried again later if it fails.
func (l *Locker) drop(ctx context.Context, h *hold, undo bool) error {
	l.mu.Lock()
	x := *h
	l.mu.Unlock()
	if !x.over {
		return l.ascertain(ctx, h)
	}
	of, conditions := x.attempt, []clientv3.Cmp{clientv3.Compare(clientv3.ModRevision(x.name), "=", x.mod)}
	switch {
	case undo && x.doubt: // whatever has the name, which is not used again
		of, conditions = x.g.Owner, nil
	case undo:
		conditions[0] = clientv3.Compare(clientv3.CreateRevision(x.name), "=", x.rev)
	}
	out, later, err := l.bury(ctx, x, of, conditions...)
	le := (*lease)(nil)
	l.mu.Lock()
	if h.pruning = false; later {
		h.due = time.Now().Add(pruneRetries.Max)
	}
	if err == nil {
		if ok, ops := did(out.ops); !ok {
			out.rev = 0
			if !undo {
				le = l.strays(h, ops[1].GetResponseRange())
			}
		}
	}
	l.mu.Unlock()
	if le != nil {
		later = true
		l.freshen(le, time.Now())
	}
	if err == nil && !later {
		l.forget(h, out.rev)
	}
	return err
}

// ascertain reads what a renewal of h without an answer has made of its key.
func (l *Locker) ascertain(ctx context.Context, h *hold) error {
	key, err := l.read(ctx, clientv3.OpGet(h.name, clientv3.WithKeysOnly()))
	le := (*lease)(nil)
	l.mu.Lock()
	if h.pruning = false; err == nil {
		le = l.strays(h, key)
	}
	l.mu.Unlock()
	if le != nil {
		l.freshen(le, time.Now())
	}
	return err
}

// strays takes up that h's key is not as this Locker has last put it, as far as it has heard. It returns the
// etcd lease to keep alive until this Locker looks again, nil if it need not. l.mu is held.
//
// If the key is under an etcd lease of this Locker, it was put there by a request whose reply got lost, or
// that came late. Whoever had renewed the grant before, by way of another Locker, counts on it for at most a
// TTL from now, and nobody else keeps that lease alive. Else such a request may still be on its way, and
// needs its lease when it comes. Else the key is another's.
func (l *Locker) strays(h *hold, key *pb.RangeResponse) *lease {
	now := time.Now()
	for _, kv := range key.Kvs {
		same, le := kv.CreateRevision == h.rev, l.own[clientv3.LeaseID(kv.Lease)]
		switch {
		case le != nil && (h.over && (same || h.doubt) || same && kv.ModRevision > h.mod):
			h.mod, h.lease = kv.ModRevision, le // which is less if a backup was restored
			if kv.ModRevision > h.seen {
				h.seen = 0
			}
			switch {
			case !h.over:
				h.g.Start, h.g.TTL = now, le.ttl
			case same && h.ended != nil:
				h.due = now.Add(le.ttl)
			}
			return le
		case same && kv.ModRevision == h.seen && now.Before(h.until):
			h.due = now.Add(impatience(h.g.TTL))
			return h.tried
		case h.over:
			h.number = -1
		}
	}
	h.seen = 0
	return nil
}

// lostTo says why g is not live: rest is the first entry of the line.
func lostTo(g lock.Grant, rest *pb.RangeResponse) error {
	err := &lock.LostError{Reason: storekit.Vanished(g), Token: g.Token}
	if len(rest.Kvs) > 0 {
		err.Reason = lock.ReasonTaken
	}
	return err
}
