package dynamo

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/seed-215fdefa/lock"
)

// keepTurn is how long the waiters of one Locker hand a lock on among themselves at once.
// Then the first of them polls like those of others, who would never find the lock free
// otherwise.
const keepTurn = time.Second

// lines has the waiters of this Locker, key by key in order of arrival. The first of a key
// looks at the table for all of them. The lines of several Lockers have no order.
type lines struct {
	mu sync.Mutex // guards of, and the lines in it
	of map[string]*line
}

type line struct {
	places []*place
	last   lock.Record // what the first has seen last
	turn   time.Time   // when the lock began to be handed on within this Locker
}

// place is one waiter's.
type place struct {
	first chan struct{} // closed when it is the first
	wake  chan struct{} // a hint: the lock was released here
}

// enter returns a place at the end of key's line, and what is known of the lock.
func (ls *lines) enter(key string) (p *place, last lock.Record) {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	if ls.of == nil {
		ls.of = make(map[string]*line)
	}
	ln := ls.of[key]
	if ln == nil {
		ln = &line{last: lock.Record{Key: key}}
		ls.of[key] = ln
	}
	p = &place{first: make(chan struct{}), wake: make(chan struct{}, 1)}
	ln.places = append(ln.places, p)
	if len(ln.places) == 1 {
		close(p.first)
	}
	return p, ln.last
}

// leave gives a place up. Who is next becomes the first.
func (ls *lines) leave(key string, p *place, granted bool) {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	ln := ls.of[key]
	for i, q := range ln.places {
		if q != p {
			continue
		}
		ln.places = append(ln.places[:i], ln.places[i+1:]...)
		if len(ln.places) == 0 {
			delete(ls.of, key)
			return
		}
		if i == 0 {
			close(ln.places[0].first)
		}
	}
	if granted {
		ln.last = lock.Record{Key: key}
	}
}

// saw notes what the first has seen.
func (ls *lines) saw(key string, rec lock.Record) {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	if ln := ls.of[key]; ln != nil {
		ln.last = rec
	}
}

// known is what has been seen last of a key that is waited for.
func (ls *lines) known(key string) lock.Record {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	return ls.of[key].last
}

// released hints that a lock was released here. The first who waits for it looks at once,
// unless this Locker has had it for long enough.
func (ls *lines) released(key string) {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	ln := ls.of[key]
	if ln == nil {
		return
	}
	now := time.Now()
	if ln.turn.IsZero() {
		ln.turn = now
	}
	if now.Sub(ln.turn) > keepTurn {
		ln.turn = time.Time{}
		return
	}
	select {
	case ln.places[0].wake <- struct{}{}:
	default:
	}
}

// wait stands in this Locker's line, and then polls until the lock is granted, or ctx or
// the Locker ends. Polling is by reads: a write is sent first, if nobody was in line, and
// when the lock seems to be free.
func (a *acquisition) wait(ctx context.Context) (g lock.Grant, err error) {
	p, known := a.l.lines.enter(a.req.Key)
	defer func() { a.l.lines.leave(a.req.Key, p, err == nil) }()
	begun := false
	select {
	case <-p.first:
	default:
		begun = true
		a.begin(known)
		select {
		case <-p.first:
		case <-ctx.Done():
			return g, &lock.HeldError{Record: a.l.lines.known(a.req.Key), Err: ctx.Err()}
		case <-a.l.done:
			return g, lock.ErrClosed
		}
	}
	return a.poll(ctx, p, begun)
}

func (a *acquisition) begin(rec lock.Record) {
	if a.req.Waiting != nil {
		a.req.Waiting(rec)
	}
}

// poll looks again and again. Each look verifies by a write of its own, for which Start is
// taken, so a hint is only that.
func (a *acquisition) poll(ctx context.Context, p *place, begun bool) (lock.Grant, error) {
	look := begun
	for n := 0; ; n++ {
		g, err := a.try(ctx, look)
		switch {
		case ctx.Err() != nil && err != nil:
			return g, a.ended(ctx, begun)
		case err == nil || !errors.Is(err, lock.ErrHeld):
			return g, err
		}
		a.l.lines.saw(a.req.Key, a.last)
		if !begun {
			begun = true
			a.begin(a.last)
		}
		a.announce(ctx)
		look = true
		t := time.NewTimer(a.pause(n))
		select {
		case <-t.C:
		case <-p.wake:
			look, n = false, -1
		case <-ctx.Done():
			t.Stop()
			return g, a.ended(ctx, begun)
		case <-a.l.done:
			t.Stop()
			return g, lock.ErrClosed
		}
		t.Stop()
	}
}

// ended is the error of a wait that ctx ended: ErrHeld too if the lock was seen held.
func (a *acquisition) ended(ctx context.Context, begun bool) error {
	if !begun {
		return ctx.Err()
	}
	return &lock.HeldError{Record: a.l.lines.known(a.req.Key), Err: ctx.Err()}
}

// pause grows from minPoll to maxPoll, with jitter, but ends when a holder's lease does.
func (a *acquisition) pause(n int) time.Duration {
	l := a.l
	jitter := min(l.minPoll<<min(n, 16), l.maxPoll-l.minPoll)
	pause := l.minPoll
	if jitter > 0 {
		pause += rand.N(jitter)
	}
	for _, h := range a.last.Holders {
		if end := max(h.ExpiresIn, 0) + time.Millisecond; end < pause {
			pause = end + rand.N(l.minPoll)
		}
	}
	return pause
}
