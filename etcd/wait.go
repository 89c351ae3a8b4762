package etcd

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/internal/storekit"
)

// wait acquires, standing in line if it must, until ctx or the Locker ends. A wake-up, by the
// watch or by a release in this process, is a hint, which a claim verifies.
func (a *acquisition) wait(ctx context.Context) (lock.Grant, error) {
	a.box = storekit.NewMailbox()
	a.l.lines.join(a.h.base)
	defer a.l.lines.leave(a.h.base)
	defer a.unregister()
	if tell := a.req.Waiting; tell != nil {
		var once sync.Once
		a.req.Waiting = func(rec lock.Record) { once.Do(func() { tell(rec) }) }
	}
	w := storekit.Wait{
		Request: a.req, Mailbox: a.box, Closed: a.l.ctx, Classify: classify,
		Claim: a.look, Recheck: a.l.news.recheck,
	}
	for {
		g, err := w.Run(ctx)
		if err != nil {
			return g, err
		}
		// A handover may have been for an entry that is gone, and there is a new one.
		if g, ok := a.l.holds.has(a.h, g.Token); ok && g.Token == a.l.tokenOf(a.rev) {
			return g, nil
		}
	}
}

// look is one claim of a storekit.Wait: it does what is to be done next until it can but wait.
// Without a wake-up it keeps the place, and looks whether a wake-up got lost.
func (a *acquisition) look(ctx context.Context, woken bool) (g lock.Grant, no *storekit.Refusal, err error) {
	if a.place != nil && a.place.state.Load() == taken {
		return g, a.refusal(), nil // what comes of the handover is told
	}
	if !woken && a.rev != 0 {
		if err := a.recheck(ctx); err != nil {
			return g, nil, err
		}
	}
	for ok := false; ; woken = false {
		switch {
		case a.rev == 0:
			a.unregister()
			a.l.holds.takeBack(a.h)
			g, ok, _, err = a.enter(ctx)
		case a.pred == "" || woken:
			g, ok, err = a.claim(ctx)
		default:
			a.register()
			return g, a.refusal(), nil
		}
		if ok || err != nil {
			return g, nil, err
		}
	}
}

func (a *acquisition) refusal() *storekit.Refusal { return &storekit.Refusal{Record: a.seen} }

// recheck keeps both leases alive, the one that the own entry waits under and the one that the
// grant will need, and reads whether own entry and predecessor are there. Who stands behind
// another of this Locker's, who does the same, reads nothing.
func (a *acquisition) recheck(ctx context.Context) error {
	now := time.Now()
	if a.lease != nil {
		a.l.leases.begin(a.lease, a.lease.eighth(now))
	}
	if a.full != nil {
		a.l.leases.begin(a.full, now.Add(-a.full.ttl/4))
	}
	if a.pred == "" {
		return nil
	}
	if a.l.lines.waits(a.pred) {
		return a.l.trouble()
	}
	out, err := a.l.reads.send(ctx, &part{every: impatience(a.heartbeat), then: []clientv3.Op{
		clientv3.OpGet(a.h.name, clientv3.WithKeysOnly()), clientv3.OpGet(a.pred, clientv3.WithKeysOnly()),
	}})
	if err != nil {
		return err
	}
	if kvs := out.ops[0].GetResponseRange().Kvs; len(kvs) == 0 || kvs[0].CreateRevision != a.rev {
		a.rev = 0
	}
	if kvs := out.ops[1].GetResponseRange().Kvs; len(kvs) == 0 || kvs[0].CreateRevision > a.rev {
		a.pred = "" // it is gone, and its name in use again
		a.l.news.unheard()
	}
	return nil
}

// place is what others in this Locker know of one who waits behind a certain entry. It does
// not change.
type place struct {
	a     *acquisition
	pred  string
	rev   int64
	lease *lease // for the grant
	state atomic.Int32
	leave func()
}

// The states of a place.
const (
	waiting int32 = iota
	taken         // a handover is under way: hints are of its own making
	over          // it has brought no grant: its waiter looks, and registers anew
)

// failed has the waiter look for itself, to which a handover was not made.
func (p *place) failed() {
	p.state.Store(over)
	p.a.box.Wake()
}

// register makes known whom the own entry waits for: to the watch and, as that of the next in
// line, to the holder's release.
func (a *acquisition) register() {
	if p := a.place; p != nil && p.pred == a.pred && p.rev == a.rev && p.lease == a.full && p.state.Load() == waiting {
		return
	}
	a.unregister()
	p := &place{a: a, pred: a.pred, rev: a.rev, lease: a.full}
	tell := func(bool) { a.box.Wake() }
	// From that revision on, not the next: a release may have shared the transaction.
	leavePred := a.l.news.join(a.pred, a.at, tell)
	leaveOwn := a.l.news.join(a.h.name, a.at, tell)
	p.leave = func() { leavePred(); leaveOwn() }
	a.place = p
	a.l.lines.add(p)
}

func (a *acquisition) unregister() {
	if p := a.place; p != nil {
		a.place = nil
		a.l.lines.remove(p)
		p.leave()
	}
}

// lines are the waiters of this Locker.
type lines struct {
	mu      sync.Mutex          // guards the rest, and the fields of lines
	byBase  map[string]*line    // locks for which somebody waits
	next    map[string]*place   // who waits for an exclusive entry, as the next in line
	waiting map[string]struct{} // names of entries that wait
}

type line struct {
	waiters int
	seen    lock.Record // when it was last short enough to be read
}

func (n *lines) join(base string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.byBase[base] == nil {
		n.byBase[base] = &line{}
	}
	n.byBase[base].waiters++
}

func (n *lines) leave(base string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.byBase[base].waiters--; n.byBase[base].waiters == 0 {
		delete(n.byBase, base)
	}
}

// observe is the record of a lock, of which rec may not be complete.
func (n *lines) observe(base string, rec lock.Record, complete bool) lock.Record {
	n.mu.Lock()
	defer n.mu.Unlock()
	x := n.byBase[base]
	switch {
	case x == nil:
	case complete:
		x.seen = rec
	case x.seen.Key != "":
		entries := rec.WaiterCount + 1
		rec = x.seen
		rec.WaiterCount = max(entries-rec.HolderCount, len(rec.Waiters))
	}
	return rec
}

// add makes p known. An exclusive one is next after the entry that it waits for; of shared
// ones there may be many, and they look for themselves.
func (n *lines) add(p *place) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.waiting[p.a.h.name] = struct{}{}
	if !p.a.req.Shared {
		n.next[p.pred] = p
	}
}

func (n *lines) remove(p *place) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.waiting, p.a.h.name)
	if n.next[p.pred] == p {
		delete(n.next, p.pred)
	}
}

// waits reports whether the entry called name is that of a waiter in this Locker.
func (n *lines) waits(name string) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	_, ok := n.waiting[name]
	return ok
}

// behind returns who is next after the entry called name, once. Who waits for an older entry of
// that name has no entry any more, which a handover finds.
func (n *lines) behind(name string) *place {
	n.mu.Lock()
	defer n.mu.Unlock()
	p := n.next[name]
	if p != nil {
		p.state.Store(taken)
		delete(n.next, name)
	}
	return p
}
