package redlock

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/internal/rediskit"
	"github.com/seed-215fdefa/lock/internal/storekit"
)

// keys are the KEYS of the scripts on a lock: lua/base.lua describes them. Nodes are single
// servers, so no two need to be neighbors, and a name is its lock's key behind a letter.
func (l *Locker) keys(key string) []string {
	return []string{l.prefix + "node", l.prefix + "s:" + key, l.prefix + "r:" + key, l.prefix + "i:" + key, l.prefix + "m:" + key}
}

func (l *Locker) question(s *rediskit.Script, key string, args ...any) question {
	keys := l.keys(key)
	return question{args: s.Args(false, keys, args), key: keys[1]}
}

// markLife is for how long a mark refuses the late requests of an owner: longer than a
// request may linger in the buffers of a connection that its client has given up.
const markLife = 2 * time.Minute

// acquisition is one Acquire: the same owner's votes, asked for as often as it takes.
type acquisition struct {
	l    *Locker
	req  lock.Request
	ttl  int64 // ms
	meta string

	mu     sync.Mutex          // guards the rest
	has    [maxNodes]bool      // by node: its vote
	doubt  [maxNodes]bool      // whether it has it, or may yet get it, is not known
	busy   [maxNodes]int       // requests under way
	barred [maxNodes]time.Time // until when one may be executed that is over
	out    [maxNodes]bool      // the last poll has not asked it
	trying bool                // else what still comes is to be given back at once
	failed bool                // for good

	wake chan struct{} // with room for one: a node is not busy any more
}

func (l *Locker) acquisition(req lock.Request) *acquisition {
	return &acquisition{l: l, req: req, ttl: milliseconds(req.TTL), meta: storekit.EncodeMetadata(req.Metadata), wake: make(chan struct{}, 1)}
}

// How often a try is repeated when nobody can have got a quorum, and after which pauses.
const (
	maxSplits  = 4 // the votes were split, or the token was contested
	maxFresh   = 10
	splitPause = 2 * time.Millisecond // doubled each time, with full jitter
	freshPause = 20 * time.Millisecond
)

// try asks for the nodes' votes until somebody has a quorum of them: this owner, or whoever
// ErrHeld says. When several ask at once it may be that nobody gets a quorum. Then each
// gives back what it has and comes again after a pause of its own.
func (a *acquisition) try(ctx context.Context) (lock.Grant, error) {
	splits, begins := 0, 0
	for {
		a.quiet(ctx)
		start := time.Now()
		proposal := propose(a.l.nodes, a.l.quorum)
		b, err := a.vote(ctx, proposal)
		if err != nil {
			return lock.Grant{}, err
		}
		g, err := a.count(ctx, b, start, lock.Token(proposal))
		if err == nil {
			return g, nil
		}
		if ctx.Err() == nil {
			a.yield()
		}
		wait := time.Duration(0)
		switch {
		case errors.Is(err, errSplit) && splits < maxSplits:
			wait = 1 + rand.N(splitPause<<splits)
			splits++
		case errors.Is(err, ErrNoQuorum) && begins < maxFresh && b.count(fresh) > 0:
			wait = a.l.begin(ctx, b)
			begins++
		case errors.Is(err, errSplit):
			o := b.outcome()
			return lock.Grant{}, &lock.HeldError{Record: o.record(a.req.Key, o.least)}
		default:
			return lock.Grant{}, err
		}
		if err := a.l.pause(ctx, wait); err != nil {
			return lock.Grant{}, err
		}
	}
}

// errSplit is the outcome of votes that nobody can have a quorum of.
var errSplit = errors.New("lock: redlock: the votes were split")

// vote asks all nodes.
func (a *acquisition) vote(ctx context.Context, proposal int64) (*ballot, error) {
	s := a.l.scripts.lock
	if a.req.Shared {
		s = a.l.scripts.lockShared
	}
	q := a.l.question(s, a.req.Key, a.req.Owner, a.ttl, proposal, window.Microseconds(), a.meta)
	b := a.poll(q, granting, a.l.readVote, nil)
	return b, a.l.await(ctx, b)
}

// readVote reads a reply of lua/lock.lua.
func (l *Locker) readVote(i int, a answer) vote {
	switch r := a.reply.(type) {
	case int64:
		l.nodes[i].clock.saw(r)
		return yes
	case string:
		return no // undone
	case []any:
		if len(r) == 2 {
			micros, _ := r[0].(int64)
			l.nodes[i].clock.saw(micros)
			return blank
		}
		if v, ok := parseView(r); ok {
			l.nodes[i].clock.saw(v.micros)
			return no
		}
		return readAbstention(r)
	}
	return unknown
}

