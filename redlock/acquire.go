package redlock

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/internal/rediskit"
	"github.com/seed-215fdefa/lock/internal/storekit"
)

// Acquire implements [lock.Locker]. TTLs round up to milliseconds; a TTL above that of
// [WithMaxTTL] is cut to it. An ErrNoQuorum names what was wrong with each node.
func (l *Locker) Acquire(ctx context.Context, req lock.Request) (lock.Grant, error) {
	if err := lock.CheckRequest(req, l.Capabilities()); err != nil {
		return lock.Grant{}, err
	}
	if err := l.ready(ctx); err != nil {
		return lock.Grant{}, err
	}
	req.TTL = min(req.TTL, l.maxTTL)
	a := l.acquisition(req)
	if req.Wait {
		return l.wait(ctx, a)
	}
	g, err := a.try(ctx)
	if err != nil {
		a.yield(true)
	}
	return g, err
}

// acquisition is one Acquire: the same owner's votes, asked for as often as it takes.
type acquisition struct {
	l    *Locker
	req  lock.Request
	id   string // tells its votes from those of another acquisition of the same owner
	ttl  int64  // ms
	meta string

	mu     sync.Mutex      // guards the rest
	has    [maxNodes]bool  // by node: its vote
	cast   [maxNodes]int64 // when it cast its last, in µs by its own clock
	doubt  [maxNodes]bool  // whether it has it, or may yet get it, is not known
	busy   [maxNodes]int   // votes and confirmations under way
	back   [maxNodes]int   // likewise, what gives votes back
	out    [maxNodes]bool  // the last poll has not asked it
	token  lock.Token      // that has been sent to be confirmed; 0: none, in this try
	trying bool            // else what still comes is to be given back at once
	failed bool            // for good

	wake chan struct{} // with room for one: a node is not busy any more
}

func (l *Locker) acquisition(req lock.Request) *acquisition {
	return &acquisition{
		l: l, req: req, id: strconv.FormatUint(rand.Uint64()|1<<63, 36), // longer than the marks 0 and 1 of lua/find.lua
		ttl: rediskit.Milliseconds(req.TTL), meta: storekit.EncodeMetadata(req.Metadata), wake: make(chan struct{}, 1),
	}
}

// How often a try is repeated when nobody can have got a quorum, and after which pauses.
const (
	maxSplits  = 4 // the votes were split, or the token was contested
	maxFresh   = 10
	freshPause = 20 * time.Millisecond
)

var splitPauses = storekit.Backoff{Min: 2 * time.Millisecond, Max: 16 * time.Millisecond}

// try asks for the nodes' votes until somebody has a quorum of them: this owner, or whoever
// ErrHeld says. When several ask at once it may be that nobody gets a quorum. Then each
// gives back what it has and comes again after a pause of its own.
func (a *acquisition) try(ctx context.Context) (lock.Grant, error) {
	splits, begins := 0, 0
	var seen []string
	for {
		a.quiet(ctx)
		start := time.Now()
		guess := a.l.guess()
		b := a.poll(guess)
		if err := a.l.await(ctx, b); err != nil {
			return lock.Grant{}, err
		}
		g, err := a.count(ctx, b, start, guess)
		if err == nil {
			return g, nil
		}
		if ctx.Err() == nil {
			a.yield(false)
		}
		wait := time.Duration(0)
		switch {
		case errors.Is(err, errSplit) && splits < maxSplits:
			wait = splitPauses.Pause(splits)
			splits++
		case errors.Is(err, ErrNoQuorum) && begins < maxFresh && b.count(fresh) > 0:
			wait, seen = a.l.begin(ctx, b, seen)
			begins++
		case errors.Is(err, errSplit):
			o := b.outcome()
			return lock.Grant{}, &lock.HeldError{Record: o.record(a.req.Key, o.least)}
		default:
			return lock.Grant{}, err
		}
		if err := storekit.Sleep(ctx, wait); err != nil {
			return lock.Grant{}, err
		}
	}
}

// errSplit is the outcome of votes that nobody can have a quorum of.
var errSplit = errors.New("lock: redlock: the votes were split")

// readVote reads a reply of lua/lock.lua.
func readVote(a answer) vote {
	switch r := a.reply.(type) {
	case int64:
		return yes
	case string:
		return no // undone
	case []any:
		if len(r) == 2 && r[0] == "has" {
			return has
		}
		if len(r) == 2 {
			return blank
		}
		if _, ok := parseView(r); ok {
			return no
		}
		return readAbstention(r)
	}
	return unknown
}

// readMicros reads when a vote was cast, and the least token that it would record; 0 if it has
// recorded the one that was proposed.
func readMicros(reply any) (micros int64, least lock.Token) {
	switch r := reply.(type) {
	case int64:
		return r, 0
	case []any:
		micros, _ = r[0].(int64)
		n, _ := r[1].(int64)
		return micros, lock.Token(n)
	}
	return 0, 0
}

