package etcd

import (
	"context"
	"fmt"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/seed-215fdefa/lock"
)

// tryRecord is how many entries a refused try is told of: holders, as a rule.
const tryRecord = 16

// acquisition is one Acquire. Its requests may be sent as often as it takes, and take effect
// late and in any order: none touches a key of that name which is there already, but for
// those that have seen its revision.
type acquisition struct {
	l          *Locker
	req        lock.Request
	slot       *slot
	base, name string // the slot's
	rivals     string // what the names begin with of those who stand in the way
	heartbeat  time.Duration
	arrived    int64 // Unix ms, for people
	told       bool  // req.Waiting has been called
	seen       lock.Record

	rev   int64            // create revision of the own key: the place in line, and the token; 0: none
	mod   int64            // its mod revision, as last seen
	under clientv3.LeaseID // its lease then

	lease *lease // under which the own key waits
	full  *lease // under which it is to be held
	pred  string // the entry that is waited for; "": not known
	at    int64  // revision at which pred was there
}

func (l *Locker) acquisition(req lock.Request) *acquisition {
	a := &acquisition{
		l: l, req: req, slot: l.slots.take(l.base(req.Key), req),
		heartbeat: min(req.TTL, 5*time.Second), arrived: time.Now().UnixMilli(),
	}
	a.base, a.name = a.slot.base, a.slot.name
	a.rivals = a.base
	if req.Shared {
		a.rivals += exclusiveMark
	}
	return a
}

// value is that of the own key, as a holder or as a waiter.
func (a *acquisition) value(granted bool) string {
	v := value{Owner: a.req.Owner, Metadata: a.req.Metadata, Arrived: a.arrived}
	if granted {
		v.Granted = time.Now().UnixMilli()
	}
	return v.String()
}

// enter takes the lock if nobody stands in the way, and else, for who waits, a place in line.
// It returns the grant, or else for a try a *lock.HeldError.
func (a *acquisition) enter(ctx context.Context) (lock.Grant, bool, error) {
	const tries = 3 // an etcd lease may end on the way
	for n := 1; ; n++ {
		g, ok, err := a.take(ctx)
		if ok || !isGone(err) || n == tries {
			return g, ok, err
		}
	}
}

// take sends the transaction of enter once, or twice for who waits and finds that it needs
// an etcd lease to wait under, which an uncontended acquire does not pay for.
func (a *acquisition) take(ctx context.Context) (g lock.Grant, ok bool, err error) {
	if a.full, err = a.l.leases.get(ctx, a.req.TTL); err != nil {
		return g, false, err
	}
	if a.req.Wait {
		a.lease = a.l.leases.alive(a.heartbeat)
	}
	var start time.Time
	var beat *flight
	var out outcome
	err = a.l.again(ctx, a.heartbeat, func(ctx context.Context, _ int) (err error) {
		start = time.Now()
		beat = a.l.leases.begin(a.full, a.full.eighth(start))
		out, err = a.l.lane.send(ctx, a.transaction())
		a.unsure(err)
		return err
	})
	switch {
	case err != nil:
		a.l.leases.suspect(err, a.full, a.lease)
		return g, false, err
	case out.ok:
		a.placed(out.rev, a.full)
		return a.granted(ctx, a.full, start, a.rev, beat)
	case !a.req.Wait:
		return a.refused(ctx, out)
	case a.lease == nil:
		a.observe(out.ops[1])
		if a.lease, err = a.l.leases.get(ctx, a.heartbeat); err != nil {
			return g, false, err
		}
		return a.take(ctx)
	}
	if err := a.linedUp(out); err != nil {
		return g, false, err
	}
	a.keep()
	return g, false, nil
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
		a.l.slots.doubt(a.slot)
		return fmt.Errorf("%w: %q", errNotOurs, kv.Key)
	}
	a.seeOwn(kv)
	a.pred = ""
	return nil
}

// transaction is the one that decides.
func (a *acquisition) transaction() *part {
	p := &part{
		conditions: []clientv3.Cmp{a.none()},
		then:       []clientv3.Op{clientv3.OpPut(a.name, a.value(true), clientv3.WithLease(a.full.id))},
		creates:    a.base,
	}
	if a.req.Shared {
		p.conditions = append(p.conditions, a.is(0))
	}
	if a.req.Wait {
		p.or = a.lineUp()
		p.patient = a.lease != nil && a.l.line.waits(a.base)
	} else {
		p.or = []clientv3.Op{oldest(a.base, tryRecord), clientv3.OpGet(a.name)}
	}
	return p
}

