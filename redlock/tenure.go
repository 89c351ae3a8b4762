package redlock

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/internal/storekit"
)

// renew renews on a quorum. Start is that of the only request, so it is before each node's.
func (l *Locker) renew(ctx context.Context, g lock.Grant) (lock.Grant, error) {
	start, ttl := time.Now(), g.TTL.Milliseconds()
	rejoin := l.question(l.scripts.rejoin, g.Key, g.Owner, g.Token.String(), ttl, flag(g.Shared))
	t := l.tenures.request(g.Owner, len(l.nodes))
	b := l.newBallot(agreeing, func(i int, a answer) vote {
		l.tenures.answered(t)
		return readFlag(i, a)
	})
	giveBack := func(i int, v vote) {
		if v == no && !l.tenures.over(t) {
			l.nodes[i].ask(rejoin, func(a answer) {
				if a.again {
					l.doubts.Add(g.Owner)
				}
			})
		}
	}
	renewed := false
	b.late = func(i int, v vote) {
		if renewed {
			giveBack(i, v)
		}
	}
	b.settled = func() { renewed = b.count(yes) >= b.quorum }
	b.send(l.question(l.scripts.renew, g.Key, g.Owner, g.Token.String(), ttl, flag(g.Shared)))
	if err := l.await(ctx, b); err != nil {
		return lock.Grant{}, err
	}
	if b.count(yes) < b.quorum {
		return lock.Grant{}, l.lost(b, g)
	}
	b.each(giveBack)
	g.Start = start
	return g, nil
}

// tenures are the owners with a renewal, or a request for votes, that some node has not
// answered. It may do so after a release that has overtaken it. Then it must not be given the
// grant back, nor keep a vote.
type tenures struct {
	mu      sync.Mutex // guards the rest, and all tenures
	byOwner map[string]*tenure
}

type tenure struct {
	owner  string
	awaits int // answers
	over   bool
}

// request notes that so many nodes are asked.
func (ts *tenures) request(owner string, nodes int) *tenure {
	ts.mu.Lock()
	defer ts.mu.Unlock()
	t := ts.byOwner[owner]
	if t == nil {
		t = &tenure{owner: owner}
		ts.byOwner[owner] = t
	}
	t.awaits += nodes
	return t
}

func (ts *tenures) answered(t *tenure) {
	ts.mu.Lock()
	defer ts.mu.Unlock()
	if t.awaits--; t.awaits == 0 {
		delete(ts.byOwner, t.owner)
	}
}

func (ts *tenures) over(t *tenure) bool {
	ts.mu.Lock()
	defer ts.mu.Unlock()
	return t.over
}

// end is called before a release is sent.
func (ts *tenures) end(owner string) {
	ts.mu.Lock()
	defer ts.mu.Unlock()
	if t := ts.byOwner[owner]; t != nil {
		t.over = true
	}
}

// lost is a *lock.LostError if no quorum can have the grant, and else why that is not known.
func (l *Locker) lost(b *ballot, g lock.Grant) error {
	if b.count(yes)+b.count(unknown)+b.count(pending) >= b.quorum {
		return noQuorum(b)
	}
	lost := &lock.LostError{Token: g.Token, Reason: storekit.Vanished(g)}
	for i, v := range b.votes {
		switch r := b.answers[i].reply; {
		case v != no:
		case r == int64(3):
			lost.Reason = lock.ReasonForced
		case r == int64(2) && lost.Reason != lock.ReasonForced:
			lost.Reason = lock.ReasonTaken
		}
	}
	return lost
}

// ending is the question that ends what owner has. It leaves a mark where there is nothing, or
// everywhere if doubtful.
func (l *Locker) ending(key, owner string, token lock.Token, shared, doubtful bool) question {
	q := l.question(l.scripts.release, key, owner, token.String(), markLife.Milliseconds(), flag(shared), flag(doubtful))
	q.patient = true
	return q
}