// readAbstention is for replies that say nothing else.
func readAbstention(reply any) vote {
	switch _, s, ok := abstains(reply); {
	case !ok:
		return unknown
	case s.kind == "n":
		return fresh
	}
	return no
}

// count makes a grant of a quorum's votes.
func (a *acquisition) count(ctx context.Context, b *ballot, start time.Time, token lock.Token) (lock.Grant, error) {
	full := b.count(yes)
	if full+b.count(blank) < b.quorum {
		return lock.Grant{}, a.refusal(b)
	}
	if full < b.quorum {
		if full == 0 {
			token = 0
		}
		for i, v := range b.votes {
			if v == blank {
				least, _ := b.answers[i].reply.([]any)[1].(int64)
				token = max(token, lock.Token(least))
			}
		}
		if token > lock.MaxToken {
			return lock.Grant{}, fmt.Errorf("lock: redlock: the token %d is above the highest, %d", token, lock.MaxToken)
		}
		if err := a.confirm(ctx, token); err != nil {
			return lock.Grant{}, err
		}
	}
	g := a.grant(token, start)
	if time.Since(start) >= g.TTL {
		return lock.Grant{}, fmt.Errorf("lock: redlock: a quorum took longer to answer than the TTL of %v", g.TTL)
	}
	return g, nil
}

func (a *acquisition) grant(token lock.Token, start time.Time) lock.Grant {
	return lock.Grant{
		Key: a.req.Key, Owner: a.req.Owner, Token: token, Shared: a.req.Shared,
		TTL: time.Duration(a.ttl) * time.Millisecond, Start: start,
	}
}

// confirm has the token recorded where the owner still holds, by a quorum.
func (a *acquisition) confirm(ctx context.Context, token lock.Token) error {
	b := a.follow(a.l.question(a.l.scripts.confirm, a.req.Key, a.req.Owner, token.String()), agreeing, readFlag)
	if err := a.l.await(ctx, b); err != nil {
		return err
	}
	if b.count(yes) < b.quorum {
		if b.count(yes)+b.count(unknown)+b.count(pending) >= b.quorum {
			return noQuorum(b)
		}
		return errSplit // votes have expired, or been released
	}
	return nil
}

// readFlag reads a reply that is 1, or another number for no. A node that abstains has
// nothing that counts.
func readFlag(_ int, a answer) vote {
	switch r := a.reply.(type) {
	case int64:
		if r == 1 {
			return yes
		}
		return no
	case string:
		return no // undone
	case []any:
		return readAbstention(r)
	}
	return unknown
}

// refusal says why there was no quorum: somebody may have it, or nobody seems to, or too few
// nodes vote. Who was released a moment ago may still be seen on some nodes, so an answer
// that was not waited for is nobody's.
func (a *acquisition) refusal(b *ballot) error {
	silent, undone := 0, 0
	for i, v := range b.votes {
		if _, ok := parseView(b.answers[i].reply); ok {
			continue
		}
		if b.answers[i].reply == "undone" {
			undone++
		} else if v == no || v == fresh || v == unknown || v == pending && b.nodes[i].silent.Load() {
			silent++
		}
	}
	o := b.outcome()
	switch {
	case undone > 0:
		return errUndone
	case len(o.holders) == 0:
		return noQuorum(b)
	case o.holders[0].nodes+silent >= b.quorum:
		return &lock.HeldError{Record: o.record(a.req.Key, min(o.holders[0].nodes, b.quorum-silent))}
	}
	return errSplit
}

// errUndone is the outcome of an acquisition whose owner has been released already.
var errUndone = errors.New("lock: redlock: this owner's acquisition has been undone")

func (a *acquisition) shared() string { return flag(a.req.Shared) }

func flag(b bool) string {
	if b {
		return "1"
	}
	return ""
}

// begin lets the nodes vote at once if all of them have answered that they are new: the
// locks are used for the first time, or everything has been lost and there is nothing left
// to protect. It returns for how long to wait: another process may be doing the same.
func (l *Locker) begin(ctx context.Context, b *ballot) time.Duration {
	if b.count(fresh) < len(b.nodes) {
		return 1 + rand.N(freshPause)
	}
	activated := l.newBallot(hearing, readFlag)
	for i, n := range l.nodes {
		_, seen, _ := abstains(b.answers[i].reply)
		q := question{args: l.scripts.activate.Args(true, []string{n.key}, []any{seen.value})}
		n.ask(q, func(a answer) { activated.add(i, a) })
	}
	_ = l.await(ctx, activated) // the next try tells
	return 0
}

// pause waits, and returns early with an error when ctx or the Locker ends.
func (l *Locker) pause(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return ctx.Err()
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-l.closing:
		return lock.ErrClosed
	}
}
