package redlock

import (
	"context"
	"errors"
	"time"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/internal/storekit"
)

// What an owner has on the nodes while it tries: asking for votes, and giving them back.
//
// Requests take different connections, and one that is sent again, since its connection
// broke, may be executed twice, the first sending last. If one that gives a vote back ended the
// one that was asked for after it, that vote would be counted and not be there. So each vote has
// its own name, the node's µs at which it was cast, and what gives it back, or confirms it, says
// which it means. A node is left out of a try while its answer to another one is missing.
//
// An owner may ask by two acquisitions: by way of two replicas of the lock service, or again while the
// first request has not come to its end. To the nodes they are two owners, so that neither touches the
// other's votes, until one of them adopts a grant: see lua/adopt.lua.

// poll asks for votes. One that was asked for again may come again, after the release even: so that
// leaves a mark.
func (a *acquisition) poll(guess lock.Token) *ballot {
	q := a.l.question(a.l.scripts.lock, a.req.Key,
		a.req.Owner, a.ttl, guess.String(), window.Microseconds(), a.meta, flag(a.req.Shared), a.id)
	q.again = func() { a.l.doubts.Add(a.req.Owner) }
	b := a.l.newBallot(granting, func(i int, r answer) vote {
		v := readVote(r)
		if !errors.Is(r.err, errBusy) {
			a.note(i, v, r)
		}
		return v
	})
	a.mu.Lock()
	a.trying, a.token = true, 0
	for i := range b.nodes {
		a.out[i] = a.busy[i] > 0
		if a.doubt[i] && !a.out[i] {
			a.l.doubts.Add(a.req.Owner) // a release would end one of both, and not refuse the other
		}
	}
	a.mu.Unlock()
	a.send(b, func(int) question { return q })
	return b
}

// send asks all nodes that are not left out.
func (a *acquisition) send(b *ballot, q func(i int) question) {
	a.mu.Lock()
	out := a.out
	for i := range b.nodes {
		if !out[i] {
			a.busy[i]++
		}
	}
	a.mu.Unlock()
	for i, n := range b.nodes {
		if out[i] {
			b.add(i, answer{err: n.why(errBusy)})
		} else {
			n.ask(q(i), func(r answer) { b.add(i, r) })
		}
	}
}

// note remembers what there is to give back. A vote that comes after the decision is part of
// the grant, if that is what came of it.
func (a *acquisition) note(i int, v vote, r answer) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.has[i] = v == yes || v == blank
	if a.has[i] {
		a.cast[i], _ = readMicros(r.reply)
	}
	a.doubt[i] = a.doubt[i] || v == unknown || r.again
	if a.doubt[i] && a.has[i] {
		a.l.doubts.Add(a.req.Owner)
	}
	if a.has[i] && a.trying && a.token != 0 {
		a.record(i)
	}
	a.idle(i)
}

// record has the token recorded with a vote that came after it was sent to be confirmed. Such a vote may
// have recorded the guess, which was too far ahead for the others, and is above the token: the node would
// neither renew the grant nor release it. It is called under mu.
func (a *acquisition) record(i int) {
	a.busy[i]++
	q := a.l.question(a.l.scripts.confirm, a.req.Key, a.req.Owner, a.token.String(), a.cast[i])
	a.l.nodes[i].ask(q, func(answer) {
		a.mu.Lock()
		defer a.mu.Unlock()
		a.idle(i)
	})
}

// idle notes that a request to a node is over. It is called under mu.
func (a *acquisition) idle(i int) {
	a.busy[i]--
	a.settle(i)
	a.stir()
}

// stir has quiet look again.
func (a *acquisition) stir() {
	select {
	case a.wake <- struct{}{}:
	default:
	}
}

// settle gives a node's vote back when it is of no use, without waiting. A busy node's turn
// comes when it is idle. It is called under mu.
func (a *acquisition) settle(i int) {
	if a.busy[i] == 0 && !a.trying && (a.has[i] || a.failed && a.doubt[i]) {
		a.giveBack(i)
	}
}

// yield gives back the votes that have come in. It may ask again, unless it has failed: then nobody has
// to undo what it may yet get.
func (a *acquisition) yield(failed bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.trying, a.failed = false, failed
	for i := range a.l.nodes {
		a.settle(i)
	}
}

// giveBack releases the vote that a has on a node. Once a has failed, and it is in doubt what it has, it
// releases whatever that is, and a mark refuses what comes late: of a only, since the owner may have a
// grant by another acquisition, or get one.
func (a *acquisition) giveBack(i int) {
	which := end{vote: a.cast[i]}
	if a.failed && a.doubt[i] {
		which, a.doubt[i] = end{mark: storekit.UndoLife, always: true, by: a.id}, false
	}
	a.has[i] = false
	a.back[i]++
	a.l.nodes[i].ask(a.l.end(a.grant(0, time.Time{}), which), func(answer) {
		a.mu.Lock()
		defer a.mu.Unlock()
		a.back[i]--
		a.stir()
	})
}

// quiet returns when only silent nodes owe an answer: rivals get what has been given back before it
// is asked for again. Who owes one for longer than the timeout is silent.
func (a *acquisition) quiet(ctx context.Context) {
	timer := time.NewTimer(a.l.timeout)
	defer timer.Stop()
	for late := false; a.noise(late); {
		select {
		case <-a.wake:
		case <-timer.C:
			late = true
		case <-ctx.Done():
			return
		case <-a.l.closed.Done():
			return
		}
	}
}

func (a *acquisition) noise(late bool) (some bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for i, n := range a.l.nodes {
		busy := a.busy[i]+a.back[i] > 0
		if busy && late {
			n.silent.Store(true)
		}
		some = some || busy && !n.silent.Load()
	}
	return some
}
