package etcd

import (
	"context"
	"strings"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/internal/storekit"
)

// acquisition is one Acquire. Its requests may be sent as often as it takes, and take effect
// late and in any order. None touches a key of that name that exists already, except those that
// have seen its revision. Two tombstones refuse all that would create one: that of the owner, and
// that of this acquisition alone.
type acquisition struct {
	l         *Locker
	req       lock.Request
	h         *hold
	heartbeat time.Duration
	arrived   int64 // Unix ms, for people

	mod   int64            // mod revision of the own key, as last seen
	under clientv3.LeaseID // its lease then
	kept  bool             // which is another Locker's: the owner has found this grant by way of that, and renewed it
	lease *lease           // under which the own key waits; nil: none was needed yet
	full  *lease           // under which it is to be held; nil: likewise

	box   *storekit.Mailbox
	pred  string // the entry that is waited for; "": not known
	at    int64  // revision at which pred was there
	stray string // a pred that had this Locker's name, and was not known to it: maybe another renews it
	seen  lock.Record

	// The Locker's mutex guards these.
	place       string // the entry behind which others in this Locker find it; "": none
	since       int64  // at which revision that was there
	placedUnder *lease // for a grant by a handover
	handing     bool   // a handover is under way
}

func (l *Locker) acquisition(req lock.Request) *acquisition {
	return &acquisition{
		l: l, req: req, h: l.add(req),
		heartbeat: storekit.Heartbeat(req.TTL), arrived: time.Now().UnixMilli(),
	}
}

// value is that of the own key, as a holder or as a waiter.
func (a *acquisition) value(granted bool) string {
	v := value{Owner: a.req.Owner, Metadata: a.req.Metadata, Arrived: a.arrived}
	if granted {
		v.Granted = time.Now().UnixMilli()
	} else {
		v.Under = a.req.Under
	}
	return v.String()
}

// rev is the create revision of the own key: the place in line, and the token; 0: there is none.
func (a *acquisition) rev() int64 {
	a.l.mu.Lock()
	defer a.l.mu.Unlock()
	return a.h.rev
}

// own remembers the own key: its revisions and its etcd lease.
func (a *acquisition) own(rev, mod int64, under clientv3.LeaseID) {
	a.mod, a.under, a.kept = mod, under, false
	a.l.mu.Lock()
	defer a.l.mu.Unlock()
	if a.h.rev = rev; a.h.g.Token == 0 { // else a handover knows better
		a.h.mod = mod
	}
}

// found is the own key as it was read. If another owner has it, as from a backup that was restored,
// it is not, and its name is not used again.
func (a *acquisition) found(kvs []*mvccpb.KeyValue) {
	if len(kvs) == 0 {
		a.own(0, 0, 0)
	} else if e, _ := entryOf(a.l.prefix, kvs[0]); e.owner == a.req.Owner {
		under := clientv3.LeaseID(kvs[0].Lease)
		kept := !a.l.owns(kvs[0]) && (a.kept || under != a.under) // not if it is as it was, and there was an outage
		a.own(kvs[0].CreateRevision, kvs[0].ModRevision, under)
		if a.kept = kept; kept { // that was not this Locker's put, and no prune of it deletes the key
			a.l.mu.Lock()
			if a.h.g.Token == 0 {
				a.h.mod = 0
			}
			a.l.mu.Unlock()
		}
	} else {
		a.own(0, 0, 0)
		a.l.mu.Lock()
		a.h.number = -1
		a.l.mu.Unlock()
	}
}

// lookUp reads the own key, which a server that is full may have put. Without an answer it may be there.
func (a *acquisition) lookUp(ctx context.Context) {
	resp, err := a.l.read(ctx, clientv3.OpGet(a.h.name))
	if err == nil {
		a.found(resp.Kvs)
	}
	a.l.mu.Lock()
	defer a.l.mu.Unlock()
	a.h.lined, a.h.doubt = a.h.lined || a.h.rev != 0, a.h.doubt || err != nil
}

