package etcd

import (
	"context"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/metadata"

	"github.com/seed-215fdefa/lock/internal/storekit"
)

const (
	// linger is how long the watch outlives the last who wanted it: the next comes soon.
	linger = time.Second
	// memory is how many deletions are remembered, for those who join later.
	memory = 1024
	// widenings is how often the watch is widened before it takes in all locks.
	widenings = 8
)

// rewatches are the pauses between two watches.
var rewatches = storekit.Backoff{Min: 50 * time.Millisecond, Max: 2 * time.Second}

// news is a Locker's one watch. It sees the deletions of all entries from the first to the last
// lock that somebody here waits for, or has held for some time.
type news struct {
	l    *Locker
	deaf atomic.Bool // a wake-up did not arrive

	mu        sync.Mutex             // guards the rest
	listeners map[string][]*listener // by the name of an entry
	from, end string                 // the range that is watched; "": none
	widened   int
	stop      context.CancelFunc // ends the watch; nil: there is none
	again     context.CancelFunc // begins it anew, with another range
	idle      *time.Timer
	streams   int // how many streams were thought to be silent

	next    int64            // revision at which it begins, or is to begin anew
	since   int64            // all deletions seen from this revision on are in deleted
	deleted map[string]int64 // name to revision
	order   []string         // of the names in deleted, oldest first
}

// listener wants to know of one deletion, at revision from or later: before that the name was
// another entry's, and the watch may be behind. tell is called with gone, and maybe before
// that without, when it must look for itself. It must not block.
type listener struct {
	from int64
	tell func(gone bool)
}

// recheck is how long a waiter goes without a look.
func (n *news) recheck(ttl time.Duration) time.Duration {
	if n.deaf.Load() {
		return storekit.Heartbeat(ttl) / 10
	}
	return storekit.Heartbeat(ttl) / 3
}

