package redlock

import (
	"sync/atomic"
	"time"

	"github.com/seed-215fdefa/lock/internal/rediskit"
)

// ForgetClocks makes the next acquire do without a guess of its token.
func (l *Locker) ForgetClocks() {
	for _, n := range l.nodes {
		n.clock.ahead.Store(0)
	}
}

// AdvanceClocks makes the next guess of a token that much too high.
func (l *Locker) AdvanceClocks(d time.Duration) {
	for _, n := range l.nodes {
		n.clock.ahead.Add(d.Microseconds())
	}
}

// Scripts are those in the files of the same names.
func (l *Locker) Scripts() map[string]*rediskit.Script {
	s := l.scripts
	return map[string]*rediskit.Script{
		"join": s.join, "activate": s.activate, "confirm": s.confirm, "release": s.release,
		"renew": s.renew, "rejoin": s.rejoin,
	}
}

// Keys are the names of what a node knows of a lock, that of the node itself first.
func (l *Locker) Keys(key string) []string { return l.keys(key) }

// Owes tells whether node i is out of reach of a release that it must still get.
func (l *Locker) Owes(i int) bool { return l.nodes[i].owed.Load() > 0 }

// Idle tells whether nothing is under way to node i.
func (l *Locker) Idle(i int) bool { return l.nodes[i].inFlight.Load() == 0 }

// MaxOwed is how many releases a node that is out of reach may still get.
const MaxOwed = maxOwed

// Refuses is how many of n releases node i does not take on, while it is out of reach.
func (l *Locker) Refuses(i, n int) (refused int) {
	var over atomic.Int32
	for range n {
		before := over.Load()
		l.nodes[i].owe(l.ending("k", "o", 0, false, false), time.Now().Add(time.Hour), func(bool) { over.Add(1) })
		refused += int(over.Load() - before)
	}
	return refused
}

// Propose guesses a token for nodes whose clocks are so far ahead of this process; 0 is for
// one that is not known. It returns by which of these clocks the guess is; not ok is for none.
func Propose(quorum int, ahead ...time.Duration) (by time.Duration, ok bool) {
	var nodes []*node
	for _, a := range ahead {
		n := &node{}
		n.clock.ahead.Store(a.Microseconds())
		nodes = append(nodes, n)
	}
	for {
		before := ownMicros()
		p := propose(nodes, quorum)
		if p == 0 {
			return 0, false
		}
		if ownMicros()-before < 1000 { // else the machine is busy
			return (time.Duration(p-before)*time.Microsecond - lead).Truncate(10 * time.Millisecond), true
		}
	}
}

// How far a guess is ahead of the clocks, and may be.
const (
	Lead   = lead
	Window = window
)