// try takes the lock if nobody stands in the way. If the own key is there all the same, it
// holds the lock by an earlier sending, maybe under another etcd lease. That may end before it
// is claimed, and then the lock is free again.
func (a *acquisition) try(ctx context.Context) (lock.Grant, error) {
	g, ok, ops, err := a.enter(ctx)
	for err == nil && !ok && a.rev() != 0 {
		if g, ok, err = a.claim(ctx); err == nil && !ok {
			g, ok, ops, err = a.enter(ctx)
		}
	}
	if ok || err != nil {
		return g, err
	}
	rec, complete := a.l.frontOf(a.req.Key, ops[0])
	if !complete {
		if rec, _, err = a.l.record(ctx, a.req.Key); err != nil {
			return g, err
		}
	}
	return g, &lock.HeldError{Record: rec}
}

// enter takes the lock if nobody stands in the way, and else, for who waits, a place in line.
func (a *acquisition) enter(ctx context.Context) (g lock.Grant, ok bool, ops []*pb.ResponseOp, err error) {
	const tries = 3 // an etcd lease may end on the way. Who waits may be in a crowd, and tries until ctx ends
	for n := 1; ; n++ {
		g, ok, ops, err = a.take(ctx)
		if !isGone(err) || n == tries && !a.req.Wait {
			return g, ok, ops, err
		}
		a.l.suspect(err, a.full, a.lease)
	}
}

// take sends the transaction of enter once, or twice for who waits and finds that it needs
// an etcd lease to wait under, which an uncontended acquire does not pay for.
func (a *acquisition) take(ctx context.Context) (g lock.Grant, ok bool, ops []*pb.ResponseOp, err error) {
	start := time.Now()
	if err = a.fullLease(ctx); err != nil {
		return g, false, nil, err
	}
	if a.req.Wait {
		if a.lease = a.l.usable(a.heartbeat); a.lease == nil && a.crowded() {
			a.lease, err = a.l.leaseFor(ctx, a.heartbeat)
		}
		if err != nil {
			return g, false, nil, err
		}
	}
	sent := time.Now()
	a.keepPlace(sent)
	beat := a.l.freshen(a.full, a.full.eighth(sent))
	out, err := a.l.writes.send(ctx, part{line: a.h.base, every: impatience(a.heartbeat), ops: a.entering()})
	a.l.mu.Lock()
	a.h.doubt = a.h.doubt || out.doubt
	a.l.mu.Unlock()
	if isFull(err) {
		a.lookUp(ctx)
	}
	if err != nil {
		return g, false, nil, err
	}
	if ok, ops = did(out.ops); ok {
		a.own(out.rev, out.rev, a.full.id)
		g, ok, err = a.grant(ctx, start, sent, out.rev, beat)
		return g, ok, ops, err
	}
	a.observe(ops[0])
	switch {
	case !a.req.Wait:
		a.found(ops[1].GetResponseRange().Kvs)
		if ops[0].GetResponseRange().Count == 0 && ops[2].GetResponseRange().Count > 0 {
			err = storekit.ErrUndone // nobody else refuses it
		}
	case a.lease != nil:
		err = a.linedUp(ops, out.rev)
	default:
		if a.lease, err = a.l.leaseFor(ctx, a.heartbeat); err == nil {
			return a.take(ctx)
		}
	}
	return g, false, ops, err
}

// fullLease sets the lease for the grant. While there is none to be had the last stays: a waiter
// looks at it all the same.
func (a *acquisition) fullLease(ctx context.Context) error {
	le, err := a.l.leaseFor(ctx, a.req.TTL)
	if err == nil {
		a.full = le
	}
	return err
}

// keepPlace has the lease confirmed that the own key waits under, or is to: the first recheck, or the
// next after a wake-up, may come too late for what is left of it. It returns nil if there is none.
func (a *acquisition) keepPlace(now time.Time) *call {
	if a.lease == nil {
		return nil
	}
	return a.l.freshen(a.lease, a.lease.eighth(now))
}

// crowded reports whether others of this Locker wait for the lock, so that it will have to wait.
func (a *acquisition) crowded() bool {
	a.l.mu.Lock()
	defer a.l.mu.Unlock()
	x := a.l.lines[a.h.base]
	return x != nil && x.waiters > 1
}

