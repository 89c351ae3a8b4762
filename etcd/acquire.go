package etcd

import (
	"context"
	"fmt"
	"strings"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/internal/storekit"
)

// acquisition is one Acquire. Its requests may be sent as often as it takes, and take effect
// late and in any order: none touches a key of that name which is there already, but for those
// that have seen its revision, and a tombstone of the owner refuses all that would create one.
type acquisition struct {
	l         *Locker
	req       lock.Request
	h         *hold
	heartbeat time.Duration
	arrived   int64 // Unix ms, for people

	rev   int64            // create revision of the own key: the place in line, and the token; 0: none
	mod   int64            // its mod revision, as last seen
	under clientv3.LeaseID // its lease then
	doubt bool             // a late request may create the key

	lease *lease // under which the own key waits; nil: none was asked for yet
	full  *lease // under which it is to be held; nil: likewise
	pred  string // the entry that is waited for; "": not known
	at    int64  // revision at which pred was there
	seen  lock.Record
	place *place // in which others in this Locker find it; nil: in none
	box   *storekit.Mailbox
}

func (l *Locker) acquisition(req lock.Request) *acquisition {
	return &acquisition{
		l: l, req: req, h: l.holds.add(req),
		heartbeat: storekit.Heartbeat(req.TTL), arrived: time.Now().UnixMilli(),
	}
}

// value is that of the own key, as a holder or as a waiter.
func (a *acquisition) value(granted bool) string {
	v := value{Owner: a.req.Owner, Metadata: a.req.Metadata, Arrived: a.arrived}
	if granted {
		v.Granted = time.Now().UnixMilli()
	}
	return v.String()
}

// try takes the lock if nobody stands in the way.
func (a *acquisition) try(ctx context.Context) (g lock.Grant, err error) {
	ok, out := false, outcome{}
	err = a.l.within(ctx, func(ctx context.Context) error {
		g, ok, out, err = a.enter(ctx)
		if err == nil && !ok {
			g, ok, err = a.refused(ctx, out)
		}
		return err
	})
	if ok || err != nil {
		return g, err
	}
	rec, complete := a.l.frontOf(a.req.Key, out.ops[0])
	if !complete {
		if rec, _, err = a.l.record(ctx, a.req.Key); err != nil {
			return g, err
		}
	}
	return g, &lock.HeldError{Record: rec}
}

// refused looks whether the own key is there all the same: then it holds the lock by an earlier
// sending, maybe under another etcd lease.
func (a *acquisition) refused(ctx context.Context, out outcome) (g lock.Grant, ok bool, err error) {
	kvs := out.ops[1].GetResponseRange().Kvs
	if len(kvs) == 0 {
		return g, false, nil
	}
	if err := a.found(kvs[0]); err != nil {
		return g, false, err
	}
	return a.claim(ctx)
}

// enter takes the lock if nobody stands in the way, and else, for who waits, a place in line.
func (a *acquisition) enter(ctx context.Context) (g lock.Grant, ok bool, out outcome, err error) {
	const tries = 3 // an etcd lease may end on the way
	for n := 1; ; n++ {
		g, ok, out, err = a.take(ctx)
		if ok || !isGone(err) || n == tries {
			return g, ok, out, err
		}
	}
}

// take sends the transaction of enter once, or twice for who waits and finds that it needs
// an etcd lease to wait under, which an uncontended acquire does not pay for.
func (a *acquisition) take(ctx context.Context) (g lock.Grant, ok bool, out outcome, err error) {
	start := time.Now()
	if a.full, err = a.l.leases.get(ctx, a.req.TTL); err != nil {
		return g, false, out, err
	}
	if a.req.Wait {
		a.lease = a.l.leases.alive(a.heartbeat)
	}
	sent := time.Now()
	beat := a.l.leases.begin(a.full, a.full.eighth(sent))
	out, err = a.l.writes.send(ctx, a.transaction())
	a.doubt = a.doubt || out.doubt
	switch {
	case err != nil:
		a.l.leases.suspect(err, a.full, a.lease)
		return g, false, out, err
	case out.ok:
		a.placed(out.rev, a.full)
		g, ok, err = a.granted(ctx, start, sent, out.rev, beat)
		return g, ok, out, err
	case !a.req.Wait:
		return g, false, out, nil
	case a.lease == nil:
		a.observe(out.ops[0])
		if a.lease, err = a.l.leases.get(ctx, a.heartbeat); err != nil {
			return g, false, out, err
		}
		return a.take(ctx)
	}
	a.observe(out.ops[0])
	return g, false, out, a.linedUp(out)
}

