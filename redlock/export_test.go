package redlock

import (
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

// Propose guesses a token for nodes whose clocks are so far ahead of this process; 0 is for
// one that is not known. It returns how far ahead the guess is, or 0.
func Propose(quorum int, ahead ...time.Duration) time.Duration {
	var nodes []*node
	for _, a := range ahead {
		n := &node{}
		n.clock.ahead.Store(a.Microseconds())
		nodes = append(nodes, n)
	}
	before := ownMicros()
	p := propose(nodes, quorum)
	if p == 0 {
		return 0
	}
	return (time.Duration(p-before) * time.Microsecond).Truncate(10 * time.Second)
}

// How far a guess is ahead of the clocks, and may be.
const (
	Lead   = lead
	Window = window
)
