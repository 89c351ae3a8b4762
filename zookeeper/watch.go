package zookeeper

import (
	"context"
	"errors"
	"maps"
	"sync"
	"time"

	"github.com/go-zookeeper/zk"

	"github.com/seed-215fdefa/lock"
)

// armed has the watches of containers that were asked for and have not fired, by path. A
// watch of ZooKeeper cannot be taken back, so whoever watches the key next uses it.
type armed struct {
	mu     sync.Mutex // guards the rest
	events map[string]<-chan zk.Event
	many   int // of them: then those that have fired while nobody waited are dropped
}

// connectedEvery is how often a Watch looks whether there is a connection, without I/O.
const connectedEvery = time.Second

// Watch implements [lock.Watcher], with a ZooKeeper watch on the container of key, or on its
// creation. When Watch returns, one such watch for the key stays behind until the key changes or
// the session ends.
func (l *Locker) Watch(ctx context.Context, key string, changed func()) error {
	if err := l.ready(ctx, lock.CheckKey(key)); err != nil {
		return err
	}
	path := l.parent(key)
	for {
		before := l.connections()
		events, err := l.arms(ctx, path)
		if err == nil {
			changed()
			err = l.awaits(ctx, path, events, before)
		}
		if err != nil {
			return l.explain(key, err)
		}
	}
}

// connections is how many there have been, as far as is known.
func (l *Locker) connections() int64 {
	if l.dialer == nil {
		return 0
	}
	return l.dialer.made.Load()
}

// arms returns the events of a watch that sees the next change of path's children.
func (l *Locker) arms(ctx context.Context, path string) (<-chan zk.Event, error) {
	if l.conn.State() != zk.StateHasSession {
		return nil, zk.ErrConnectionClosed
	}
	a := &l.armed
	a.mu.Lock()
	events := a.events[path]
	a.mu.Unlock()
	if events != nil {
		return events, nil
	}
	events, err := call(ctx, func() (<-chan zk.Event, error) {
		for {
			_, _, events, err := l.conn.ChildrenW(path)
			if !errors.Is(err, zk.ErrNoNode) {
				return events, err
			}
			there, _, events, err := l.conn.ExistsW(path)
			if err != nil || !there {
				return events, err
			}
		}
	})
	if err != nil {
		return nil, err
	}
	a.add(path, events)
	return events, nil
}

func (a *armed) add(path string, events <-chan zk.Event) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.events == nil {
		a.events = make(map[string]<-chan zk.Event)
	}
	if len(a.events) >= a.many {
		maps.DeleteFunc(a.events, func(_ string, events <-chan zk.Event) bool { return len(events) > 0 })
		a.many = 16 + 2*len(a.events)
	}
	a.events[path] = events
}

// awaits returns nil when something has changed, and an error when that would not be told
// any more. The client renews its watches when it has a connection again, but until then
// nobody knows what it misses. Nor is that told later if a reply comes on the new connection
// before the client renews them. before is how many connections there had been.
func (l *Locker) awaits(ctx context.Context, path string, events <-chan zk.Event, before int64) error {
	look := time.NewTicker(connectedEvery)
	defer look.Stop()
	for {
		select {
		case e := <-events: // zero, once somebody else has had it
			l.armed.fired(path, events)
			return e.Err
		case <-look.C:
			if l.conn.State() != zk.StateHasSession || l.connections() != before {
				return zk.ErrConnectionClosed
			}
		case <-ctx.Done():
			return ctx.Err()
		case <-l.done.Done():
			return context.Cause(l.done)
		}
	}
}

// fired forgets a watch.
func (a *armed) fired(path string, events <-chan zk.Event) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.events[path] == events {
		delete(a.events, path)
	}
}