// none holds when nobody stands in the way.
func (a *acquisition) none() clientv3.Cmp {
	return clientv3.Compare(clientv3.CreateRevision(a.rivals), "=", 0).WithRange(rangeEnd(a.rivals))
}

// is compares the own key's create revision.
func (a *acquisition) is(rev int64) clientv3.Cmp {
	return clientv3.Compare(clientv3.CreateRevision(a.name), "=", rev)
}

// lineUp reads who is in front, and then takes a place in line if there is a lease for that.
func (a *acquisition) lineUp() []clientv3.Op {
	ops := []clientv3.Op{a.nearest(), oldest(a.base, a.detail())}
	if a.lease == nil {
		return ops
	}
	return append(ops, clientv3.OpTxn([]clientv3.Cmp{a.is(0)},
		[]clientv3.Op{clientv3.OpPut(a.name, a.value(false), clientv3.WithLease(a.lease.id))},
		[]clientv3.Op{clientv3.OpGet(a.name)}))
}

// nearest reads the newest of the entries in the way that are older than the own one.
func (a *acquisition) nearest() clientv3.Op {
	opts := []clientv3.OpOption{
		clientv3.WithRange(rangeEnd(a.rivals)), clientv3.WithLimit(1), clientv3.WithKeysOnly(),
		clientv3.WithSort(clientv3.SortByCreateRevision, clientv3.SortDescend),
	}
	if a.rev > 0 {
		opts = append(opts, clientv3.WithMaxCreateRev(a.rev-1))
	}
	return clientv3.OpGet(a.rivals, opts...)
}

// detail is how many entries are read for people: all where the whole line is to be told.
func (a *acquisition) detail() int64 {
	if a.req.Waiting != nil && !a.told {
		return 0
	}
	return 1
}

// refused is a try's. If the own key is there all the same, it holds the lock by an earlier
// sending, maybe under another etcd lease.
func (a *acquisition) refused(ctx context.Context, out outcome) (lock.Grant, bool, error) {
	if kvs := out.ops[1].GetResponseRange().Kvs; len(kvs) > 0 {
		if err := a.found(kvs[0]); err != nil {
			return lock.Grant{}, false, err
		}
		if g, ok, err := a.claim(ctx); ok || err != nil {
			return g, ok, err
		}
	}
	entries := entriesOf(a.l.prefix, out.ops[0].GetResponseRange().Kvs)
	a.l.gone(a.slot, a.req.TTL)
	return lock.Grant{}, false, &lock.HeldError{Record: recordOf(a.req.Key, entries, time.Now())}
}

// linedUp reads what lineUp brought.
func (a *acquisition) linedUp(out outcome) error {
	a.observe(out.ops[1])
	place := out.ops[2].GetResponseTxn()
	if !place.Succeeded {
		for _, kv := range place.Responses[0].GetResponseRange().Kvs {
			return a.found(kv)
		}
		return nil
	}
	a.placed(out.rev, a.lease)
	a.at, a.pred = out.rev, ""
	if kvs := out.ops[0].GetResponseRange().Kvs; len(kvs) > 0 {
		a.pred = string(kvs[0].Key)
	}
	return nil
}

// granted is the grant whose last put was at revision mod, by a request sent after start. It
// is told no longer than its etcd lease is known to live. If that is not long, it waits for
// the keepalive that was sent beside the request.
func (a *acquisition) granted(ctx context.Context, le *lease, start time.Time, mod int64, beat *flight) (lock.Grant, bool, error) {
	ttl := a.l.leases.remaining(le, start)
	for n := 0; ttl < le.ttl*3/4; n++ {
		err := beat.wait(ctx, a.l.ctx)
		ttl = a.l.leases.remaining(le, start)
		if isGone(err) { // and the key with it
			a.rev = 0
			return lock.Grant{}, false, err
		}
		if err == nil || ttl >= le.ttl/2 {
			break
		}
		if !transient(err) || n == breaks || ctx.Err() != nil {
			return lock.Grant{}, false, err
		}
		beat = a.l.leases.begin(le, le.eighth(start))
	}
	g := lock.Grant{
		Key: a.req.Key, Owner: a.req.Owner, Token: lock.Token(a.rev), Shared: a.req.Shared,
		TTL: ttl, Start: start,
	}
	a.l.holds.add(&hold{g: g, slot: a.slot, name: a.name, base: a.base, mod: mod, lease: le, lost: a.req.Lost})
	return g, true, nil
}

// unsure remembers that a request may take effect although it brought an error.
func (a *acquisition) unsure(err error) {
	if err != nil && !definite(err) && !neverSent(err) {
		a.l.slots.doubt(a.slot)
	}
}