// entering is the transaction that decides. The tail is there while somebody waits, and spares
// the server from reading the whole line.
func (a *acquisition) entering() []clientv3.Op {
	h, last := a.h, tail(a.h.base)
	absent := func(name string) clientv3.Cmp { return clientv3.Compare(clientv3.CreateRevision(name), "=", 0) }
	fresh := []clientv3.Cmp{absent(h.name), absent(tomb(h.base, h.attempt)), absent(tomb(h.base, a.req.Owner))}
	own, or := clientv3.OpGet(h.name), []clientv3.Op{front(h.base)}
	switch {
	case !a.req.Wait:
		or = append(or, own, clientv3.OpGet(tomb(h.base, a.req.Owner), clientv3.WithCountOnly()))
	case a.lease != nil:
		behind := func(look clientv3.Op) []clientv3.Op {
			return []clientv3.Op{
				look, clientv3.OpPut(h.name, a.value(false), clientv3.WithLease(a.lease.id)),
				clientv3.OpPut(last, h.name, clientv3.WithLease(a.lease.id)),
			}
		}
		place := clientv3.OpTxn([]clientv3.Cmp{absent(last)}, behind(a.nearest()), behind(clientv3.OpGet(last)))
		or = append(or, clientv3.OpTxn(fresh, []clientv3.Op{place}, []clientv3.Op{own}))
	}
	return transaction(append(fresh, absent(last), a.none()),
		[]clientv3.Op{clientv3.OpPut(h.name, a.value(true), clientv3.WithLease(a.full.id))}, or)
}

// none holds when nobody stands in the way.
func (a *acquisition) none() clientv3.Cmp {
	from, end := rivals(a.h.base, a.req.Shared)
	return clientv3.Compare(clientv3.CreateRevision(from), "=", 0).WithRange(end)
}

// nearest reads the newest of the entries in the way that are older than the own one. The
// server sorts the line for it, which is short when there is no tail.
func (a *acquisition) nearest() clientv3.Op {
	from, end := rivals(a.h.base, a.req.Shared)
	opts := []clientv3.OpOption{
		clientv3.WithRange(end), clientv3.WithLimit(1), clientv3.WithKeysOnly(),
		clientv3.WithSort(clientv3.SortByCreateRevision, clientv3.SortDescend),
	}
	if a.rev() > 0 {
		opts = append(opts, clientv3.WithMaxCreateRev(a.rev()-1))
	}
	return clientv3.OpGet(from, opts...)
}

// linedUp reads what came of lining up. If the own key was there already, an earlier sending has
// come through. Whom it waits for is not known then.
func (a *acquisition) linedUp(ops []*pb.ResponseOp, rev int64) error {
	placed, ops := did(ops[1:])
	a.pred, a.at = "", rev
	a.l.mu.Lock()
	a.h.lined = true
	a.l.mu.Unlock()
	if !placed {
		kvs := ops[0].GetResponseRange().Kvs
		if a.found(kvs); len(kvs) == 0 {
			return storekit.ErrUndone
		}
		return nil
	}
	a.own(rev, rev, a.lease.id)
	first, ops := did(ops)
	for _, kv := range ops[0].GetResponseRange().Kvs {
		if a.pred = string(kv.Key); !first { // the tail, which names the last in line
			a.pred = string(kv.Value)
		}
	}
	switch {
	case a.req.Shared && !strings.HasPrefix(a.pred, a.h.base+exclusiveMark): // a reader does not wait for one
		a.pred = ""
	case a.pred == a.h.name: // the last in line was this one, whose key is gone: its claim finds who is in front
		a.pred = ""
	}
	return nil
}

