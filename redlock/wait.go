package redlock

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/internal/storekit"
)

// Redlock has no line: quorums cannot count. Those who wait for a key in one process stand
// in line there, and the first of them polls. A release in the same process lets it try at
// once.

const (
	// A line that hands over within its process leaves no gap for the polls of others. After
	// monopoly it does, for as long as a poll's pause is on average.
	monopoly = time.Second
)

// wait stands in line and polls, until the lock is granted, or ctx or the Locker ends.
func (l *Locker) wait(ctx context.Context, a *acquisition) (lock.Grant, error) {
	w := &waiter{l: l, a: a}
	p, last := l.lines.join(a)
	g, err := w.stand(ctx, p, last)
	l.lines.leave(p, g)
	if err != nil {
		a.undo()
	}
	return g, err
}

// waiter is an acquisition that waits.
type waiter struct {
	l    *Locker
	a    *acquisition
	last lock.Record // what it saw when the key was held; no Key: it has not

	trouble error // what the last try failed with; nil if it was answered
}

// stand waits to be the first in line, and then polls. Who comes behind others does not ask
// the nodes: the one in front does.
func (w *waiter) stand(ctx context.Context, p *place, last lock.Record) (lock.Grant, error) {
	if p.behind {
		w.held(last)
		if g, err := w.idle(ctx, p, 0); err != nil || g.Token != 0 {
			return g, err
		}
	}
	return w.poll(ctx, p)
}

// held notes who has the key, and tells the caller the first time.
func (w *waiter) held(r lock.Record) {
	first := w.last.Key == ""
	w.last = r
	if first && w.a.req.Waiting != nil {
		w.a.req.Waiting(r)
	}
}

// poll tries, with pauses, until there is an answer.
func (w *waiter) poll(ctx context.Context, p *place) (lock.Grant, error) {
	for n := 0; ; n++ {
		g, err := w.a.try(ctx)
		var held *lock.HeldError
		switch {
		case err == nil:
			return g, nil
		case ctx.Err() != nil:
			return lock.Grant{}, w.ended(ctx)
		case errors.As(err, &held):
			w.trouble = nil
			w.l.lines.saw(p, held.Record)
			w.held(held.Record)
		default:
			if err := w.endure(p, err); err != nil {
				return lock.Grant{}, err
			}
		}
		w.l.lines.rests(p)
		if g, err := w.idle(ctx, p, w.pauseAfter(n)); err != nil || g.Token != 0 {
			return g, err
		}
	}
}

// endure returns the error that the wait ends with after a try that failed with err, nil if it
// goes on. The line's trouble is that of all who stand in it, so that patience is not theirs
// one after another.
func (w *waiter) endure(p *place, err error) error {
	since := w.l.lines.failed(p)
	switch {
	case w.last.Key == "", !classify(err).Passing():
		return err
	case time.Since(since) >= lock.Patience:
		return storekit.Unanswered(err)
	}
	w.trouble = err
	return nil
}

// pauseAfter is the pause after the nth look: half to all of a limit that grows from min to
// max, and no longer than the holder's TTL.
func (w *waiter) pauseAfter(n int) time.Duration {
	limit := w.l.maxPoll
	if n < 16 && w.l.minPoll<<n < limit {
		limit = w.l.minPoll << n
	}
	pause := limit/2 + 1 + rand.N(limit)/2
	for _, h := range w.last.Holders {
		if h.ExpiresIn >= 0 && h.ExpiresIn < pause {
			pause = h.ExpiresIn + time.Millisecond + rand.N(w.l.minPoll)
		}
	}
	return pause
}

// idle returns when it is time to try: after the pause, or a release in this process; with
// a grant if that has handed over. With pause 0 it waits to be the first in line.
func (w *waiter) idle(ctx context.Context, p *place, pause time.Duration) (lock.Grant, error) {
	timer := time.NewTimer(max(pause, time.Hour))
	defer timer.Stop()
	if pause > 0 {
		timer.Reset(pause)
	}
	for {
		select {
		case <-timer.C:
		case now := <-p.turn:
			if !now { // it is the first now, and the holder is of this process
				timer.Reset(w.pauseAfter(16))
				continue
			}
			if w.l.lines.hogs(p) {
				if err := w.l.pause(ctx, w.l.maxPoll/2); err != nil && ctx.Err() != nil {
					return lock.Grant{}, w.ended(ctx)
				}
			}
		case g := <-p.grants:
			return g, nil
		case <-ctx.Done():
			return lock.Grant{}, w.ended(ctx)
		case <-w.l.closing:
			return lock.Grant{}, lock.ErrClosed
		}
		if w.l.lines.rises(p) {
			return lock.Grant{}, nil
		}
		timer.Reset(time.Hour) // it is being served: what comes of it comes by grants
	}
}

