package etcd

import (
	"container/heap"
	"context"
	"errors"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/seed-215fdefa/lock"
)

// watchDelay is how long a grant is held before its key is watched: short holds pay nothing.
// The watch begins at the revision of the grant, so that it misses nothing.
const watchDelay = 20 * time.Millisecond

// holds are the grants that a Locker has given. They end by themselves: an etcd lease may
// outlive a grant, since others are renewed under it. One timer serves all.
type holds struct {
	l *Locker

	mu     sync.Mutex // guards the rest, and the fields of holds that change
	byName map[string]*hold
	queue  queue
	timer  *time.Timer
	wake   time.Time // when timer fires; zero: it does not
}

// hold is a grant.
type hold struct {
	slot       *slot // nil: the name is another Locker's
	name, base string
	lease      *lease

	g        lock.Grant
	mod      int64                 // revision of this Locker's last put
	lost     func(lock.LostReason) // nil: nobody is to be told
	watched  bool
	leave    func() // ends the watch; nil: there is none
	renewals int    // under way: the grant does not end meanwhile
	due      time.Time
	index    int // in queue; -1: it is over
	l        *Locker
}

func (hs *holds) add(h *hold) {
	h.l = hs.l
	var leave func()
	hs.mu.Lock()
	h.due = h.g.Start.Add(h.g.TTL)
	if h.lost == nil {
		h.watched = true
	} else if watch := time.Now().Add(watchDelay); watch.Before(h.due) {
		h.due = watch
	}
	if hs.byName == nil {
		hs.byName = make(map[string]*hold)
	}
	if old := hs.byName[h.name]; old != nil {
		leave = hs.remove(old)
	}
	hs.byName[h.name] = h
	heap.Push(&hs.queue, h)
	hs.arm()
	hs.mu.Unlock()
	call(leave)
}

// remove forgets h and returns what ends its watch, to be called without the mutex; it may
// be nil.
func (hs *holds) remove(h *hold) (leave func()) {
	if h.index >= 0 {
		heap.Remove(&hs.queue, h.index)
		delete(hs.byName, h.name)
	}
	leave, h.leave, h.lost = h.leave, nil, nil
	return leave
}

func call(f func()) {
	if f != nil {
		f()
	}
}

// renewing returns the grant and keeps it from ending until renewed.
func (hs *holds) renewing(name string, token lock.Token) *hold {
	hs.mu.Lock()
	defer hs.mu.Unlock()
	h := hs.byName[name]
	if h == nil || h.g.Token != token {
		return nil
	}
	h.renewals++
	return h
}

// again is what remains of h when its key has been put by another Locker.
func (hs *holds) again(h *hold) *hold {
	hs.mu.Lock()
	defer hs.mu.Unlock()
	return &hold{slot: h.slot, name: h.name, lost: h.lost}
}

func (hs *holds) renewed(h *hold, g lock.Grant, err error) {
	var leave func()
	lost := errors.Is(err, lock.ErrLost)
	hs.mu.Lock()
	h.renewals--
	switch {
	case lost:
		leave = hs.remove(h)
	case err == nil:
		if g.Start.After(h.g.Start) {
			h.g = g
		}
		if h.index >= 0 && h.watched {
			h.due = h.g.Start.Add(h.g.TTL)
			heap.Fix(&hs.queue, h.index)
			hs.arm()
		}
	}
	hs.mu.Unlock()
	call(leave)
	switch {
	case lost && isGone(err): // with the key, as a rule: see leaseGone
		hs.l.spawn(func() { hs.expire([]*hold{h}) })
	case lost:
		hs.l.gone(h.slot, h.g.TTL)
	}
}

// leaving returns the grant that its holder is about to release. Nothing is told any more,
// but if the release fails the grant still ends.
func (hs *holds) leaving(name string, token lock.Token) *hold {
	hs.mu.Lock()
	h := hs.byName[name]
	if h == nil || h.g.Token != token {
		hs.mu.Unlock()
		return nil
	}
	leave := h.leave
	h.leave, h.lost, h.watched = nil, nil, true
	if end := h.g.Start.Add(h.g.TTL); h.due.Before(end) {
		h.due = end
		heap.Fix(&hs.queue, h.index)
	}
	hs.mu.Unlock()
	call(leave)
	return h
}