// readHas reads which token the owner has by another acquisition; 0 if it is not to be adopted.
func readHas(reply any) lock.Token {
	r, _ := reply.([]any)
	if len(r) != 2 {
		return 0
	}
	n, _ := r[1].(int64)
	return lock.Token(n)
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
	full, adopted := b.count(yes), false
	switch had := b.had(); {
	case full+b.count(blank) < b.quorum && had == 0:
		return lock.Grant{}, a.refusal(b)
	case full+b.count(blank) < b.quorum: // one owner, one grant
		token, adopted = had, true
		if err := a.adopt(ctx, token); err != nil {
			return lock.Grant{}, err
		}
	case full < b.quorum:
		if token = a.l.agreed(b, token); token > lock.MaxToken {
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
	if adopted {
		a.yield(true) // its own votes, which have other tokens
	}
	return g, nil
}

func (a *acquisition) grant(token lock.Token, start time.Time) lock.Grant {
	return lock.Grant{
		Key: a.req.Key, Owner: a.req.Owner, Token: token, Shared: a.req.Shared,
		TTL: time.Duration(a.ttl) * time.Millisecond, Start: start,
	}
}

// confirm has the token recorded where the owner still holds, by a quorum. It asks those nodes that
// the poll has asked. A vote that comes later gets the token then.
func (a *acquisition) confirm(ctx context.Context, token lock.Token) error {
	a.mu.Lock()
	a.token = token
	a.mu.Unlock()
	b := a.l.newBallot(agreeing, func(i int, r answer) vote {
		if !errors.Is(r.err, errBusy) {
			a.mu.Lock()
			defer a.mu.Unlock()
			a.idle(i)
		}
		return readFlag(i, r)
	})
	a.send(b, func(i int) question {
		a.mu.Lock()
		defer a.mu.Unlock()
		return a.l.question(a.l.scripts.confirm, a.req.Key, a.req.Owner, token.String(), a.cast[i])
	})
	return a.l.agree(ctx, b)
}

// adopt takes part in the grant that the owner has by another acquisition: a quorum has told its token.
// That one does not give it back any more, whatever has become of it.
func (a *acquisition) adopt(ctx context.Context, token lock.Token) error {
	q := a.l.question(a.l.scripts.adopt, a.req.Key, a.req.Owner, token.String(), a.ttl, flag(a.req.Shared))
	return a.l.agree(ctx, a.l.poll(q, agreeing, readFlag))
}

// agree returns nil if a quorum says yes.
func (l *Locker) agree(ctx context.Context, b *ballot) error {
	if err := l.await(ctx, b); err != nil {
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
// that was not waited for is nobody's. Who is seen on too few nodes may be trying just like this
// owner, if that has a vote itself: neither holds, and both have to try again.
func (a *acquisition) refusal(b *ballot) error {
	abstaining, mute, undone := 0, 0, 0
	for i, v := range b.votes {
		if _, ok := parseView(b.answers[i].reply); ok {
			continue
		}
		switch {
		case b.answers[i].reply == "undone":
			undone++
		case v == no, v == fresh:
			abstaining++
		case v == unknown, v == pending && b.nodes[i].silent.Load():
			mute++
		}
	}
	silent, o := abstaining+mute, b.outcome()
	switch {
	case undone > 0:
		return storekit.ErrUndone
	case len(o.holders) == 0 && b.count(has) > 0 && len(b.nodes)-silent >= b.quorum:
		return errSplit // with another acquisition of the same owner
	case len(o.holders) == 0, len(b.nodes)-mute < b.quorum:
		return noQuorum(b)
	case o.holders[0].nodes >= b.quorum, o.holders[0].nodes+silent >= b.quorum && b.count(yes)+b.count(blank) == 0:
		return &lock.HeldError{Record: o.record(a.req.Key, min(o.holders[0].nodes, b.quorum-silent))}
	}
	return errSplit
}

// begin lets the nodes vote at once if all of them have answered that they are new: the
// locks are used for the first time, or everything has been lost and there is nothing left
// to protect. The answers of one ballot may never have been true together: a node may have voted
// and forgotten it before the last one answered. So all must answer the same twice: then they
// were new when the second ballot began. begin returns for how long to wait, since another process
// may be doing the same, and what it has seen, for the next time.
func (l *Locker) begin(ctx context.Context, b *ballot, last []string) (time.Duration, []string) {
	if b.count(fresh) < len(b.nodes) {
		return 1 + rand.N(freshPause), nil
	}
	seen := make([]string, len(b.nodes))
	for i, a := range b.answers {
		_, state, _ := abstains(a.reply)
		seen[i] = state.value
	}
	if !slices.Equal(seen, last) {
		return 0, seen
	}
	activated := l.newBallot(hearing, readFlag)
	for i, n := range l.nodes {
		q := question{args: l.scripts.activate.With([]string{n.key}, seen[i]).BySource()}
		n.ask(q, func(a answer) { activated.add(i, a) })
	}
	_ = l.await(ctx, activated) // the next try tells
	return 0, nil
}