// unheard notes that a deletion was found which the watch should have told, and begins it anew,
// maybe by another member.
func (n *news) unheard() {
	if n.deaf.Swap(true) {
		return
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.again != nil {
		n.streams++
		n.again()
	}
}

// join has tell called when the entry called name is deleted at revision from or later, until
// leave is called. A call that is under way may come after that.
func (n *news) join(name string, from int64, tell func(gone bool)) (leave func()) {
	x := &listener{from, tell}
	n.mu.Lock()
	n.cover(name, from)
	n.listeners[name] = append(n.listeners[name], x)
	rev, gone := n.deleted[name]
	gone = gone && rev >= from
	missed := from < n.since
	n.mu.Unlock()
	if gone || missed {
		tell(gone)
	}
	return func() { n.leave(name, x) }
}

func (n *news) leave(name string, x *listener) {
	n.mu.Lock()
	defer n.mu.Unlock()
	xs := n.listeners[name]
	for i := range xs {
		if xs[i] == x {
			xs = append(xs[:i:i], xs[i+1:]...)
			break
		}
	}
	if n.listeners[name] = xs; len(xs) > 0 {
		return
	}
	if delete(n.listeners, name); len(n.listeners) > 0 || n.stop == nil {
		return
	}
	stop := n.stop
	n.idle = time.AfterFunc(linger, func() {
		n.mu.Lock()
		defer n.mu.Unlock()
		if len(n.listeners) == 0 && n.idle != nil {
			stop()
			n.stop, n.again, n.idle, n.from, n.end, n.widened = nil, nil, nil, "", "", 0
		}
	})
}

// cover has the watch see the lock that name is of, from revision from on.
func (n *news) cover(name string, from int64) {
	if n.idle != nil {
		n.idle.Stop()
		n.idle = nil
	}
	if n.stop != nil && name >= n.from && name < n.end {
		return
	}
	base := name[:strings.LastIndexByte(name, '/')+1]
	if n.stop == nil {
		n.from, n.end, n.next, n.since = base, rangeEnd(base), from, from
		n.deleted, n.order = make(map[string]int64), nil
		var ctx context.Context
		ctx, n.stop = context.WithCancel(n.l.ctx)
		n.l.spawn(func() { n.run(ctx) })
		return
	}
	n.from, n.end = min(n.from, base), max(n.end, rangeEnd(base))
	if n.widened++; n.widened > widenings {
		n.from, n.end = n.l.prefix, rangeEnd(n.l.prefix)
	}
	n.next, n.since = min(n.next, from), max(n.since, from)
	if n.again != nil {
		n.again()
	}
}

// gone is a deletion that the Locker knows of before the watch does.
func (n *news) gone(name string, rev int64) {
	n.mu.Lock()
	told := n.see(name, rev)
	n.mu.Unlock()
	for _, x := range told {
		x.tell(true)
	}
}

// see remembers a deletion and returns who is to be told.
func (n *news) see(name string, rev int64) (told []*listener) {
	if n.stop == nil || !isEntry(name) {
		return nil
	}
	if _, again := n.deleted[name]; !again {
		n.order = append(n.order, name)
	}
	n.deleted[name] = max(n.deleted[name], rev)
	if len(n.order) > memory {
		first := n.order[0]
		n.order = n.order[1:]
		n.since = max(n.since, n.deleted[first]+1)
		delete(n.deleted, first)
	}
	for _, x := range n.listeners[name] {
		if rev >= x.from {
			told = append(told, x)
		}
	}
	return told
}

// run watches until ctx ends. After a break (a compacted revision, a member without a leader)
// it begins anew at the present, and everybody must look for themselves.
func (n *news) run(ctx context.Context) {
	for failures := 0; ctx.Err() == nil; {
		wctx, cancel := context.WithCancel(clientv3.WithRequireLeader(ctx))
		if n.follow(wctx, cancel) {
			failures = 0
		}
		again := wctx.Err() != nil // its range has changed, or it was silent
		cancel()
		for caughtUp := again; !caughtUp; failures++ {
			if rewatches.Sleep(ctx, failures) != nil {
				return
			}
			caughtUp = n.catchUp(ctx) == nil
		}
	}
}

// follow tells of deletions until the watch breaks. It requires a leader: a member that is
// cut off from the others would keep silent.
func (n *news) follow(ctx context.Context, again context.CancelFunc) (heard bool) {
	n.mu.Lock()
	n.again = again
	from, end, next := n.from, n.end, n.next
	// Watches of one client with the same metadata share a stream, of which the member at the
	// other end may be silent.
	ctx = metadata.AppendToOutgoingContext(ctx, "lock-watch", strconv.Itoa(n.streams))
	if ctx.Err() != nil { // it was stopped in the meantime
		n.again = nil
	}
	n.mu.Unlock()
	events := n.l.cli.Watch(ctx, from, clientv3.WithRange(end), clientv3.WithRev(next), clientv3.WithFilterPut())
	for resp := range events {
		if resp.Err() != nil {
			return heard
		}
		heard = true
		n.deaf.Store(false)
		var told []*listener
		n.mu.Lock()
		if ctx.Err() != nil { // which is set under the mutex: another watch tells the rest
			n.mu.Unlock()
			return heard
		}
		n.next = max(n.next, resp.Header.Revision+1)
		for _, e := range resp.Events {
			told = append(told, n.see(string(e.Kv.Key), e.Kv.ModRevision)...)
		}
		n.mu.Unlock()
		for _, x := range told {
			x.tell(true)
		}
	}
	return heard
}

// catchUp lets the watch begin at the present.
func (n *news) catchUp(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	resp, err := n.l.cli.Get(ctx, n.l.prefix, clientv3.WithCountOnly())
	if err != nil {
		return err
	}
	var all []*listener
	n.mu.Lock()
	n.next = resp.Header.Revision + 1
	n.since, n.deleted, n.order = n.next, make(map[string]int64), nil
	for _, xs := range n.listeners {
		all = append(all, xs...)
	}
	n.mu.Unlock()
	for _, x := range all {
		x.tell(false)
	}
	return nil
}
