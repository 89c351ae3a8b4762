package dynamo

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/internal/storekit"
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
	last   lock.Record // what the table has shown last; without a Key if it has not answered yet
	err    error       // of the last request, if that has failed and may pass
	since  time.Time   // when it began, or had the lock last
	passed bool        // the lock was handed on past it since then
}

// place is one waiter's.
type place struct {
	box   *storekit.Mailbox // wakes it when it becomes the first, and for a hint
	hint  bool              // a grant was released here since it looked, or is its own
	doubt string            // its owner, if the outcome of a write of it is unknown
}

// enter returns a place at the end of key's line.
func (ls *lines) enter(key string) *place {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	if ls.of == nil {
		ls.of = make(map[string]*line)
	}
	ln := ls.of[key]
	if ln == nil {
		ln = &line{since: time.Now()}
		ls.of[key] = ln
	}
	p := &place{box: storekit.NewMailbox()}
	ln.places = append(ln.places, p)
	return p
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
	i := slices.Index(ln.places, p)
	ln.places = slices.Delete(ln.places, i, i+1)
	switch {
	case len(ln.places) == 0:
		delete(ls.of, key)
	case i == 0:
		ln.places[0].box.Wake()
	}
}

// saw notes what the first has seen. It tells whether the lock was handed on past this line
// since the look before, which ends its turn, and how long it has waited for the next.
func (ls *lines) saw(key string, rec lock.Record) (passed bool, waited time.Duration) {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	ln := ls.of[key]
	passed = ln.last.Token != 0 && ln.last.Token != rec.Token
	if passed {
		delete(ls.turns, key)
	}
	ln.last, ln.passed = rec, ln.passed || passed
	return passed, time.Since(ln.since)
}

// known is what has been seen last of a key that is waited for, without a Key if nothing was, or
// why it could not be seen.
func (ls *lines) known(key string) (lock.Record, error) {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	return ls.of[key].last, ls.of[key].err
}

// asked notes how a request of this line ended. When trouble begins all are told.
func (ls *lines) asked(key string, err error) {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	ln := ls.of[key]
	calm := ln.err == nil
	if ln.err = nil; err != nil && classify(err).Passing() {
		ln.err = err
	}
	if calm && ln.err != nil {
		for _, p := range ln.places[1:] {
			p.box.Wake()
		}
	}
}

// released hints that a lock was released here. The first who waits for it looks at once.
func (ls *lines) released(key string) {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	if ln := ls.of[key]; ln != nil {
		ln.places[0].hint = true
		ln.places[0].box.Wake()
	}
}

// first tells whether p is the first of its line, and whether there is a hint for it, which it
// takes.
func (ls *lines) first(key string, p *place) (first, hint bool) {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	hint, p.hint = p.hint, false
	return ls.of[key].places[0] == p, hint
}

// inDoubt notes that a write of owner, who has place p, is of unknown outcome and may come late.
func (ls *lines) inDoubt(p *place, owner string) {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	p.doubt = owner
}

// wakeHolders has those behind the first look whom it has seen among the holders: a write that they had
// given up came late. Otherwise they sleep until they are the first, and their grant blocks the line.
func (ls *lines) wakeHolders(key string, holders []lock.Holder) {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	for _, p := range ls.of[key].places[1:] {
		if p.doubt != "" && slices.ContainsFunc(holders, func(h lock.Holder) bool { return h.Owner == p.doubt }) {
			p.hint = true
			p.box.Wake()
		}
	}
}

