package etcd

import (
	"context"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

const (
	// linger is how long a watch outlives the last one who wanted it: on a busy lock the
	// next one comes soon.
	linger = time.Second
	// memory is how many deletions a watch remembers, for those who join it later.
	memory = 256
)

// watches are a Locker's watches, one for each lock that somebody here waits for or has held
// for some time, all on one stream. They see deletions only.
type watches struct {
	l *Locker

	mu     sync.Mutex // guards byBase, and the fields of all watches
	byBase map[string]*watch
}

// watch is that of one lock.
type watch struct {
	base      string
	cancel    context.CancelFunc
	listeners map[string]map[*listener]struct{} // by the name of an entry
	idle      *time.Timer

	next    int64            // revision at which it begins, or is to begin anew
	since   int64            // all deletions seen from this revision on are in deleted
	deleted map[string]int64 // name to revision
	order   []string         // of the names in deleted, oldest first
}

// listener wants to know of one deletion, at revision from or later: before that the name was
// another entry's, and a stream may be behind. tell is called once with gone, and maybe before
// that without, when it must look for itself. It must not block.
type listener struct {
	from int64
	tell func(gone bool)
}

// join has tell called when the entry called name is deleted at revision from or later, until
// leave is called. A call that is under way may come after that.
func (ws *watches) join(base, name string, from int64, tell func(gone bool)) (leave func()) {
	ws.mu.Lock()
	w := ws.byBase[base]
	if w == nil {
		w = ws.open(base, from)
	}
	if w.idle != nil {
		w.idle.Stop()
		w.idle = nil
	}
	x := &listener{from, tell}
	if w.listeners[name] == nil {
		w.listeners[name] = make(map[*listener]struct{}, 1)
	}
	w.listeners[name][x] = struct{}{}
	rev, gone := w.deleted[name]
	gone = gone && rev >= from
	missed := from < w.since
	ws.mu.Unlock()
	if gone || missed {
		tell(gone)
	}
	return func() { ws.leave(w, name, x) }
}

func (ws *watches) leave(w *watch, name string, x *listener) {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	xs := w.listeners[name]
	delete(xs, x)
	if len(xs) == 0 {
		delete(w.listeners, name)
	}
	if len(w.listeners) > 0 || w.idle != nil || ws.byBase[w.base] != w {
		return
	}
	w.idle = time.AfterFunc(linger, func() {
		ws.mu.Lock()
		defer ws.mu.Unlock()
		if len(w.listeners) == 0 && ws.byBase[w.base] == w {
			delete(ws.byBase, w.base)
			w.cancel()
		}
	})
}

// open begins a watch at revision from.
func (ws *watches) open(base string, from int64) *watch {
	ctx, cancel := context.WithCancel(ws.l.ctx)
	w := &watch{
		base: base, cancel: cancel, listeners: make(map[string]map[*listener]struct{}),
		next: from, since: from, deleted: make(map[string]int64),
	}
	if ws.byBase == nil {
		ws.byBase = make(map[string]*watch)
	}
	ws.byBase[base] = w
	ws.l.spawn(func() { ws.run(ctx, w) })
	return w
}

// gone is a deletion that the Locker knows of before the watch does.
func (ws *watches) gone(base, name string, rev int64) {
	ws.mu.Lock()
	w := ws.byBase[base]
	var told []*listener
	if w != nil {
		told = w.see(name, rev)
	}
	ws.mu.Unlock()
	for _, x := range told {
		x.tell(true)
	}
}

// see remembers a deletion and returns who is to be told.
func (w *watch) see(name string, rev int64) (told []*listener) {
	if _, again := w.deleted[name]; !again {
		w.order = append(w.order, name)
	}
	w.deleted[name] = max(w.deleted[name], rev)
	if len(w.order) > memory {
		first := w.order[0]
		w.order = w.order[1:]
		w.since = max(w.since, w.deleted[first]+1)
		delete(w.deleted, first)
	}
	for x := range w.listeners[name] {
		if rev >= x.from {
			told = append(told, x)
		}
	}
	return told
}

// run watches until ctx ends. After a break (a compacted revision, a member without a leader)
// it begins anew at the present, and everybody must look for themselves.
func (ws *watches) run(ctx context.Context, w *watch) {
	const least, most = 50 * time.Millisecond, 2 * time.Second
	pause := least
	for {
		ws.follow(ctx, w, func() { pause = least })
		for caughtUp := false; !caughtUp; pause = min(2*pause, most) {
			select {
			case <-time.After(pause):
			case <-ctx.Done():
				return
			}
			caughtUp = ws.catchUp(ctx, w) == nil
		}
	}
}

// follow tells of deletions until the watch breaks. It requires a leader: a member that is
// cut off from the others would keep silent.
func (ws *watches) follow(ctx context.Context, w *watch, healthy func()) {
	ctx, cancel := context.WithCancel(clientv3.WithRequireLeader(ctx))
	defer cancel()
	ws.mu.Lock()
	next := w.next
	ws.mu.Unlock()
	events := ws.l.cli.Watch(ctx, w.base,
		clientv3.WithRange(rangeEnd(w.base)), clientv3.WithRev(next), clientv3.WithFilterPut())
	for resp := range events {
		if resp.Err() != nil {
			return
		}
		healthy()
		var told []*listener
		ws.mu.Lock()
		for _, e := range resp.Events {
			told = append(told, w.see(string(e.Kv.Key), e.Kv.ModRevision)...)
		}
		ws.mu.Unlock()
		for _, x := range told {
			x.tell(true)
		}
	}
}

// catchUp lets the watch begin at the present.
func (ws *watches) catchUp(ctx context.Context, w *watch) error {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	resp, err := ws.l.cli.Get(ctx, w.base, clientv3.WithCountOnly())
	if err != nil {
		return err
	}
	var all []*listener
	ws.mu.Lock()
	w.next = resp.Header.Revision + 1
	w.since, w.deleted, w.order = w.next, make(map[string]int64), nil
	for _, xs := range w.listeners {
		for x := range xs {
			all = append(all, x)
		}
	}
	ws.mu.Unlock()
	for _, x := range all {
		x.tell(false)
	}
	return nil
}
