package etcd

import (
	"container/heap"
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/internal/storekit"
)

// watchDelay is how long a grant is held before its key is watched: short holds pay nothing.
// The watch begins at the revision of the grant, so that it misses nothing.
const watchDelay = 20 * time.Millisecond

// holds are what a Locker's owners have, or may have, on the server. Grants end by themselves:
// an etcd lease may outlive them, since others are renewed under it. One timer serves all.
type holds struct {
	l *Locker

	mu      sync.Mutex // guards the rest, and the fields of holds that change
	byOwner map[string]*hold
	queue   queue
	timer   *time.Timer
	wake    time.Time // when timer fires; zero: it does not
}

// hold is what one owner has: nothing yet, a place in line, or a grant.
type hold struct {
	g          lock.Grant // without a Token while it is none
	name, base string
	number     int32 // in the name; -1: it is not this Locker's
	pending    bool  // its Acquire has not returned
	foreign    bool  // another has the name
	doubt      bool  // a late request may yet create the key
	lined      bool  // its name may be the tail
	rev        int64 // create revision; 0: it is not known

	lease    *lease
	mod      int64                 // revision of this Locker's last put
	lost     func(lock.LostReason) // nil: nobody is to be told
	watched  bool
	leave    func() // ends the watch; nil: there is none
	renewals int    // under way: the grant does not end meanwhile
	due      time.Time
	index    int // in queue; -1: it is in none
	over     bool
}

// add is what an acquisition begins with.
func (hs *holds) add(req lock.Request) *hold {
	base := hs.l.baseOf(req.Key)
	name, number := hs.l.names.take(base, req.Shared)
	h := &hold{
		g:    lock.Grant{Key: req.Key, Owner: req.Owner, Shared: req.Shared},
		name: name, base: name[:len(base)], number: number, pending: true, lost: req.Lost, index: -1,
	}
	hs.mu.Lock()
	defer hs.mu.Unlock()
	hs.byOwner[req.Owner] = h
	return h
}

// granted notes a grant, unless its owner has given up.
func (hs *holds) granted(h *hold, g lock.Grant, mod int64, le *lease, doubt bool) {
	hs.mu.Lock()
	defer hs.mu.Unlock()
	if h.over {
		return
	}
	h.pending = false
	h.g, h.rev, h.mod, h.lease, h.doubt = g, hs.l.revisionOf(g.Token), mod, le, h.doubt || doubt
	h.due = g.Start.Add(g.TTL)
	if h.lost == nil {
		h.watched = true
	} else if watch := time.Now().Add(watchDelay); watch.Before(h.due) {
		h.due = watch
	}
	if h.index < 0 {
		heap.Push(&hs.queue, h)
	} else {
		heap.Fix(&hs.queue, h.index)
	}
	hs.arm()
}

// takeBack forgets a grant by a handover whose entry is gone before its waiter has heard of it.
func (hs *holds) takeBack(h *hold) {
	hs.mu.Lock()
	defer hs.mu.Unlock()
	if h.g.Token == 0 {
		return
	}
	if h.index >= 0 {
		heap.Remove(&hs.queue, h.index)
	}
	h.g.Token, h.pending = 0, true
}

// failed is the end of an acquisition that has got no grant, but has a place in line if rev is
// not 0. What it leaves is pruned after a while, also if no undo comes: the etcd lease would not
// end it, which others keep alive.
func (hs *holds) failed(h *hold, rev int64, doubt bool) {
	hs.mu.Lock()
	h.pending, h.over = false, true
	h.rev, h.doubt = rev, h.doubt || doubt
	nothing := rev == 0 && !h.doubt
	hs.mu.Unlock()
	if nothing {
		hs.forget(h, 0)
	} else {
		hs.l.pruner.add(undoDelay, h)
	}
}

// has returns h's grant if its token is that.
func (hs *holds) has(h *hold, token lock.Token) (lock.Grant, bool) {
	hs.mu.Lock()
	defer hs.mu.Unlock()
	return h.g, h.g.Token == token
}

