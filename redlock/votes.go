package redlock

import (
	"context"
	"errors"
	"time"
)

// What an owner has on the nodes while it tries: asking for votes, and giving them back.

// poll asks for votes. A node that has not answered the last request of this owner is left
// out: requests take different connections, and if one that gives a vote back were
// executed after one that asks for it again, the vote would be counted and not be there.
func (a *acquisition) poll(q question, rule func(*ballot) bool, read func(int, answer) vote, late func(int, vote)) *ballot {
	b := a.l.newBallot(rule, func(i int, r answer) vote {
		v := read(i, r)
		if !errors.Is(r.err, errBusy) {
			a.note(i, v)
		}
		return v
	})
	b.late = late
	a.mu.Lock()
	a.trying = true
	out := a.busy
	for i := range b.nodes {
		a.busy[i] = true
	}
	a.mu.Unlock()
	for i, n := range b.nodes {
		if out[i] {
			b.add(i, answer{err: errBusy})
		} else {
			n.ask(q, func(r answer) { b.add(i, r) })
		}
	}
	return b
}

// note remembers what there is to give back, or gives it back. A vote that comes after the
// decision is part of the grant, if that is what came of it.
func (a *acquisition) note(i int, v vote) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.idle(i)
	a.has[i] = v == yes || v == blank
	a.doubt[i] = a.doubt[i] || v == unknown
	if a.failed && (a.has[i] || a.doubt[i]) || !a.trying && a.has[i] {
		a.giveBack(i)
	}
}

// yield gives back the votes that have come in, without waiting. The owner may come again.
func (a *acquisition) yield() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.trying = false
	for i, has := range a.has {
		if has && !a.busy[i] {
			a.giveBack(i)
		}
	}
}

// undo takes back what the owner has or may yet get, in the background. Acquire does it when
// it fails, since nobody else has to after ErrHeld.
func (a *acquisition) undo() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.failed = true
	for i := range a.has {
		if (a.has[i] || a.doubt[i]) && !a.busy[i] {
			a.giveBack(i)
		}
	}
}

// giveBack releases what the owner has on a node, which must not be busy. Once the owner has
// failed, a mark refuses what comes late where it is in doubt whether it has anything.
func (a *acquisition) giveBack(i int) {
	mark := time.Duration(0)
	if a.doubt[i] && a.failed {
		mark = markLife
	}
	a.has[i], a.busy[i] = false, true
	q := a.l.question(a.l.scripts.release, a.req.Key, a.req.Owner, 0, mark.Milliseconds(), a.shared())
	n, until := a.l.nodes[i], time.Now().Add(a.req.TTL)
	done := func() {
		a.mu.Lock()
		defer a.mu.Unlock()
		a.idle(i)
	}
	n.ask(q, func(r answer) {
		if readFlag(i, r) == unknown {
			n.silent.Store(true) // nobody waits for it
			n.owe(q, until, done)
			return
		}
		done()
	})
}

// idle is called under mu.
func (a *acquisition) idle(i int) {
	a.busy[i] = false
	select {
	case a.wake <- struct{}{}:
	default:
	}
}

// quiet returns when no node is busy but silent ones. What is busy for longer than the
// timeout is silent.
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
		case <-a.l.closing:
			return
		}
	}
}

func (a *acquisition) noise(late bool) (some bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for i, n := range a.l.nodes {
		if a.busy[i] && late {
			n.silent.Store(true)
		}
		some = some || a.busy[i] && !n.silent.Load()
	}
	return some
}
