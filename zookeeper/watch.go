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
// watch of ZooKeeper cannot be taken back, so whoever watches the key next uses it, on the
// connection on which it was asked for. Of what the client makes of it on the next one nobody knows
// what it misses.
type armed struct {
	mu      sync.Mutex // guards the rest
	watches map[string]armedWatch
	many    int // of them: then those that have fired while nobody waited, or are of no use, are dropped
}

type armedWatch struct {
	events     <-chan zk.Event
	connection int64 // how many there had been when it was asked for
}

// connectedEvery is how often a Watch looks whether there is a connection, without I/O.
const connectedEvery = time.Second

// Watch implements [lock.Watcher], with a ZooKeeper watch on the container of key, or on its
// creation. When Watch returns, one such watch for the key stays behind, and one more for each
// connection on which it is watched again, until the key changes or the session ends.
func (l *Locker) Watch(ctx context.Context, key string, changed func()) error {
	if err := l.ready(ctx, lock.CheckKey(key)); err != nil {
		return err
	}
	path := l.parent(key)
	for {
		before := l.connections()
		events, err := l.arms(ctx, path, before)
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

// arms returns the events of a watch that sees the next change of path's children. It was asked for on
// the connection that there was when before was counted.
func (l *Locker) arms(ctx context.Context, path string, before int64) (<-chan zk.Event, error) {
	a := &l.armed
	if l.conn.State() != zk.StateHasSession {
		return nil, zk.ErrConnectionClosed
	}
	if events := a.of(path, before); events != nil {
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
	a.add(path, armedWatch{events, before})
	return events, nil
}

// of returns the events of the watch of path that was asked for on that connection, if there is one.
func (a *armed) of(path string, connection int64) <-chan zk.Event {
	a.mu.Lock()
	defer a.mu.Unlock()
	if w := a.watches[path]; w.connection == connection {
		return w.events
	}
	return nil
}

func (a *armed) add(path string, w armedWatch) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.watches == nil {
		a.watches = make(map[string]armedWatch)
	}
	if len(a.watches) >= a.many {
		maps.DeleteFunc(a.watches, func(_ string, o armedWatch) bool {
			return len(o.events) > 0 || o.connection != w.connection
		})
		a.many = 16 + 2*len(a.watches)
	}
	a.watches[path] = w
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
			l.armed.drop(path, events)
			return e.Err
		case <-look.C:
			if l.conn.State() != zk.StateHasSession || l.connections() != before {
				l.armed.drop(path, events)
				return zk.ErrConnectionClosed
			}
		case <-ctx.Done():
			return ctx.Err()
		case <-l.done.Done():
			return context.Cause(l.done)
		}
	}
}

// drop forgets a watch.
func (a *armed) drop(path string, events <-chan zk.Event) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.watches[path].events == events {
		delete(a.watches, path)
	}
}
