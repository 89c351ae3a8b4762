package etcd

import (
	"context"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/seed-215fdefa/lock"
)

const (
	// patience is how long a waiter goes on through errors of the cluster, such as those of
	// an election or a restart, before Acquire returns the last one.
	patience   = 30 * time.Second
	retryPause = 100 * time.Millisecond
)

// wait acquires, standing in line if it must, until ctx or the Locker ends. The place in line
// is the caller's to undo.
func (l *Locker) wait(ctx context.Context, a *acquisition) (lock.Grant, error) {
	g, ok, err := a.enter(ctx)
	if ok {
		return g, nil
	}
	if err == nil || transient(err) && ctx.Err() == nil {
		wctx, cancel := context.WithCancel(ctx)
		stop := context.AfterFunc(l.ctx, cancel)
		g, ok, err = a.stand(wctx, err)
		stop()
		cancel()
	}
	switch {
	case ok:
		return g, nil
	case ctx.Err() == nil && l.ctx.Err() != nil:
		return lock.Grant{}, l.over()
	case a.seen.Key != "" && ctx.Err() != nil:
		return lock.Grant{}, &lock.HeldError{Record: a.seen, Err: l.fail(ctx, err)}
	}
	return lock.Grant{}, l.fail(ctx, err)
}

// next is what a waiter does next.
type next int

const (
	stay  next = iota // wait
	look              // read whether own entry and predecessor are there
	claim             // take the lock if the own entry is first
	enter             // line up, anew: the own entry is gone, or never was there
)

// waiter is one Acquire that stands in line.
type waiter struct {
	*acquisition
	p       *place
	pred    string // that p is registered for
	leave   func() // takes the registration back
	timer   *time.Timer
	beat    time.Duration
	todo    next
	healthy time.Time // when the cluster last answered
}

// stand waits until the own entry is the first. A wake-up, by a watch or by a release in this
// process, is a hint, which a claim verifies; each third of the heartbeat keeps the place and
// looks whether a wake-up got lost. err is that of an attempt to enter.
func (a *acquisition) stand(ctx context.Context, err error) (g lock.Grant, ok bool, _ error) {
	w := &waiter{
		acquisition: a, beat: a.heartbeat / 3, todo: a.due(), healthy: time.Now(), leave: func() {},
		p: &place{wakeup: make(chan struct{}, 1), granted: make(chan handover, 1)},
	}
	w.timer = time.NewTimer(w.beat)
	defer w.timer.Stop()
	defer func() { w.leave() }()
	for {
		if err == nil {
			g, ok, err = w.step(ctx)
		}
		switch {
		case ok:
			return g, true, nil
		case ctx.Err() != nil:
			return g, false, ctx.Err()
		case err != nil:
			if err = w.endure(err); err != nil {
				return g, false, err
			}
		default:
			if w.todo = w.due(); w.todo != stay {
				continue
			}
			w.settle()
		}
		if g, ok, err = w.sleep(ctx); ok {
			return g, true, nil
		}
	}
}

// step does what is to be done.
func (w *waiter) step(ctx context.Context) (g lock.Grant, ok bool, err error) {
	switch w.todo {
	case enter:
		return w.enter(ctx)
	case claim:
		return w.claim(ctx)
	case look:
		return g, false, w.check(ctx)
	}
	return g, false, nil
}

// endure has the waiter try again after a while, unless err will not go away.
func (w *waiter) endure(err error) error {
	if !transient(err) && !isGone(err) || time.Since(w.healthy) > patience {
		return err
	}
	w.todo = w.woken()
	w.timer.Reset(min(w.beat, retryPause))
	return nil
}

// settle makes known whom the own entry waits for now.
func (w *waiter) settle() {
	w.healthy = time.Now()
	if w.acquisition.pred != w.pred || w.p.rev != w.rev || w.p.taken.Load() {
		w.leave()
		w.pred = w.acquisition.pred
		w.p, w.leave = w.register(w.p)
	}
	w.tell()
	w.timer.Reset(w.beat)
}

// sleep waits for the next thing to do, or for the grant by a handover.
func (w *waiter) sleep(ctx context.Context) (g lock.Grant, ok bool, err error) {
	for {
		select {
		case h := <-w.p.granted:
			if h.ok && h.rev == w.rev { // else that entry is gone, and there is a new one
				return w.granted(ctx, h.lease, h.start, h.mod, landed)
			}
			w.todo = w.woken()
			return g, false, nil
		case <-w.p.wakeup:
			if w.p.taken.Load() {
				continue // what comes of the handover is told
			}
			w.todo = w.woken()
			return g, false, nil
		case <-w.timer.C:
			w.keep()
			if w.todo == stay {
				w.todo = look
			}
			return g, false, nil
		case <-ctx.Done():
			return g, false, ctx.Err()
		}
	}
}

// due is what is known to be done next.
func (a *acquisition) due() next {
	switch {
	case a.rev == 0:
		return enter
	case a.pred == "":
		return claim
	}
	return stay
}

// woken is what to do after a hint.
func (a *acquisition) woken() next {
	if a.rev == 0 {
		return enter
	}
	return claim
}

