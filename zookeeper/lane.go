package zookeeper

import (
	"context"
	"runtime"
	"slices"
	"sync"
	"time"

	"github.com/go-zookeeper/zk"
)

// A lane lets concurrent writes of one Locker share transactions. A write that finds room
// is sent at once; those that come while maxFlights are under way are sent together when
// one of them is back: one request, one transaction in the log, one round trip.
//
// Who joins a line in which others of this Locker stand is in no hurry: it is sent with the
// release that is about to come, which would else wait behind it.
//
// It is also how a call is given up when its ctx ends, which zk.Conn's cannot: what was
// not sent is taken back, and what was sent is passed to the unit's late when it is done.
type lane struct {
	conn *zk.Conn

	mu      sync.Mutex // guards the rest, and the units' fields that say so; held for no I/O
	queue   []*unit
	flights int
	timer   *time.Timer // starts a flight for those that have been patient
}

const (
	maxFlights = 1 // two share the log's disk, and a hand-over waits behind a newcomer's write
	yields     = 8 // what a caller does between two writes takes some switches of goroutines
	patient    = 500 * time.Microsecond
	maxBatch   = 64
	maxBytes   = 256 << 10 // of the units' sizes in one request; the server takes 1 MiB in all
)

// unit is operations that take effect together or not at all.
type unit struct {
	ops  []any
	key  string      // of the node that it creates, if it does: two in one transaction had one czxid
	size int         // of its data, and of what else may be large
	slow bool        // it may wait for another to go with, as long as patient
	late func(*unit) // if not nil, is called when it is done and nobody waits for it

	done    chan struct{} // closed when it is done; then the next five may be read
	replies []zk.MultiResponse
	failed  int // which of ops was refused with err; -1 if the outcome is unknown, or all are done
	err     error
	start   time.Time // before it was sent
	session int64     // in which it was sent; 0 = unknown

	since time.Time // when it came; guarded by lane.mu, like the next two
	sent  bool      // stays as it is once do has returned
	alone bool      // nobody waits for it
}

// do sends u and waits for it or for ctx, whichever comes first.
func (l *lane) do(ctx context.Context, u *unit) error {
	l.submit(u, false)
	select {
	case <-u.done:
		return u.err
	case <-ctx.Done():
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	select {
	case <-u.done:
		return u.err
	default:
	}
	u.alone = true
	if !u.sent {
		l.queue = slices.DeleteFunc(l.queue, func(q *unit) bool { return q == u })
	}
	return ctx.Err()
}

// post sends u for nobody in particular.
func (l *lane) post(u *unit) { l.submit(u, true) }

func (l *lane) submit(u *unit, alone bool) {
	u.done, u.alone, u.failed = make(chan struct{}), alone, -1
	l.mu.Lock()
	defer l.mu.Unlock()
	l.queue = append(l.queue, u)
	if u.slow {
		u.since = time.Now()
	}
	l.start()
}

// start starts a flight if there is room, and something to send now. l.mu is held.
func (l *lane) start() {
	switch {
	case len(l.queue) == 0 || l.flights == maxFlights:
	case !l.allSlow():
		l.flights++
		go l.fly()
	case l.timer == nil:
		l.timer = time.AfterFunc(patient, func() {
			l.mu.Lock()
			defer l.mu.Unlock()
			l.start()
		})
	default:
		l.timer.Reset(patient)
	}
}

// allSlow reports whether all that is queued may wait for something to go with.
func (l *lane) allSlow() bool {
	for _, u := range l.queue {
		if !u.slow || time.Since(u.since) >= patient {
			return false
		}
	}
	return true
}

// fly sends what has gathered until nothing has.
func (l *lane) fly() {
	for batch := l.take(); len(batch) > 0; batch = l.take() {
		l.send(batch)
		for range yields {
			// Let the callers run first: most of them come back with their next write,
			// which then shares the next request instead of trailing behind it.
			runtime.Gosched()
		}
	}
}

// take returns the next batch; when there is none the flight has ended.
func (l *lane) take() []*unit {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.allSlow() {
		l.flights--
		l.start()
		return nil
	}
	var batch []*unit
	size := 0
	rest := l.queue[:0]
	for _, u := range l.queue {
		full := len(batch) == maxBatch || len(batch) > 0 && size+u.size > maxBytes
		if full || u.key != "" && slices.ContainsFunc(batch, func(b *unit) bool { return b.key == u.key }) {
			rest = append(rest, u)
			continue
		}
		u.sent = true
		size += u.size
		batch = append(batch, u)
	}
	clear(l.queue[len(rest):])
	l.queue = rest
	return batch
}

// send gives every unit of the batch its outcome. One that the server refuses makes the
// whole transaction fail: it is taken out, and the others are sent again. If another is
// refused then, each of those left goes by itself.
func (l *lane) send(batch []*unit) {
	for again := range 2 {
		i := l.transact(batch)
		if i < 0 {
			return
		}
		batch = slices.Delete(batch, i, i+1)
		if len(batch) == 0 {
			return
		}
		if again == 1 {
			var wg sync.WaitGroup
			for _, u := range batch {
				wg.Go(func() { l.transact([]*unit{u}) })
			}
			wg.Wait()
		}
	}
}

// transact sends one transaction. When it was done, or its outcome is unknown, all units are
// finished, and it returns -1; else it returns the one that was refused, which is.
func (l *lane) transact(batch []*unit) (refused int) {
	var ops []any
	for _, u := range batch {
		ops = append(ops, u.ops...)
	}
	start, session := time.Now(), l.conn.SessionID()
	replies, err := l.conn.Multi(ops...)
	err = broken(err)
	if l.conn.SessionID() != session {
		session = 0 // it went out in either of the two
	}
	if culprit := slices.IndexFunc(replies, func(r zk.MultiResponse) bool { return r.Error != nil }); culprit >= 0 {
		at, i := culprit, 0
		for at >= len(batch[i].ops) {
			at -= len(batch[i].ops)
			i++
		}
		u := batch[i]
		u.failed, u.err, u.start, u.session = at, replies[culprit].Error, start, session
		l.finish(u)
		return i
	}
	if err == nil && len(replies) != len(ops) {
		err = errReply
	}
	for _, u := range batch {
		u.err, u.start, u.session = err, start, session
		if err == nil {
			u.replies, replies = replies[:len(u.ops)], replies[len(u.ops):]
		}
		l.finish(u)
	}
	return -1
}

func (l *lane) finish(u *unit) {
	l.mu.Lock()
	alone := u.alone
	close(u.done)
	l.mu.Unlock()
	if alone && u.late != nil {
		u.late(u)
	}
}
