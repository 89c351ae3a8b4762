package dynamo

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/seed-215fdefa/lock"
)

// lines has the waiters of this Locker, key by key in order of arrival. The first of a key
// looks at the table for all of them.
type lines struct {
	mu    sync.Mutex // guards the rest, and the lines in it
	of    map[string]*line
	turns map[string]turn
}

type line struct {
	places []*place
	last   lock.Record // what the first has seen last
	since  time.Time   // when it began, or had the lock last
	passed bool        // the lock was handed on past it since then
}

// place is one waiter's.
type place struct {
	first chan struct{}   // closed when it is the first
	wake  chan lock.Token // a hint: that grant was released here; 0: some grant was
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
		ln = &line{last: lock.Record{Key: key}, since: time.Now()}
		ls.of[key] = ln
	}
	p = &place{first: make(chan struct{}), wake: make(chan lock.Token, 1)}
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
	if granted {
		ls.begin(key, ln)
		ln.last, ln.since, ln.passed = lock.Record{Key: key}, time.Now(), false
	}
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
}

// saw notes what the first has seen. It tells whether the lock was handed on past this line
// since the look before, and how long the line has waited for its turn.
func (ls *lines) saw(key string, rec lock.Record) (passed bool, waited time.Duration) {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	ln := ls.of[key]
	passed = ln.last.Token != 0 && ln.last.Token != rec.Token
	if passed {
		ls.broken(key, ln)
	}
	ln.last, ln.passed = rec, ln.passed || passed
	return passed, time.Since(ln.since)
}

// known is what has been seen last of a key that is waited for.
func (ls *lines) known(key string) lock.Record {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	return ls.of[key].last
}

// released hints that a lock was released here. The first who waits for it looks at once.
// token is that of an exclusive grant, or 0.
func (ls *lines) released(key string, token lock.Token) {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	ln := ls.of[key]
	if ln == nil {
		return
	}
	wake := ln.places[0].wake
	select {
	case <-wake: // an older hint
	default:
	}
	wake <- token
}

// wait stands in this Locker's line, and then polls until the lock is granted, or ctx or
// the Locker ends. Polling is by reads: a write is sent first, if nobody was in line, and
// when the lock seems to be free.
func (a *acquisition) wait(ctx context.Context) (g lock.Grant, err error) {
	p, known := a.l.lines.enter(a.req.Key)
	defer func() { a.l.lines.leave(a.req.Key, p, err == nil) }()
	select {
	case <-p.first:
	default:
		a.begin(known)
		select {
		case <-p.first:
		case <-ctx.Done():
			return g, a.ended(ctx)
		case <-a.l.done:
			return g, lock.ErrClosed
		}
	}
	return a.poll(ctx, p)
}

// begin tells once that the wait has begun.
func (a *acquisition) begin(rec lock.Record) {
	if !a.begun && a.req.Waiting != nil {
		a.req.Waiting(rec)
	}
	a.begun = true
}

// poll looks again and again. Each look verifies by a write of its own, for which Start is
// taken, so a hint is only that.
func (a *acquisition) poll(ctx context.Context, p *place) (lock.Grant, error) {
	look := a.begun
	for n := 0; ; n++ {
		if err := a.rest(ctx, p); err != nil {
			return lock.Grant{}, err
		}
		g, err := a.try(ctx, look)
		switch {
		case ctx.Err() != nil && err != nil:
			return g, a.ended(ctx)
		case err == nil || !errors.Is(err, lock.ErrHeld):
			return g, err
		}
		var ahead time.Duration
		n, ahead = a.missed(ctx, n)
		woken, err := a.idle(ctx, p, a.pause(n, ahead))
		if err != nil {
			return g, err
		}
		if look = !woken; woken {
			n = -1
		}
	}
}

// missed notes who holds the lock, and asks for what this waiter may ask for. It returns how
// much the next pause is to have grown; and how long it is at least if others, who have
// waited for longer, come first.
func (a *acquisition) missed(ctx context.Context, n int) (grown int, ahead time.Duration) {
	passed, waited := a.l.lines.saw(a.req.Key, a.last)
	a.begin(a.last)
	a.announce(ctx)
	switch {
	case !passed:
		return n, 0
	case a.usual > 0: // who holds it knows that others wait
		return 0, min(a.usual*3/4-waited, a.l.maxPoll)
	case waited > keepTurn:
		a.ask(ctx)
	}
	return max(0, 2-int(2*waited/a.l.maxPoll)), 0
}

// idle pauses, unless a hint or the end of ctx or of the Locker comes first.
func (a *acquisition) idle(ctx context.Context, p *place, d time.Duration) (woken bool, err error) {
	t := time.NewTimer(d)
	defer t.Stop()
	for {
		select {
		case <-t.C:
			return false, nil
		case token := <-p.wake:
			if token == 0 || token >= a.last.Token { // else another has had the lock since
				return true, nil
			}
		case <-ctx.Done():
			return false, a.ended(ctx)
		case <-a.l.done:
			return false, lock.ErrClosed
		}
	}
}

// ended is the error of a wait that ctx ended: ErrHeld too if the lock was seen held.
func (a *acquisition) ended(ctx context.Context) error {
	if !a.begun {
		return ctx.Err()
	}
	err := ctx.Err()
	if a.why != nil {
		err = fmt.Errorf("%w: %w", err, a.why)
	}
	return &lock.HeldError{Record: a.l.lines.known(a.req.Key), Err: err}
}

// pause grows from minPoll to maxPoll, with jitter, and is no less than least; but it ends
// when a holder's lease does.
func (a *acquisition) pause(n int, least time.Duration) time.Duration {
	l := a.l
	jitter := min(l.minPoll<<min(n, 16), l.maxPoll-l.minPoll)
	pause := l.minPoll
	if jitter > 0 {
		pause += rand.N(jitter)
	}
	pause = max(pause, least)
	if end := a.frees + time.Millisecond; len(a.last.Holders) > 0 && end < pause {
		pause = end + rand.N(l.minPoll)
	}
	return pause
}