// release ends a grant, or with token 0 whatever the owner has. done has the nodes on which
// a hand-over has ended it before, or may have; or it is nil.
func (l *Locker) release(ctx context.Context, g lock.Grant, done []bool, doubtful bool) error {
	q := l.ending(g.Key, g.Owner, g.Token, g.Shared, doubtful)
	life := l.maxTTL
	if g.TTL > 0 {
		life = min(life, g.TTL)
	}
	until := time.Now().Add(life)
	b := l.newBallot(ending, func(i int, a answer) vote {
		v := readFlag(i, a)
		switch {
		case v == unknown:
			l.nodes[i].owe(q, until, func(bool) {})
		case v == no && done != nil && done[i],
			v == no && a.again && time.Since(g.Start) < g.TTL:
			return yes
		}
		return v
	})
	b.send(q)
	if err := l.awaitFor(ctx, b, max(l.timeout, releaseTimeout)); err != nil {
		return err
	}
	ended, gone := b.count(yes), b.count(yes)+b.count(no)
	maybe := b.count(unknown) + b.count(pending)
	over := gone > len(b.nodes)-b.quorum // those left are no quorum
	switch {
	case g.Token == 0 && over, ended >= b.quorum:
		return nil
	case g.Token != 0 && ended+maybe < b.quorum:
		return l.lost(b, g)
	case over:
		return nil
	}
	return noQuorum(b)
}

// handOver releases an exclusive grant and gets one for p, the first of those who wait in
// this process, by the same request: a hand-over in one round trip. p's grant starts before
// that was sent. If no quorum does both, the grant is released as ever, and p tries.
func (l *Locker) handOver(ctx context.Context, g lock.Grant, p *place) error {
	a, start := p.a, time.Now()
	proposal := propose(l.nodes, l.quorum)
	q := l.question(l.scripts.pass, g.Key, a.req.Owner, a.ttl, proposal, window.Microseconds(), a.meta,
		g.Owner, g.Token.String())
	sweep := l.sweeper(g)
	b := a.poll(q, passing, l.readPass, sweep)
	err := l.await(ctx, b)
	if err == nil && b.count(yes) >= b.quorum && time.Since(start) < a.req.TTL {
		b.each(sweep)
		l.lines.handed(p, a.grant(lock.Token(proposal), start))
		return nil
	}
	defer func() {
		l.lines.handed(p, lock.Grant{})
		l.lines.hint(g.Key)
	}()
	if err != nil {
		return err
	}
	// Where the outcome is not known the first part may have been done.
	ended, n := make([]bool, len(b.nodes)), 0
	for i, v := range b.votes {
		r, _ := b.answers[i].reply.([]any)
		done := len(r) == 3 && r[0] == int64(1)
		if done {
			n++
		}
		ended[i] = done || v == pending || v == unknown && !errors.Is(b.answers[i].err, errBusy)
	}
	if n >= b.quorum {
		b.each(sweep)
		return nil
	}
	return l.release(ctx, g, ended, false)
}

// sweeper returns what ends g on a node where it has not, or is not known to have, been
// handed over.
func (l *Locker) sweeper(g lock.Grant) func(i int, v vote) {
	q, until := l.ending(g.Key, g.Owner, g.Token, false, false), time.Now().Add(g.TTL)
	return func(i int, v vote) {
		if v == pending || v == yes || v == blank {
			return
		}
		n := l.nodes[i]
		n.ask(q, func(r answer) {
			if readFlag(i, r) == unknown {
				n.owe(q, until, func(bool) {})
			}
		})
	}
}

// readPass reads a reply of lua/pass.lua. It is yes if the node has done both parts.
func (l *Locker) readPass(i int, a answer) vote {
	r, _ := a.reply.([]any)
	if len(r) != 3 {
		return readFlag(i, a)
	}
	ended, ok := r[0].(int64)
	if !ok {
		return l.readVote(i, a)
	}
	micros, _ := r[1].(int64)
	l.nodes[i].clock.saw(micros)
	if ended == 1 && r[2] == int64(0) {
		return yes
	}
	return blank
}