// ended is the error of a wait that ctx ended: the nodes' too if they were in trouble, and
// ErrHeld if the key was seen held.
func (w *waiter) ended(ctx context.Context) error {
	err := storekit.Ended(ctx, nil, w.trouble)
	if w.last.Key == "" {
		return err
	}
	return &lock.HeldError{Record: w.last, Err: err}
}

// lines are the lines of one process, one for each key that is waited for.
type lines struct {
	mu    sync.Mutex // guards the rest, and all lines
	byKey map[string]*line
}

type line struct {
	key    string
	places []*place
	last   lock.Record // what the first in line saw last, or who has come from the line
	began  time.Time   // when it began to hand over within the process
	asked  time.Time   // when the nodes were first asked in vain; zero if they have answered since
}

// place is one waiter's.
type place struct {
	a      *acquisition
	line   *line
	behind bool            // it was not the first when it came
	idle   bool            // it is not trying by itself, so it may be served
	served bool            // somebody is handing over to it, which ends with handed
	turn   chan bool       // with room for one: it is first; true: it may try at once
	grants chan lock.Grant // with room for one
}

func newLines() *lines { return &lines{byKey: make(map[string]*line)} }

// join stands in line, and returns what is known of the holder.
func (ls *lines) join(a *acquisition) (*place, lock.Record) {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	key := a.req.Key
	l := ls.byKey[key]
	if l == nil {
		l = &line{key: key, last: lock.Record{Key: key}}
		ls.byKey[key] = l
	}
	behind := len(l.places) > 0
	p := &place{a: a, line: l, behind: behind, idle: behind, turn: make(chan bool, 1), grants: make(chan lock.Grant, 1)}
	l.places = append(l.places, p)
	return p, l.last
}

// rests and rises say when p is idle. rises reports false when p is being served.
func (ls *lines) rests(p *place) {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	p.idle = true
}

func (ls *lines) rises(p *place) bool {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	if p.served {
		return false
	}
	p.idle = false
	return true
}

// serve returns the first in line if it can be handed an exclusive grant, for which handed
// must be called then; nil if there is nobody, or a gap is due for other processes.
func (ls *lines) serve(key string) *place {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	l := ls.byKey[key]
	if l == nil {
		return nil
	}
	l.begin()
	p := l.places[0]
	if !p.idle || p.served || p.a.req.Shared || time.Since(l.began) >= monopoly {
		return nil
	}
	p.served = true
	return p
}

// handed ends what serve has begun. Without a grant p tries by itself.
func (ls *lines) handed(p *place, g lock.Grant) {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	p.served, p.idle = false, false
	p.grants <- g
}

// leave lets the next one be first, which tries at once, unless g is an exclusive grant: its
// release will tell.
func (ls *lines) leave(p *place, g lock.Grant) {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	l := p.line
	for i, other := range l.places {
		if other != p {
			continue
		}
		l.places = append(l.places[:i], l.places[i+1:]...)
		if len(l.places) == 0 {
			delete(ls.byKey, l.key)
			return
		}
		if g.Token != 0 {
			l.asked = time.Time{}
			l.last = lock.Record{Key: g.Key, Token: g.Token, HolderCount: 1, Holders: []lock.Holder{{
				Owner: g.Owner, Token: g.Token, Shared: g.Shared, Held: -1, ExpiresIn: g.TTL,
			}}}
		}
		if i == 0 {
			l.places[0].signal(g.Token == 0 || g.Shared)
		}
		return
	}
}

// saw notes what the first in line has seen.
func (ls *lines) saw(p *place, r lock.Record) {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	p.line.last, p.line.asked = r, time.Time{}
}

// failed notes that the nodes could not decide, and returns since when.
func (ls *lines) failed(p *place) time.Time {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	if p.line.asked.IsZero() {
		p.line.asked = time.Now()
	}
	return p.line.asked
}

// hint lets the first in line try: something has been released.
func (ls *lines) hint(key string) {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	if l := ls.byKey[key]; l != nil {
		l.begin()
		l.places[0].signal(true)
	}
}

func (l *line) begin() {
	if l.began.IsZero() {
		l.began = time.Now()
	}
}

// hogs tells, once, that the line has handed over within the process for too long.
func (ls *lines) hogs(p *place) bool {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	if began := p.line.began; began.IsZero() || time.Since(began) < monopoly {
		return false
	}
	p.line.began = time.Time{}
	return true
}

// signal is called under lines.mu, so nobody else fills the room that it makes.
func (p *place) signal(now bool) {
	select {
	case before := <-p.turn:
		now = now || before
	default:
	}
	p.turn <- now
}
