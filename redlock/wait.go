package redlock

import (
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/internal/storekit"
)

// Redlock has no line: quorums cannot count. Those who wait for a key in one process stand
// in line there, and the first of them polls. A release in the same process lets it try at
// once.

// monopoly is for how long the releases in one process do so. Then one does not, and leaves a
// gap for the polls of other processes.
const monopoly = time.Second

// wait stands in line and polls, until the lock is granted, or ctx or the Locker ends.
func (l *Locker) wait(ctx context.Context, a *acquisition) (lock.Grant, error) {
	p := l.lines.join(a)
	w := storekit.Wait{
		Request: a.req, Mailbox: p.box, Closed: l.closed,
		Classify: classify, Claim: p.claim, Recheck: storekit.Heartbeat,
	}
	g, err := w.Run(ctx)
	l.lines.leave(p, g)
	if err != nil {
		a.yield(true)
	}
	return g, err
}

// lines are the lines of one process, one for each key that is waited for.
type lines struct {
	mu    sync.Mutex // guards the rest, and all lines
	byKey map[string]*line
}

type line struct {
	places []*place
	seen   lock.Record // who has the key, as the first in line saw last
	shown  bool        // anybody in line has seen it
	err    error       // why that could not see it; nil if it could
	held   bool        // by one who has come from this line and has not released
	began  time.Time   // when releases began to let the next one try at once; zero: not yet
}

// place is one waiter's.
type place struct {
	a     *acquisition
	lines *lines
	line  *line
	box   *storekit.Mailbox
	waits bool // its first request, or the first in line's, was refused
	tries int  // while it was the first
}

// join stands in line.
func (ls *lines) join(a *acquisition) *place {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	x := ls.byKey[a.req.Key]
	if x == nil {
		x = &line{seen: lock.Record{Key: a.req.Key}}
		ls.byKey[a.req.Key] = x
	}
	p := &place{a: a, lines: ls, line: x, box: storekit.NewMailbox()}
	x.places = append(x.places, p)
	return p
}

// leave lets the next one be first. It tries at once, unless g is an exclusive grant: its
// release will tell.
func (ls *lines) leave(p *place, g lock.Grant) {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	x := p.line
	i := slices.Index(x.places, p)
	x.places = slices.Delete(x.places, i, i+1)
	if len(x.places) == 0 {
		delete(ls.byKey, p.a.req.Key)
		return
	}
	if g.Token != 0 {
		x.err, x.shown, x.held = nil, true, !g.Shared
		x.seen = lock.Record{Key: g.Key, Token: g.Token, HolderCount: 1, Holders: []lock.Holder{{
			Owner: g.Owner, Token: g.Token, Shared: g.Shared, Held: -1, ExpiresIn: g.TTL,
		}}}
	}
	if i == 0 {
		x.places[0].box.Wake()
	}
}

// hint lets the first in line try: something has been released.
func (ls *lines) hint(key string) {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	x := ls.byKey[key]
	switch {
	case x == nil:
		return
	case x.began.IsZero():
		x.began = time.Now()
	case time.Since(x.began) > monopoly:
		x.began = time.Time{}
		return
	}
	x.held = false
	x.places[0].box.Wake()
}

// claim tries if p is the first in line.
func (p *place) claim(ctx context.Context, _ bool) (lock.Grant, *storekit.Refusal, error) {
	if no, err := p.told(); no != nil || err != nil {
		return lock.Grant{}, no, err
	}
	g, err := p.a.try(ctx)
	var held *lock.HeldError
	if errors.As(err, &held) {
		err = nil
	}
	p.lines.mu.Lock()
	defer p.lines.mu.Unlock()
	if ctx.Err() == nil {
		p.line.err = err
	}
	if held == nil {
		return g, nil, err
	}
	p.line.seen, p.line.shown, p.waits = held.Record, true, true
	return g, &storekit.Refusal{Record: held.Record, Recheck: p.pause()}, nil
}

// told is what p need not ask the nodes: what the first in line has seen of them, or, if p is
// that one, that a holder who came from the line has not released yet. Else it is nothing; so it
// is for a newcomer while the nodes are in trouble, or nobody has had an answer.
func (p *place) told() (no *storekit.Refusal, err error) {
	p.lines.mu.Lock()
	defer p.lines.mu.Unlock()
	x := p.line
	switch first := x.places[0] == p; {
	case !first && x.err == nil && x.shown:
		p.waits = true
		return &storekit.Refusal{Record: x.seen}, nil
	case !first && p.waits:
		return nil, x.err
	case first && x.held:
		x.held = false // or not in this process: it tries after the next pause
		return &storekit.Refusal{Record: x.seen, Recheck: p.pause()}, nil
	}
	return nil, nil
}

// pause is that of the first in line: half to all of a limit that grows with its tries from the
// shortest to the longest, and no longer than the holder's TTL.
func (p *place) pause() time.Duration {
	l := p.a.l
	limit := l.maxPoll
	if l.minPoll < l.maxPoll>>p.tries {
		limit = l.minPoll << p.tries
	}
	p.tries++
	pause := limit/2 + 1 + rand.N(limit)/2
	for _, h := range p.line.seen.Holders {
		if h.ExpiresIn >= 0 && h.ExpiresIn < pause {
			pause = h.ExpiresIn + time.Millisecond + rand.N(l.minPoll)
		}
	}
	return pause
}