// transaction is the one that decides. The tail is there while somebody waits, so it spares the
// server a look at the whole line.
func (a *acquisition) transaction() *part {
	h := a.h
	buried, waits := a.buried(), clientv3.Compare(clientv3.CreateRevision(tail(h.base)), "=", 0)
	p := &part{
		conditions: []clientv3.Cmp{buried, waits, a.is(0), a.none()},
		then:       []clientv3.Op{clientv3.OpPut(h.name, a.value(true), clientv3.WithLease(a.full.id))},
		line:       h.base, every: impatience(a.heartbeat),
	}
	own := clientv3.OpGet(h.name)
	switch {
	case !a.req.Wait:
		p.or = []clientv3.Op{front(h.base), own}
	case a.lease == nil:
		p.or = []clientv3.Op{front(h.base)}
	default:
		put := []clientv3.Op{
			clientv3.OpPut(h.name, a.value(false), clientv3.WithLease(a.lease.id)),
			clientv3.OpPut(tail(h.base), h.name, clientv3.WithLease(a.lease.id)),
		}
		behind := func(look clientv3.Op) []clientv3.Op { return append([]clientv3.Op{look}, put...) }
		p.or = []clientv3.Op{front(h.base), clientv3.OpTxn([]clientv3.Cmp{buried, a.is(0)}, []clientv3.Op{
			clientv3.OpTxn([]clientv3.Cmp{waits}, behind(a.nearest()), behind(clientv3.OpGet(tail(h.base)))),
		}, []clientv3.Op{own})}
	}
	return p
}

// buried holds while there is no tombstone of the owner.
func (a *acquisition) buried() clientv3.Cmp {
	return clientv3.Compare(clientv3.CreateRevision(tomb(a.h.base, a.req.Owner)), "=", 0)
}

// none holds when nobody stands in the way.
func (a *acquisition) none() clientv3.Cmp {
	from, end := rivals(a.h.base, a.req.Shared)
	return clientv3.Compare(clientv3.CreateRevision(from), "=", 0).WithRange(end)
}

// is compares the own key's create revision.
func (a *acquisition) is(rev int64) clientv3.Cmp {
	return clientv3.Compare(clientv3.CreateRevision(a.h.name), "=", rev)
}

// nearest reads the newest of the entries in the way that are older than the own one. The
// server sorts the line for it, which is short when there is no tail.
func (a *acquisition) nearest() clientv3.Op {
	from, end := rivals(a.h.base, a.req.Shared)
	opts := []clientv3.OpOption{
		clientv3.WithRange(end), clientv3.WithLimit(1), clientv3.WithKeysOnly(),
		clientv3.WithSort(clientv3.SortByCreateRevision, clientv3.SortDescend),
	}
	if a.rev > 0 {
		opts = append(opts, clientv3.WithMaxCreateRev(a.rev-1))
	}
	return clientv3.OpGet(from, opts...)
}

// linedUp reads what came of lining up.
func (a *acquisition) linedUp(out outcome) error {
	place := out.ops[1].GetResponseTxn()
	if !place.Succeeded {
		for _, kv := range place.Responses[0].GetResponseRange().Kvs {
			return a.found(kv)
		}
		return errUndone
	}
	inner := place.Responses[0].GetResponseTxn()
	a.placed(out.rev, a.lease)
	a.at, a.pred = out.rev, ""
	for _, kv := range inner.Responses[0].GetResponseRange().Kvs {
		if a.pred = string(kv.Key); !inner.Succeeded { // the tail, which names the last in line
			a.pred = string(kv.Value)
		}
	}
	if a.req.Shared && !strings.HasPrefix(a.pred, a.h.base+exclusiveMark) {
		a.pred = "" // a reader does not wait for one
	}
	a.h.lined = true
	return nil
}

// placed remembers the own key, new at rev.
func (a *acquisition) placed(rev int64, le *lease) { a.rev, a.mod, a.under = rev, rev, le.id }

// seeOwn remembers the own key as it was read.
func (a *acquisition) seeOwn(kv *mvccpb.KeyValue) {
	a.rev, a.mod, a.under = kv.CreateRevision, kv.ModRevision, clientv3.LeaseID(kv.Lease)
}

// found is the own key, which was there already: an earlier sending of the same request has
// come through. Whom it waits for is not known then. If it is not the own one after all, the
// name is not to be used.
func (a *acquisition) found(kv *mvccpb.KeyValue) error {
	if e, ok := entryOf(a.l.prefix, kv); !ok || e.owner != a.req.Owner {
		a.l.holds.strange(a.h)
		return fmt.Errorf("%w: %q", errNotOurs, kv.Key)
	}
	a.seeOwn(kv)
	a.pred, a.h.lined = "", a.req.Wait
	return nil
}

