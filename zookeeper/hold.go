package zookeeper

import (
	"container/heap"
	"time"

	"github.com/seed-215fdefa/lock"
)

// watchAfter is how long a grant is held before its node is watched. Most are over before,
// and do without the read and the event.
const watchAfter = 200 * time.Millisecond

// keeper looks after what is held: it has the nodes watched, and deletes those of grants
// that were not renewed in time. One timer serves all. It works on after Close, since the
// nodes would else live as long as the session, which is the caller's. registry.mu guards
// it.
type keeper struct {
	l       *Locker
	due     dueHeap
	timer   *time.Timer
	timerAt time.Time // zero: it is not set
}

type entry struct {
	at time.Time
	c  *claim
}

// keep has c looked at after d.
func (k *keeper) keep(c *claim, d time.Duration) {
	k.push(entry{time.Now().Add(d), c})
}

func (k *keeper) push(e entry) {
	heap.Push(&k.due, e)
	k.arm()
}

func (k *keeper) arm() {
	if len(k.due) == 0 {
		return
	}
	at := k.due[0].at
	if !k.timerAt.IsZero() && !at.Before(k.timerAt) {
		return
	}
	k.timerAt = at
	if k.timer == nil {
		k.timer = time.AfterFunc(time.Until(at), k.l.tend)
		return
	}
	k.timer.Reset(time.Until(at))
}

// tend is the timer's: it has claims watched, and ends those whose TTL is over.
func (l *Locker) tend() {
	now := time.Now()
	var watch, over []grip
	var wake []*claim
	l.mu.Lock()
	k := &l.keeper
	k.timerAt = time.Time{}
	for len(k.due) > 0 && !k.due[0].at.After(now) {
		c := heap.Pop(&k.due).(entry).c
		switch {
		case c.phase != held && c.phase != releasing:
		case !c.deadline.After(now):
			g := l.grip(c)
			if c.phase == releasing {
				g.claim = nil // that it ends is no loss
			}
			over = append(over, g)
			wake = append(wake, l.close(c)...)
		default:
			watch = append(watch, l.grip(c))
			heap.Push(&k.due, entry{c.deadline, c})
		}
	}
	k.arm()
	l.mu.Unlock()
	nudgeAll(wake)
	for _, g := range watch {
		l.watch(g.at, g.path)
	}
	for _, g := range over { // its holder is as good as dead
		l.discard(g.path)
		if g.claim != nil && g.lost != nil {
			g.lost(lock.ReasonExpired)
		}
	}
}

// dueHeap is ordered by at.
type dueHeap []entry

func (h dueHeap) Len() int           { return len(h) }
func (h dueHeap) Less(i, j int) bool { return h[i].at.Before(h[j].at) }
func (h dueHeap) Swap(i, j int)      { h[i], h[j] = h[j], h[i] }

// Push is heap.Interface's.
func (h *dueHeap) Push(x any) { *h = append(*h, x.(entry)) }

// Pop is heap.Interface's.
func (h *dueHeap) Pop() any {
	old := *h
	n := len(old) - 1
	e := old[n]
	old[n] = entry{}
	*h = old[:n]
	return e
}