// register makes the wait known to this Locker's watches and, as that of the next in line, to
// the holder's release.
func (a *acquisition) register(old *place) (p *place, leave func()) {
	p = &place{a: a, name: a.name, rev: a.rev, lease: a.full, wakeup: old.wakeup, granted: old.granted}
	tell := func(bool) { p.look() }
	// From that revision on, not the next: a release may have shared the transaction.
	leavePred := a.l.watches.join(a.base, a.pred, a.at, tell)
	leaveOwn := a.l.watches.join(a.base, a.name, a.at, tell)
	pred := a.pred
	a.l.line.add(pred, p)
	return p, func() {
		a.l.line.remove(pred, p)
		leavePred()
		leaveOwn()
	}
}

// tell calls Waiting, once.
func (a *acquisition) tell() {
	if !a.told && a.req.Waiting != nil {
		a.told = true
		a.req.Waiting(a.seen)
	}
}

// keep keeps both leases alive: the one that the own entry waits under, and the one that the
// grant will need.
func (a *acquisition) keep() {
	if a.rev == 0 {
		return
	}
	now := time.Now()
	a.l.leases.begin(a.lease, a.lease.eighth(now))
	a.l.leases.begin(a.full, now.Add(-a.full.ttl/4))
}

// check reads whether own entry and predecessor are there. It takes no write, since every
// waiter does it all the time.
func (a *acquisition) check(ctx context.Context) error {
	var resp *clientv3.TxnResponse
	err := a.l.again(ctx, a.heartbeat, func(ctx context.Context, _ int) (err error) {
		resp, err = a.l.cli.Txn(ctx).Then(
			clientv3.OpGet(a.name, clientv3.WithKeysOnly()),
			clientv3.OpGet(a.pred, clientv3.WithKeysOnly())).Commit()
		return err
	})
	if err != nil {
		return err
	}
	if kvs := resp.Responses[0].GetResponseRange().Kvs; len(kvs) == 0 || kvs[0].CreateRevision != a.rev {
		a.rev = 0
	}
	if kvs := resp.Responses[1].GetResponseRange().Kvs; len(kvs) == 0 || kvs[0].CreateRevision > a.rev {
		a.pred = "" // it is gone, and its name in use again
	}
	return nil
}

// claim takes the lock if the own entry is there and none in the way is older: by a
// linearizable transaction, since a wait proves nothing. It puts the entry under the lease of
// the full TTL, unless somebody has put it since it was seen: a claim that takes effect late
// must not take it from a newer lease to an older one. If the entry is gone, the place in line
// is lost.
func (a *acquisition) claim(ctx context.Context) (g lock.Grant, ok bool, err error) {
	if a.full, err = a.l.leases.get(ctx, a.req.TTL); err != nil {
		return g, false, err
	}
	var start time.Time
	var beat *flight
	var resp *clientv3.TxnResponse
	err = a.l.again(ctx, a.heartbeat, func(ctx context.Context, _ int) (err error) {
		start = time.Now()
		beat = a.l.leases.begin(a.full, a.full.eighth(start))
		resp, err = a.claiming(ctx).Commit()
		return err
	})
	if err != nil {
		a.l.leases.suspect(err, a.full)
		return g, false, err
	}
	done, ops := resp.Succeeded, resp.Responses
	if a.req.Shared && !done {
		inner := ops[0].GetResponseTxn()
		done, ops = inner.Succeeded, inner.Responses
	}
	if !done {
		a.still(ops, resp.Header.Revision)
		return g, false, nil
	}
	if a.under != a.full.id {
		a.mod, a.under = resp.Header.Revision, a.full.id
	}
	return a.granted(ctx, a.full, start, a.mod, beat)
}

// claiming is claim's transaction. Else it reads why not.
func (a *acquisition) claiming(ctx context.Context) clientv3.Txn {
	take := clientv3.OpPut(a.name, a.value(true), clientv3.WithLease(a.full.id))
	if a.under == a.full.id {
		take = clientv3.OpGet(a.name, clientv3.WithKeysOnly())
	}
	mine := clientv3.Compare(clientv3.ModRevision(a.name), "=", a.mod)
	first := clientv3.Compare(clientv3.CreateRevision(a.rivals), ">", a.rev-1).WithRange(rangeEnd(a.rivals))
	why := []clientv3.Op{clientv3.OpGet(a.name, clientv3.WithKeysOnly()), a.nearest(), oldest(a.base, a.detail())}
	t := a.l.cli.Txn(ctx).If(mine, first).Then(take)
	if a.req.Shared { // no rival at all has no revision to compare
		return t.Else(clientv3.OpTxn([]clientv3.Cmp{mine, a.none()}, []clientv3.Op{take}, why))
	}
	return t.Else(why...)
}

// still reads why a claim was refused.
func (a *acquisition) still(ops []*pb.ResponseOp, rev int64) {
	a.observe(ops[2])
	a.at, a.pred = rev, ""
	if kvs := ops[1].GetResponseRange().Kvs; len(kvs) > 0 {
		a.pred = string(kvs[0].Key)
	}
	if kvs := ops[0].GetResponseRange().Kvs; len(kvs) == 0 || kvs[0].CreateRevision != a.rev {
		a.rev = 0
	} else {
		a.seeOwn(kvs[0])
	}
}

// observe remembers who holds the lock, for the error of a wait that ends without it.
func (a *acquisition) observe(op *pb.ResponseOp) {
	entries := entriesOf(a.l.prefix, op.GetResponseRange().Kvs)
	for i, e := range entries {
		if e.owner == a.req.Owner {
			entries = entries[:i] // those behind are not in front
			break
		}
	}
	if len(entries) > 0 {
		a.seen = recordOf(a.req.Key, entries, time.Now())
	}
}