// granted is the grant whose last put was at revision mod, by a request sent after sent, and
// a call or a look that began at start. It is told no longer than its etcd lease is known to
// live. If that is not long, it waits for the keepalive that was sent beside the request.
func (a *acquisition) granted(ctx context.Context, start, sent time.Time, mod int64, beat *flight) (g lock.Grant, ok bool, err error) {
	le := a.full
	from, ttl := a.l.leases.term(le, start, sent)
	for n := 0; ttl < le.ttl*3/4; n++ {
		err := beat.wait(ctx, a.l)
		from, ttl = a.l.leases.term(le, start, sent)
		if isGone(err) { // and the key with it
			a.rev = 0
			return g, false, err
		}
		if err == nil || ttl >= le.ttl/2 {
			break
		}
		if !classify(err).Passing() || n == breaks || ctx.Err() != nil {
			return g, false, err
		}
		beat = a.l.leases.begin(le, le.eighth(sent))
	}
	g = lock.Grant{
		Key: a.req.Key, Owner: a.req.Owner, Token: a.l.tokenOf(a.rev), Shared: a.req.Shared,
		TTL: ttl, Start: from,
	}
	a.l.holds.granted(a.h, g, mod, le, a.doubt)
	return g, true, nil
}

// claim takes the lock if the own entry is there and none in the way is older: by a
// linearizable transaction, since a wait proves nothing. It puts the entry under the lease of
// the full TTL, unless somebody has put it since it was seen: a claim that takes effect late
// must not take it from a newer lease to an older one. If the entry is gone, the place in line
// is lost.
func (a *acquisition) claim(ctx context.Context) (g lock.Grant, ok bool, err error) {
	start := time.Now()
	if a.full, err = a.l.leases.get(ctx, a.req.TTL); err != nil {
		return g, false, err
	}
	sent := time.Now()
	beat := a.l.leases.begin(a.full, a.full.eighth(sent))
	out, err := a.l.writes.send(ctx, a.claiming())
	if err != nil {
		a.l.leases.suspect(err, a.full)
		return g, false, err
	}
	done, ops := out.ok, out.ops
	if a.req.Shared && !done {
		inner := ops[0].GetResponseTxn()
		done, ops = inner.Succeeded, inner.Responses
	}
	if !done {
		return g, false, a.still(ops, out.rev)
	}
	if a.under != a.full.id {
		a.mod, a.under = out.rev, a.full.id
	}
	return a.granted(ctx, start, sent, a.mod, beat)
}

// claiming is claim's transaction. Else it reads why not.
func (a *acquisition) claiming() *part {
	h := a.h
	from, end := rivals(h.base, a.req.Shared)
	take := []clientv3.Op{clientv3.OpPut(h.name, a.value(true), clientv3.WithLease(a.full.id))}
	if a.under == a.full.id {
		take[0] = clientv3.OpGet(h.name, clientv3.WithKeysOnly())
	}
	take = append(take, h.leaveTail())
	mine := clientv3.Compare(clientv3.ModRevision(h.name), "=", a.mod)
	first := clientv3.Compare(clientv3.CreateRevision(from), ">", a.rev-1).WithRange(end)
	why := []clientv3.Op{clientv3.OpGet(h.name), a.nearest(), front(h.base)}
	p := &part{conditions: []clientv3.Cmp{mine, first}, then: take, or: why, line: h.base, every: impatience(a.heartbeat)}
	if a.req.Shared { // no rival at all has no revision to compare
		p.or = []clientv3.Op{clientv3.OpTxn([]clientv3.Cmp{mine, a.none()}, take, why)}
	}
	return p
}

// still reads why a claim was refused.
func (a *acquisition) still(ops []*pb.ResponseOp, rev int64) error {
	a.observe(ops[2])
	a.at, a.pred, a.rev = rev, "", 0
	for _, kv := range ops[1].GetResponseRange().Kvs {
		a.pred = string(kv.Key)
	}
	for _, kv := range ops[0].GetResponseRange().Kvs {
		if e, ok := entryOf(a.l.prefix, kv); ok && e.owner == a.req.Owner {
			a.seeOwn(kv)
		}
	}
	return nil
}

// observe remembers who holds the lock, and who waits in front. Where the line is too long to
// be read, what others in this Locker have seen of it must do.
func (a *acquisition) observe(op *pb.ResponseOp) {
	rec, complete := a.l.frontOf(a.req.Key, op)
	a.seen = a.l.lines.observe(a.h.base, rec, complete)
}
