package etcd

import (
	"context"
	"strconv"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/metadata"

	"github.com/seed-215fdefa/lock/internal/storekit"
)

// linger is how long the watch outlives the last who wanted it: the next comes soon.
const linger = time.Second

// rewatches are the pauses between two watches.
var rewatches = storekit.Backoff{Min: 50 * time.Millisecond, Max: 2 * time.Second}

// watch is a Locker's one watch. It sees the deletions of all entries from the first to the last
// lock that somebody here waits for, or has held for some time. The Locker's mutex guards it.
type watch struct {
	from, end string             // the range
	since     int64              // all deletions in it are seen from this revision on
	next      int64              // the revision from which it has yet to tell them
	stop      context.CancelFunc // ends it; nil: there is none
	again     context.CancelFunc // begins it anew, with another range; nil: it has not begun
	wanted    time.Time          // when somebody last wanted it
	deaf      bool               // a wake-up did not arrive
	streams   int                // how many streams were thought to be silent
}

// recheck is how long a waiter goes without looking at its place.
func (l *Locker) recheck(ttl time.Duration) time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	return storekit.Recheck(ttl, l.watch.deaf)
}

// unheard notes that a deletion was found which the watch should have told, and begins it anew,
// maybe by another member.
func (l *Locker) unheard() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if w := &l.watch; !w.deaf && w.again != nil {
		w.deaf = true
		w.streams++
		w.again()
	}
}

// cover has the watch see the lock of base, and reports whether it may have missed a deletion
// of revision from or later.
func (l *Locker) cover(base string, from int64) (missed bool) {
	w := &l.watch
	w.wanted = time.Now()
	switch {
	case w.stop == nil:
		*w = watch{from: base, end: rangeEnd(base), since: from, next: from, wanted: w.wanted}
		var ctx context.Context
		ctx, w.stop = context.WithCancel(l.ctx)
		l.spawn(func() { l.watching(ctx) })
	case base < w.from || rangeEnd(base) > w.end:
		w.from, w.end = min(w.from, base), max(w.end, rangeEnd(base))
		w.since, w.next = max(w.since, from), min(w.next, from)
		if w.again != nil {
			w.again()
		}
	}
	return from < w.since
}

// unwatch ends the watch if nobody has wanted it for a while.
func (l *Locker) unwatch() {
	if w := &l.watch; w.stop != nil && time.Since(w.wanted) > linger {
		w.stop()
		*w = watch{}
	}
}

// deleted tells those whom it concerns that the entry called name has been deleted at revision
// rev, and returns what is to be called without the mutex.
func (l *Locker) deleted(name string, rev int64) (calls []func()) {
	if h := l.byName[name]; h != nil && rev > h.rev {
		h.gone = max(h.gone, rev)
		switch {
		case h.waiter != nil:
			h.waiter.box.Wake()
		case h.g.Token != 0 && !h.over:
			calls = append(calls, h.lose(h.reason()))
		}
	}
	for _, a := range l.behind[name] {
		if rev >= a.since { // not of an earlier entry of that name
			a.box.Wake()
		}
	}
	return calls
}

// watching watches until ctx ends. After a break (a compacted revision, a member without a
// leader) it begins anew at the present, and everybody must look for themselves.
func (l *Locker) watching(ctx context.Context) {
	for failures := 0; ctx.Err() == nil; {
		wctx, cancel := context.WithCancel(clientv3.WithRequireLeader(ctx))
		if l.follow(wctx, cancel) {
			failures = 0
		}
		caughtUp := wctx.Err() != nil // its range has changed, or it was silent
		for cancel(); !caughtUp; failures++ {
			if rewatches.Sleep(ctx, failures) != nil {
				return
			}
			caughtUp = l.catchUp(ctx)
		}
	}
}

// follow tells of deletions until the watch breaks. It requires a leader: a member that is
// cut off from the others would keep silent.
func (l *Locker) follow(ctx context.Context, again context.CancelFunc) (heard bool) {
	l.mu.Lock()
	if ctx.Err() != nil { // which is set under the mutex
		l.mu.Unlock()
		return false
	}
	l.watch.again = again
	w := l.watch
	l.mu.Unlock()
	// Watches of one client with the same metadata share a stream, of which the member at the
	// other end may be silent.
	ctx = metadata.AppendToOutgoingContext(ctx, "lock-watch", strconv.Itoa(w.streams))
	for resp := range l.cli.Watch(ctx, w.from, clientv3.WithRange(w.end), clientv3.WithRev(w.next), clientv3.WithFilterPut()) {
		if resp.Err() != nil {
			return heard
		}
		heard = true
		var calls []func()
		l.mu.Lock()
		if ctx.Err() == nil { // else another watch tells it
			l.watch.deaf = false
			for _, e := range resp.Events { // the header may be ahead of them: there are more to come
				l.watch.next = max(l.watch.next, e.Kv.ModRevision+1)
				calls = append(calls, l.deleted(string(e.Kv.Key), e.Kv.ModRevision)...)
			}
		}
		l.mu.Unlock()
		for _, f := range calls {
			f()
		}
	}
	return heard
}

// catchUp lets the watch begin at the present.
func (l *Locker) catchUp(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	resp, err := l.cli.Get(ctx, l.prefix, clientv3.WithCountOnly())
	l.mu.Lock()
	defer l.mu.Unlock()
	if err != nil || ctx.Err() != nil {
		return false
	}
	l.watch.next = resp.Header.Revision + 1
	l.watch.since = l.watch.next
	for _, h := range l.byName {
		h.watched = false // the next tick looks
		if h.waiter != nil {
			h.waiter.box.Wake()
		}
	}
	return true
}