// of returns what owner may have of key, or nil.
func (hs *holds) of(key, owner string) *hold {
	hs.mu.Lock()
	defer hs.mu.Unlock()
	if h := hs.byOwner[owner]; h != nil && h.g.Key == key {
		return h
	}
	return nil
}

// remove ends h as far as this Locker is concerned, and returns what ends its watch, to be
// called without the mutex.
func (hs *holds) remove(h *hold) (leave func()) {
	if h.index >= 0 {
		heap.Remove(&hs.queue, h.index)
	}
	leave, h.leave, h.lost, h.over = h.leave, nil, nil, true
	if leave == nil {
		leave = func() {}
	}
	return leave
}

// forget drops h, whose key is gone, at revision rev if that is known. Its name is used again
// unless a late request may create the key.
func (hs *holds) forget(h *hold, rev int64) {
	hs.mu.Lock()
	leave := hs.remove(h)
	ours := hs.byOwner[h.g.Owner] == h
	if ours {
		delete(hs.byOwner, h.g.Owner)
	}
	again := ours && h.number >= 0 && !h.doubt && !h.foreign
	hs.mu.Unlock()
	leave()
	if rev > 0 {
		hs.l.news.gone(h.name, rev)
	}
	if again {
		hs.l.names.giveBack(h.number)
	}
}

// renewing returns the grant and keeps it from ending until renewed.
func (hs *holds) renewing(g lock.Grant) *hold {
	hs.mu.Lock()
	defer hs.mu.Unlock()
	h := hs.byOwner[g.Owner]
	if h == nil || h.over || h.g.Key != g.Key || h.g.Token != g.Token {
		return nil
	}
	h.renewals++
	return h
}

func (hs *holds) renewed(h *hold, g lock.Grant, err error) {
	leave := func() {}
	lost := errors.Is(err, lock.ErrLost)
	hs.mu.Lock()
	h.renewals--
	switch {
	case lost:
		leave = hs.remove(h)
	case err == nil && !h.over:
		if g.Start.After(h.g.Start) {
			h.g.Start, h.g.TTL = g.Start, g.TTL
		}
		if h.watched {
			h.due = h.g.Start.Add(h.g.TTL)
			heap.Fix(&hs.queue, h.index)
			hs.arm()
		}
	}
	hs.mu.Unlock()
	leave()
	switch {
	case lost && isGone(err): // with the key, as a rule: see leaseGone
		hs.l.pruner.add(0, h)
	case lost:
		hs.vanished(h)
	}
}

// vanished is the end of h, whose key is gone. A late request may yet create it again.
func (hs *holds) vanished(h *hold) {
	hs.mu.Lock()
	doubt := h.doubt
	hs.mu.Unlock()
	if doubt {
		hs.l.pruner.add(0, h)
	} else {
		hs.forget(h, 0)
	}
}

// adopted notes that h's key is under another lease of this Locker's.
func (hs *holds) adopted(h *hold, mod int64, le *lease) {
	hs.mu.Lock()
	defer hs.mu.Unlock()
	h.mod, h.lease = mod, le
}

// leaving notes that h's holder is about to release it. Nothing is told any more, but if the
// release fails the grant still ends.
func (hs *holds) leaving(h *hold) {
	hs.mu.Lock()
	leave := h.leave
	h.leave, h.lost, h.watched = nil, nil, true
	if end := h.g.Start.Add(h.g.TTL); h.index >= 0 && h.due.Before(end) {
		h.due = end
		heap.Fix(&hs.queue, h.index)
	}
	hs.mu.Unlock()
	if leave != nil {
		leave()
	}
}

// lose has the loss of h told.
func (hs *holds) lose(h *hold) {
	why := h.reason(hs.l)
	hs.mu.Lock()
	lost := h.lost
	leave := hs.remove(h)
	hs.mu.Unlock()
	leave()
	if lost != nil {
		lost(why)
	}
}

// leaseGone has the loss of all grants under le told. That their keys are gone as well is looked
// after: a leader that is new to its office may not know of a young lease, and another Locker
// may have taken a key into its care.
func (hs *holds) leaseGone(le *lease) {
	var gone []*hold
	hs.mu.Lock()
	for _, h := range hs.queue {
		if h.lease == le {
			gone = append(gone, h)
		}
	}
	hs.mu.Unlock()
	for _, h := range gone {
		hs.lose(h)
	}
	hs.l.pruner.add(0, gone...)
}