// wait stands in this Locker's line, and then polls until the lock is granted, or ctx or
// the Locker ends. Each look that finds the lock free verifies by a write of its own, for which
// Start is taken, so a hint is only that.
func (a *acquisition) wait(ctx context.Context, begun time.Time) (g lock.Grant, err error) {
	a.place = a.l.lines.enter(a.req.Key)
	defer func() { a.l.lines.leave(a.req.Key, a.place, err == nil) }()
	w := storekit.Wait{
		Request: a.req, Mailbox: a.place.box, Closed: a.l.closing, Begun: begun, Classify: classify, Claim: a.claim,
		Recheck: func(time.Duration) time.Duration { return lock.MaxTTL }, // each refusal says when
	}
	g, err = w.Run(ctx)
	var held *lock.HeldError
	if errors.As(err, &held) {
		if rec, _ := a.l.lines.known(a.req.Key); rec.Key != "" {
			held.Record = rec
		}
		if a.why != nil {
			held.Err = fmt.Errorf("%w: %w", held.Err, a.why)
		}
	}
	return g, err
}

// claim looks once, unless the first in line does so for this waiter: by a write if nobody was in
// line before, or for a hint, and else by a read, which costs less, and a write when the lock seems
// to be free.
func (a *acquisition) claim(ctx context.Context, _ bool) (lock.Grant, *storekit.Refusal, error) {
	first, hint := a.l.lines.first(a.req.Key, a.place)
	for {
		if no, err := a.told(first || hint); no != nil || err != nil {
			return lock.Grant{}, no, err
		}
		left := a.rest(ctx, first)
		if left <= 0 {
			break
		}
		if err := a.l.sleep(ctx, left); err != nil {
			return lock.Grant{}, nil, err
		}
		var again bool // since it began to rest
		first, again = a.l.lines.first(a.req.Key, a.place)
		hint = hint || again
	}
	g, err := a.try(ctx, a.begun && !hint)
	if err == nil || ctx.Err() != nil || !errors.Is(err, lock.ErrHeld) {
		return g, nil, err
	}
	a.begun = true
	if !first {
		if a.doubt {
			a.l.lines.inDoubt(a.place, a.req.Owner)
		}
		a.l.lines.saw(a.req.Key, a.last)
		return lock.Grant{}, &storekit.Refusal{Record: a.last}, nil
	}
	if hint {
		a.grown = 0
	}
	a.missed(ctx)
	pause := a.pause(a.grown)
	a.grown++
	return lock.Grant{}, &storekit.Refusal{Record: a.last, Recheck: pause}, nil
}

// told is what this waiter need not ask the table, unless it is the one to look: what the first has seen,
// or why it cannot. It is nothing for a newcomer while the table does not answer.
func (a *acquisition) told(looks bool) (no *storekit.Refusal, err error) {
	rec, err := a.l.lines.known(a.req.Key)
	switch {
	case looks:
		return nil, nil
	case err == nil && rec.Key != "":
		a.begun = true
		return &storekit.Refusal{Record: rec}, nil
	case a.begun:
		return nil, err
	}
	return nil, nil
}

// missed notes who holds the lock, and asks for what this waiter may ask for. If the lock was
// handed on past it, the pauses are the shorter the longer it has waited.
func (a *acquisition) missed(ctx context.Context) {
	passed, waited := a.l.lines.saw(a.req.Key, a.last)
	a.l.lines.wakeHolders(a.req.Key, a.last.Holders)
	a.announce(ctx)
	if !passed {
		return
	}
	if waited > keepTurn {
		a.ask(ctx)
	}
	a.grown = max(0, 2-int(2*waited/a.l.maxPoll))
}

// pause grows with n from minPoll to maxPoll, with jitter; but it ends when a holder's lease
// does, and in time to keep an intent up.
func (a *acquisition) pause(n int) time.Duration {
	l := a.l
	pause := l.minPoll
	if l.maxPoll > l.minPoll {
		pause += storekit.Backoff{Min: l.minPoll, Max: l.maxPoll - l.minPoll}.Pause(n)
	}
	if end := a.frees + time.Millisecond; len(a.last.Holders) > 0 && end < pause {
		pause = min(pause, end+rand.N(l.minPoll))
	}
	if a.announced && a.behindReaders() {
		pause = min(pause, storekit.Heartbeat(a.req.TTL)/4)
	}
	return pause
}