// left is the outcome of the release.
func (hs *holds) left(h *hold, err error) {
	if err != nil && !errors.Is(err, lock.ErrLost) {
		return
	}
	hs.mu.Lock()
	leave := hs.remove(h)
	hs.mu.Unlock()
	call(leave)
}

// forget drops what there may be of a name whose owner is undone.
func (hs *holds) forget(name string) {
	hs.mu.Lock()
	h := hs.byName[name]
	var leave func()
	if h != nil {
		leave = hs.remove(h)
	}
	hs.mu.Unlock()
	call(leave)
}

// gone has the loss of h told, whose key is not there any more.
func (hs *holds) gone(h *hold) {
	hs.lose(h)
	hs.l.gone(h.slot, h.g.TTL)
}

func (hs *holds) lose(h *hold) {
	why := h.reason(time.Now())
	hs.mu.Lock()
	lost := h.lost
	leave := hs.remove(h)
	hs.mu.Unlock()
	call(leave)
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
	for _, h := range hs.byName {
		if h.lease == le {
			gone = append(gone, h)
		}
	}
	hs.mu.Unlock()
	for _, h := range gone {
		hs.lose(h)
	}
	hs.l.spawn(func() { hs.expire(gone) })
}

// reason is why h is lost when its key is not there any more: its lease has expired, or
// somebody deleted the key.
func (h *hold) reason(now time.Time) lock.LostReason {
	if h.l.leases.overdue(h.lease, now) {
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
	var told []func()
	var leave []func()
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
				told = append(told, func() { lost(lock.ReasonExpired) })
			}
			leave = append(leave, hs.remove(h))
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
	for _, f := range append(leave, told...) {
		call(f)
	}
	if len(over) > 0 {
		hs.l.spawn(func() { hs.expire(over) })
	}
}

// watch has h's key watched from its last put on.
func (hs *holds) watch(h *hold) {
	leave := hs.l.watches.join(h.base, h.name, h.mod+1, func(gone bool) {
		if gone {
			hs.gone(h)
		} else {
			hs.l.spawn(func() { hs.verify(h) })
		}
	})
	hs.mu.Lock()
	if h.index >= 0 && h.lost != nil {
		h.leave, leave = leave, nil
	}
	hs.mu.Unlock()
	call(leave)
}

// verify reads h's key, about which the watch cannot tell. If that fails, the next renewal
// will tell.
func (hs *holds) verify(h *hold) {
	ctx, cancel := context.WithTimeout(hs.l.ctx, requestTimeout)
	defer cancel()
	resp, err := hs.l.cli.Get(ctx, h.name, clientv3.WithKeysOnly())
	if err == nil && len(resp.Kvs) == 0 {
		hs.gone(h)
	}
}

// expire deletes the keys of grants that are over, unless another Locker has taken one into
// its care, which its mod revision shows. It goes on until the server has answered.
func (hs *holds) expire(over []*hold) {
	const batch = 64
	for len(over) > 0 {
		now := over[:min(batch, len(over))]
		var ops []clientv3.Op
		for _, h := range now {
			ops = append(ops, clientv3.OpTxn(
				[]clientv3.Cmp{clientv3.Compare(clientv3.ModRevision(h.name), "=", h.mod)},
				[]clientv3.Op{clientv3.OpDelete(h.name)},
				[]clientv3.Op{clientv3.OpGet(h.name, clientv3.WithCountOnly())}))
		}
		ctx, cancel := context.WithTimeout(hs.l.ctx, requestTimeout)
		resp, err := hs.l.cli.Txn(ctx).Then(ops...).Commit()
		cancel()
		if err == nil {
			for i, h := range now {
				r := resp.Responses[i].GetResponseTxn()
				if r.Succeeded || r.Responses[0].GetResponseRange().Count == 0 {
					hs.l.gone(h.slot, h.g.TTL)
				}
			}
			over = over[len(now):]
			continue
		}
		select {
		case <-time.After(watchDelay * 10):
		case <-hs.l.ctx.Done():
			return
		}
	}
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