// reason is why h is lost when its key is not there any more: its lease has expired, or
// somebody deleted the key.
func (h *hold) reason(l *Locker) lock.LostReason {
	if l.leases.overdue(h.lease) {
		return lock.ReasonExpired
	}
	return lock.ReasonForced
}

// arm sets the timer for the first that is due.
func (hs *holds) arm() {
	if len(hs.queue) == 0 {
		return
	}
	due := hs.queue[0].due
	if !hs.wake.IsZero() && !due.Before(hs.wake) {
		return
	}
	hs.wake = due
	if hs.timer == nil {
		hs.timer = time.AfterFunc(time.Until(due), func() { hs.l.spawn(hs.tick) })
		return
	}
	hs.timer.Reset(time.Until(due))
}

func (hs *holds) stop() {
	hs.mu.Lock()
	defer hs.mu.Unlock()
	if hs.timer != nil {
		hs.timer.Stop()
	}
}

// tick begins watches and ends grants that are due.
func (hs *holds) tick() {
	var watch, over []*hold
	var calls []func()
	hs.mu.Lock()
	hs.wake = time.Time{}
	now := time.Now()
	for len(hs.queue) > 0 && !hs.queue[0].due.After(now) {
		h := hs.queue[0]
		end := h.g.Start.Add(h.g.TTL)
		switch {
		case h.renewals > 0 && !end.After(now):
			h.due = now.Add(watchDelay)
		case !end.After(now):
			if lost := h.lost; lost != nil {
				calls = append(calls, func() { lost(lock.ReasonExpired) })
			}
			calls = append(calls, hs.remove(h))
			over = append(over, h)
			continue
		default:
			h.due = end
			if !h.watched {
				h.watched = true
				watch = append(watch, h)
			}
		}
		heap.Fix(&hs.queue, h.index)
	}
	hs.arm()
	hs.mu.Unlock()
	for _, h := range watch {
		hs.watch(h)
	}
	for _, f := range calls {
		f()
	}
	hs.l.pruner.add(0, over...)
}

// watch has h's key watched from its last put on.
func (hs *holds) watch(h *hold) {
	hs.mu.Lock()
	mod := h.mod
	hs.mu.Unlock()
	leave := hs.l.news.join(h.name, mod+1, func(gone bool) {
		if gone {
			hs.lose(h)
			hs.vanished(h)
		} else {
			hs.l.spawn(func() { hs.verify(h) })
		}
	})
	hs.mu.Lock()
	if !h.over && h.lost != nil {
		h.leave, leave = leave, nil
	}
	hs.mu.Unlock()
	if leave != nil {
		leave()
	}
}

// verify reads h's key, about which the watch cannot tell. If that fails, the next renewal
// will tell.
func (hs *holds) verify(h *hold) {
	resp, err := hs.l.read(hs.l.ctx, clientv3.OpGet(h.name, clientv3.WithKeysOnly()))
	if err == nil && len(resp.Kvs) == 0 {
		hs.lose(h)
		hs.vanished(h)
	}
}

// Renew implements [lock.Locker]. A grant that another Locker acquired comes under an etcd
// lease of this one.
func (l *Locker) Renew(ctx context.Context, g lock.Grant) (lock.Grant, error) {
	if err := l.ready(ctx, storekit.CheckRenewal(g)); err != nil {
		return lock.Grant{}, err
	}
	if g.Token == 0 {
		return lock.Grant{}, fmt.Errorf("%w: token 0: must be positive", lock.ErrInvalid)
	}
	err := l.within(ctx, func(ctx context.Context) (err error) {
		if h := l.holds.renewing(g); h != nil {
			g, err = l.confirm(ctx, h, g)
			l.holds.renewed(h, g, err)
			return err
		}
		h, err := l.find(ctx, g)
		if err == nil {
			g, err = l.adopt(ctx, h, g)
		}
		return err
	})
	if err != nil {
		return lock.Grant{}, l.fail(ctx, err)
	}
	return g, nil
}