// grant is the grant whose last put was at revision mod, by a request sent at sent, and a look
// that began at start. Its TTL is no longer than its etcd lease is known to live. If that is not
// long, it waits for the keepalive that was sent beside the request.
func (a *acquisition) grant(ctx context.Context, start, sent time.Time, mod int64, beat *call) (g lock.Grant, ok bool, err error) {
	le := a.full
	from, ttl := a.l.term(le, start, sent)
	for n := 0; ttl < le.ttl*3/4 && n <= breaks; n++ {
		if err = beat.wait(ctx, a.l); isGone(err) { // and the key with it
			a.own(0, 0, 0)
		}
		if err != nil && (isGone(err) || !classify(err).Passing() || ctx.Err() != nil) {
			return g, false, err
		}
		from, ttl = a.l.term(le, start, sent)
		beat = a.l.freshen(le, le.eighth(sent))
	}
	if ttl < le.ttl/2 && err != nil {
		return g, false, err
	}
	g = lock.Grant{
		Key: a.req.Key, Owner: a.req.Owner, Token: a.l.tokenOf(a.rev()), Shared: a.req.Shared,
		TTL: ttl, Start: from,
	}
	if !a.l.granted(a.h, g, mod, le) {
		return lock.Grant{}, false, storekit.ErrUndone
	}
	return g, true, nil
}

// claim takes the lock if the own entry is there and none in the way is older: by a
// linearizable transaction, since a wait proves nothing. It puts the entry under the lease of
// the full TTL, unless somebody has put it since it was seen: a claim that takes effect late
// must not take it from a newer lease to an older one. If the entry is gone, the place in line
// is lost. What another Locker has taken into its care stays there: a claim that is given up would take it
// under a lease that this one prunes.
func (a *acquisition) claim(ctx context.Context) (g lock.Grant, ok bool, err error) {
	if a.kept {
		return g, false, &lock.HeldError{Record: a.seen}
	}
	start := time.Now()
	if err = a.fullLease(ctx); err != nil {
		return g, false, err
	}
	sent := time.Now()
	a.keepPlace(sent)
	beat := a.l.freshen(a.full, a.full.eighth(sent))
	out, err := a.l.writes.send(ctx, part{line: a.h.base, every: impatience(a.heartbeat), ops: a.claiming()})
	if err != nil {
		a.l.suspect(err, a.full)
		return g, false, err
	}
	ok, ops := did(out.ops)
	if a.req.Shared && !ok {
		ok, ops = did(ops)
	}
	if !ok {
		a.observe(ops[2])
		a.at, a.pred = out.rev, ""
		for _, kv := range ops[1].GetResponseRange().Kvs {
			a.pred = string(kv.Key)
		}
		a.found(ops[0].GetResponseRange().Kvs)
		return g, false, nil
	}
	if a.under != a.full.id {
		a.mod, a.under = out.rev, a.full.id
	}
	return a.grant(ctx, start, sent, a.mod, beat)
}

// claiming is claim's transaction. Else it reads why not.
func (a *acquisition) claiming() []clientv3.Op {
	h := a.h
	from, end := rivals(h.base, a.req.Shared)
	take := []clientv3.Op{clientv3.OpPut(h.name, a.value(true), clientv3.WithLease(a.full.id)), h.leaveTail()}
	if a.under == a.full.id {
		take = take[1:]
	}
	mine := clientv3.Compare(clientv3.ModRevision(h.name), "=", a.mod)
	first := clientv3.Compare(clientv3.CreateRevision(from), ">", a.rev()-1).WithRange(end)
	why := []clientv3.Op{clientv3.OpGet(h.name), a.nearest(), front(h.base)}
	if a.req.Shared { // no rival at all has no revision to compare
		why = transaction([]clientv3.Cmp{mine, a.none()}, take, why)
	}
	return transaction([]clientv3.Cmp{mine, first}, take, why)
}

// observe remembers who holds the lock, and who waits in front. Where the line is too long to
// be read, what others in this Locker have seen of it must do.
func (a *acquisition) observe(op *pb.ResponseOp) {
	rec, complete := a.l.frontOf(a.req.Key, op)
	a.l.mu.Lock()
	defer a.l.mu.Unlock()
	if x := a.l.lines[a.h.base]; x != nil && complete {
		x.seen = rec
	} else if x != nil && x.seen.Key != "" {
		entries := rec.WaiterCount + 1
		rec = x.seen
		rec.WaiterCount = max(entries-rec.HolderCount, len(rec.Waiters))
	}
	a.seen = rec
}
