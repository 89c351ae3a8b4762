package redlock

import (
	"context"
	"strconv"
	"time"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/internal/rediskit"
	"github.com/seed-215fdefa/lock/internal/storekit"
)

// Renew implements [lock.Locker]. The grant must still be live on a quorum. Renew gives it back
// to nodes that have lost it, even to those whose answers come after a quorum has decided. A
// Release may overtake the latter, so it leaves a mark that refuses them.
func (l *Locker) Renew(ctx context.Context, g lock.Grant) (lock.Grant, error) {
	if err := storekit.CheckRenewal(g); err != nil {
		return lock.Grant{}, err
	}
	if err := l.ready(ctx); err != nil {
		return lock.Grant{}, err
	}
	l.doubts.Add(g.Owner)
	ttl, start := rediskit.Milliseconds(min(g.TTL, l.maxTTL)), time.Now()
	args := []any{g.Owner, g.Token.String(), ttl, flag(g.Shared)}
	rejoin := l.question(l.scripts.rejoin, g.Key, args...)
	over := storekit.Vanished(g) != 0
	b := l.newBallot(agreeing, readFlag)
	b.late = func(i int, v vote) {
		if v == no && b.count(yes) >= b.quorum {
			l.nodes[i].ask(rejoin, func(answer) {})
		}
	}
	b.send(l.question(l.scripts.renew, g.Key, append(args, flag(over))...))
	if err := l.await(ctx, b); err != nil {
		return lock.Grant{}, err
	}
	if b.count(yes) < b.quorum {
		if b.count(yes)+b.count(unknown)+b.count(pending) >= b.quorum {
			return lock.Grant{}, noQuorum(b)
		}
		q := l.end(g, end{only: true}) // the owner may be about to ask anew
		for _, n := range l.nodes {
			n.ask(q, func(answer) {}) // a few may have it, and for another TTL
		}
		return lock.Grant{}, lost(b, g)
	}
	for i, v := range b.votes {
		b.late(i, v)
	}
	g.TTL, g.Start = time.Duration(ttl)*time.Millisecond, start
	return g, nil
}

// end is how lua/release.lua ends a grant or a vote.
type end struct {
	mark   time.Duration // how long a mark lives that refuses what comes late; 0: there is none
	always bool          // it leaves the mark whatever it finds
	vote   int64         // when the vote was cast that it ends, in µs by the node's clock; 0: any
	over   bool          // the holder's TTL is over
	only   bool          // it ends nothing that does not have the grant's very token
	by     string        // the acquisition whose vote it ends, and whom the mark refuses; "": the owner
}

// end is the question that ends g, and is asked for as long as g can live.
func (l *Locker) end(g lock.Grant, e end) question {
	vote := ""
	if e.vote != 0 {
		vote = strconv.FormatInt(e.vote, 10)
	}
	q := l.question(l.scripts.release, g.Key,
		g.Owner, g.Token.String(), e.mark.Milliseconds(), flag(g.Shared), flag(e.always), vote, flag(e.over), flag(e.only), e.by)
	q.until = time.Now().Add(l.maxTTL)
	if g.TTL > 0 && g.TTL < l.maxTTL {
		q.until = time.Now().Add(g.TTL)
	}
	return q
}

// Release implements [lock.Locker]. It returns when the grant cannot be live on any quorum any
// more, and nobody can be refused for it, even beside nodes that abstain. Nodes that have not
// answered get the release in the background, for as long as the grant could live there. If a
// reply is lost, Release asks again. It returns nil if it then finds the grant gone before the
// grant can have expired: the first request must have released it.
func (l *Locker) Release(ctx context.Context, g lock.Grant) error {
	if err := l.check(ctx, g); err != nil {
		return err
	}
	doubtful, over := l.doubts.Take(g.Owner), storekit.Vanished(g) != 0
	q := l.end(g, end{mark: storekit.UndoLife, always: doubtful, over: over})
	b := l.newBallot(ending, func(i int, a answer) vote {
		v := readEnd(i, a)
		if v == no && a.again && storekit.Vanished(g) == 0 {
			return yes // by the first sending
		}
		return v
	})
	b.send(q)
	err := l.awaitFor(ctx, b, max(l.timeout, releaseTimeout))
	if err == nil {
		err = released(b, g, over)
	}
	if err != nil && doubtful {
		l.doubts.Add(g.Owner) // it may be called again
	}
	l.lines.hint(g.Key)
	return err
}

// released is what has come of a release. Where no quorum has ended the grant, it is lost if its TTL
// was over before: a few nodes that voted late may have had it for a little longer. Those that never
// recorded its token do not count then, as they do not for Inspect.
func released(b *ballot, g lock.Grant, over bool) error {
	ended, maybe := b.count(yes), b.count(unknown)+b.count(pending)
	switch {
	case g.Token != 0 && ended+maybe < b.quorum:
		return lost(b, g)
	case b.lingers():
		return noQuorum(b)
	case g.Token != 0 && over && ended < b.quorum:
		return lost(b, g)
	}
	return nil
}

// readEnd reads a reply of lua/release.lua or lua/force.lua, which do their work on nodes that
// abstain, too.
func readEnd(i int, a answer) vote {
	if r, ok := a.reply.([]any); ok && len(r) == 4 {
		a.reply = r[3]
	}
	return readFlag(i, a)
}

// lost is the *lock.LostError of a grant that no quorum has. Who has the lock on a few nodes may just be
// trying: it was taken if most of the nodes that lack the grant say so. One that abstains does not:
// beside two of five that do, a rival on one node cannot have a quorum.
func lost(b *ballot, g lock.Grant) error {
	said := make(map[int64]int)
	for i, v := range b.votes {
		if v == no || v == fresh {
			n, _ := b.answers[i].reply.(int64) // 0 of one that abstains
			said[n]++
		}
	}
	lost := &lock.LostError{Token: g.Token, Reason: storekit.Vanished(g)}
	switch {
	case said[3] > 0:
		lost.Reason = lock.ReasonForced
	case said[2] > said[0]:
		lost.Reason = lock.ReasonTaken
	}
	return lost
}