// confirm keeps the etcd lease of h alive and reads its key, side by side: in whatever order
// they take effect, the key is there for a TTL from now on unless somebody deletes it.
func (l *Locker) confirm(ctx context.Context, h *hold, g lock.Grant) (lock.Grant, error) {
	l.holds.mu.Lock()
	le, mod := h.lease, h.mod
	l.holds.mu.Unlock()
	start := time.Now()
	beat := l.leases.begin(le, start)
	out, err := l.reads.send(ctx, &part{
		then: []clientv3.Op{clientv3.OpGet(h.name, clientv3.WithKeysOnly())}, every: le.impatience(),
	})
	if err != nil {
		return g, err
	}
	kvs := out.ops[0].GetResponseRange().Kvs
	if len(kvs) == 0 || kvs[0].CreateRevision != h.rev {
		return g, &lock.LostError{Reason: h.reason(l), Token: g.Token}
	}
	if kvs[0].ModRevision != mod {
		return l.adopt(ctx, h, g)
	}
	if err := beat.wait(ctx, l); err != nil {
		if isGone(err) {
			err = &lock.LostError{Reason: h.reason(l), Token: g.Token, Err: err}
		}
		return g, err
	}
	g.TTL, g.Start = le.ttl, start
	return g, nil
}

// adopt renews a grant that this Locker does not know, or that another has renewed meanwhile,
// by putting its key under a lease of its own. The other will not delete the key then: it
// looks at the mod revision. So does this put, which may take effect late: it must not take
// the key from a newer lease to an older one.
func (l *Locker) adopt(ctx context.Context, h *hold, g lock.Grant) (lock.Grant, error) {
	if err := l.checkTTL(g.TTL); err != nil {
		return g, err
	}
	le, err := l.leases.get(ctx, g.TTL)
	if err != nil {
		return g, err
	}
	for seen := int64(-1); ; { // no key has that one
		start := time.Now()
		beat := l.leases.begin(le, start)
		out, err := l.writes.send(ctx, &part{
			conditions: []clientv3.Cmp{clientv3.Compare(clientv3.ModRevision(h.name), "=", seen)},
			then:       []clientv3.Op{clientv3.OpPut(h.name, "", clientv3.WithIgnoreValue(), clientv3.WithLease(le.id))},
			or:         []clientv3.Op{clientv3.OpGet(h.name, clientv3.WithKeysOnly()), everyone(h.base, 1)},
			every:      le.impatience(),
		})
		if err != nil {
			l.leases.suspect(err, le)
			return g, err
		}
		if out.ok {
			if err := beat.wait(ctx, l); err != nil {
				return g, err
			}
			g.TTL, g.Start = le.ttl, start
			if h.number < 0 {
				l.holds.adopt(h, g, out.rev, le)
			} else {
				l.holds.adopted(h, out.rev, le)
			}
			return g, nil
		}
		kvs := out.ops[0].GetResponseRange().Kvs
		if len(kvs) == 0 || kvs[0].CreateRevision != h.rev {
			return g, lostTo(g, out.ops[1])
		}
		seen = kvs[0].ModRevision
	}
}

// adopt notes a grant that another Locker has acquired.
func (hs *holds) adopt(h *hold, g lock.Grant, mod int64, le *lease) {
	hs.mu.Lock()
	hs.byOwner[g.Owner] = h
	hs.mu.Unlock()
	hs.granted(h, g, mod, le, false)
}

// queue is a heap of holds by due.
type queue []*hold

func (q queue) Len() int           { return len(q) }
func (q queue) Less(i, j int) bool { return q[i].due.Before(q[j].due) }
func (q queue) Swap(i, j int) {
	q[i], q[j] = q[j], q[i]
	q[i].index, q[j].index = i, j
}

// Push implements heap.Interface.
func (q *queue) Push(x any) {
	h := x.(*hold)
	h.index = len(*q)
	*q = append(*q, h)
}

// Pop implements heap.Interface.
func (q *queue) Pop() any {
	old := *q
	h := old[len(old)-1]
	h.index = -1
	old[len(old)-1] = nil
	*q = old[:len(old)-1]
	return h
}
