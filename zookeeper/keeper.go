package zookeeper

import (
	"container/heap"
	"errors"
	"time"

	"github.com/go-zookeeper/zk"

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

// watch sees to it that who waits for the node at p, or holds by it, learns its end. There
// is one watch for a node, however many wait, and it stays until the node goes: watches of
// ZooKeeper cannot be taken back.
//
// It watches the node's children, of which an ephemeral node has none: that event comes
// when the node goes, and not when it is written, and unlike a watch by Exists it does not
// stay behind when the node is gone already.
func (l *Locker) watch(p place, path string) {
	l.mu.Lock()
	_, is := l.watched[path]
	l.watched[path] = struct{}{}
	l.mu.Unlock()
	if !is {
		go l.watching(p, path)
	}
}

func (l *Locker) watching(p place, path string) {
	for t := (tries{}); ; {
		began := time.Now()
		gone := l.await(path)
		if time.Since(began) > maxPause {
			t = tries{}
		}
		l.mu.Lock()
		c := l.places[p]
		if c != nil && l.path(c.key, c.node.name) != path {
			c = nil
		}
		again := !gone && c != nil && c.phase == held
		ours := gone && c != nil && c.phase == releasing // its release tells who is next
		if !again {                                      // now, so that who looks from here on gets a watch of its own
			delete(l.watched, path)
		}
		l.mu.Unlock()
		if gone && c != nil {
			l.lose(c, lock.ReasonForced)
		}
		if !ours {
			nudgeAll(l.followers(p))
		}
		if !again {
			return
		}
		if t.pause(l.done, l.done, errGone) != nil {
			l.mu.Lock()
			delete(l.watched, path)
			l.mu.Unlock()
			return
		}
	}
}

// await returns when the node is gone, or when that is not known any more.
func (l *Locker) await(path string) (gone bool) {
	_, _, events, err := l.conn.ChildrenW(path)
	if err != nil {
		return errors.Is(err, zk.ErrNoNode)
	}
	select {
	case ev := <-events:
		if ev.Type == zk.EventNodeDeleted {
			l.deaf.Store(false)
			return true
		}
		return false
	case <-l.done.Done():
		return false
	}
}

// watchSession tells the claims when their session has expired. zk.Conn ends all watches
// then, so one of its own serves.
func (l *Locker) watchSession() {
	for t := (tries{}); l.done.Err() == nil; {
		_, _, events, err := l.conn.ExistsW(l.root)
		l.checkSession()
		if err != nil {
			timer := time.NewTimer(t.wait())
			t.n++
			select {
			case <-timer.C:
			case <-l.done.Done():
				timer.Stop()
			}
			continue
		}
		t = tries{}
		select {
		case ev := <-events:
			if errors.Is(ev.Err, zk.ErrClosing) {
				return
			}
			l.checkSession()
		case <-l.done.Done():
		}
	}
}

// checkSession ends the grants of sessions other than the current one, and makes those who
// wait in one look.
func (l *Locker) checkSession() {
	session := l.conn.SessionID()
	var stale []*claim
	l.mu.Lock()
	for _, c := range l.claims {
		if c.session != 0 && c.session != session {
			stale = append(stale, c)
		}
	}
	l.mu.Unlock()
	for _, c := range stale {
		l.lose(c, lock.ReasonExpired)
		c.nudge()
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
