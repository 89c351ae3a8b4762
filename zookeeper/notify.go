package zookeeper

import (
	"errors"
	"reflect"
	"slices"
	"time"

	"github.com/go-zookeeper/zk"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/internal/storekit"
)

// vigil is the watch of one node. One goroutine at a time has it.
type vigil struct {
	at     place
	path   string
	events <-chan zk.Event
}

// rearm is how long a watch that has ended before its node is out of order.
const rearm = 500 * time.Millisecond

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
		go l.arm(&vigil{at: p, path: path})
	}
}

// arm asks for the watch, and has a watcher wait for its event.
func (l *Locker) arm(v *vigil) {
	_, _, events, err := l.conn.ChildrenW(v.path)
	if err != nil {
		l.unwatched(v, broken(err))
		return
	}
	v.events = events
	l.mu.Lock()
	w := l.watcher
	if w == nil || w.taken == maxVigils {
		w = &watcher{l: l, added: make(chan *vigil)}
		l.watcher = w
		go w.run()
	}
	w.taken++
	l.mu.Unlock()
	select {
	case w.added <- v:
	case <-l.done.Done():
	}
}

// unwatched is what it means that a watch was refused. What cannot pass ends the waits for the node. A
// server that is busy is not asked again at once.
func (l *Locker) unwatched(v *vigil, err error) {
	gone := errors.Is(err, zk.ErrNoNode)
	switch class := classify(err); {
	case gone:
	case class == storekit.Final:
		l.mu.Lock()
		for _, c := range l.behind[v.at] {
			c.refused = err
		}
		l.mu.Unlock()
	case class == storekit.Busy:
		_ = storekit.Sleep(l.done, rearm)
	}
	l.over(v, gone)
}

// over is what the end of a watch means: the node is gone, or that is not known any more.
func (l *Locker) over(v *vigil, gone bool) {
	l.mu.Lock()
	c := l.places[v.at]
	if c != nil && l.path(c.key, c.node.name) != v.path {
		c = nil
	}
	again := !gone && c != nil && c.phase == held
	var lost snapshot
	if gone && c != nil {
		lost = l.snapshot(c)
	}
	ours := gone && c != nil && c.phase == releasing // its release tells who is next
	if !again {                                      // now, so that who looks from here on gets a watch of its own
		delete(l.watched, v.path)
	}
	l.mu.Unlock()
	if lost.claim != nil {
		l.lose(lost, l.howLost(lost))
	}
	if !ours {
		l.mu.Lock()
		l.wakeBehind(v.at)
		l.mu.Unlock()
	}
	if again {
		time.AfterFunc(rearm, func() { l.arm(v) })
	}
}

// watcher waits for the events of many watches, since zk.Conn has a channel for each, and a
// goroutine for each would cost 8 KB. It ends when it has had all that it takes, and those are over.
type watcher struct {
	l     *Locker
	added chan *vigil
	taken int // guarded by registry.mu
}

// maxVigils is how many watches a watcher takes: each event costs a look at all of them.
const maxVigils = 64

func (w *watcher) run() {
	receives := func(c any) reflect.SelectCase {
		return reflect.SelectCase{Dir: reflect.SelectRecv, Chan: reflect.ValueOf(c)}
	}
	cases := []reflect.SelectCase{receives(w.l.done.Done()), receives(w.added)}
	const fixed = 2
	var vigils []*vigil
	for had := 0; had < maxVigils || len(vigils) > 0; {
		i, v, _ := reflect.Select(cases)
		switch i {
		case 0:
			return
		case 1:
			had++
			added := v.Interface().(*vigil)
			vigils, cases = append(vigils, added), append(cases, receives(added.events))
		default:
			over := vigils[i-fixed]
			vigils, cases = slices.Delete(vigils, i-fixed, i-fixed+1), slices.Delete(cases, i, i+1)
			ev, _ := v.Interface().(zk.Event)
			gone := ev.Type == zk.EventNodeDeleted
			if gone {
				w.l.deaf.Store(false)
			}
			w.l.over(over, gone)
		}
	}
}

// watchSession tells the claims when their session has expired, or zk.Conn was closed. That ends
// all watches then, so one of its own serves. A conn that was closed between two watches says no
// more than that it is disconnected.
func (l *Locker) watchSession() {
	for closed := 0; l.done.Err() == nil; {
		_, _, events, err := l.conn.ExistsW(l.root)
		l.loseAllBut(l.conn.SessionID)
		if err != nil {
			if l.conn.State() != zk.StateDisconnected {
				closed = 0
			} else if closed++; closed == maxClosed {
				l.clientClosed()
			}
			_ = storekit.Sleep(l.done, rearm)
			continue
		}
		closed = 0
		select {
		case ev := <-events:
			if errors.Is(ev.Err, zk.ErrClosing) {
				l.clientClosed()
				return
			}
			l.loseAllBut(l.conn.SessionID)
		case <-l.done.Done():
		}
	}
}

// clientClosed ends the waits and grants of a Locker whose zk.Conn was closed: closing it ends the
// session, and another process may have the keys already.
func (l *Locker) clientClosed() {
	l.shutDown(errClientClosed)
	l.loseAllBut(func() int64 { return 0 })
}

// loseAllBut ends the grants of sessions other than that one, and makes those who wait in one look.
// It asks for the session under l.mu: no claim can have a newer one then.
func (l *Locker) loseAllBut(session func() int64) {
	var stale []snapshot
	l.mu.Lock()
	living := session()
	for _, c := range l.claims {
		if c.session != 0 && c.session != living {
			stale = append(stale, l.snapshot(c))
		}
	}
	l.mu.Unlock()
	for _, c := range stale {
		l.lose(c, lock.ReasonExpired)
		c.box.Wake()
	}
}
