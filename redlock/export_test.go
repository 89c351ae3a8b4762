package redlock

import (
	"time"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/internal/rediskit"
)

// ForgetClocks makes the next guess of a token a bad one.
func (l *Locker) ForgetClocks() { l.AdvanceClocks(-time.Hour) }

// AdvanceClocks makes the next guess of a token that much too high.
func (l *Locker) AdvanceClocks(d time.Duration) { l.ahead.Add(d.Microseconds()) }

// Scripts are those in the files of the same names.
func (l *Locker) Scripts() map[string]*rediskit.Script {
	s := l.scripts
	return map[string]*rediskit.Script{
		"join": s.join, "activate": s.activate, "lock": s.lock, "confirm": s.confirm, "adopt": s.adopt,
		"release": s.release, "force": s.force, "renew": s.renew, "rejoin": s.rejoin,
	}
}

// Keys are the names of what a node knows of a lock, that of the node itself first.
func (l *Locker) Keys(key string) []string { return l.keys(key) }

// Owes tells whether node i is out of reach of a release that it must still get.
func (l *Locker) Owes(i int) bool { return l.nodes[i].silent.Load() && !l.Idle(i) }

// Idle tells whether nothing is under way to node i.
func (l *Locker) Idle(i int) bool { return l.nodes[i].inFlight.Load() == 0 }

// Silence has node i count as one that has not answered lately.
func (l *Locker) Silence(i int) { l.nodes[i].silent.Store(true) }

// MaxSilent is how many calls to a node that is out of reach are under way at most.
const MaxSilent = maxSilent

// Owe sends node i a release of what nobody has, until the Locker is closed. It returns what is
// closed when there is no more asking.
func (l *Locker) Owe(i int) (over chan struct{}) {
	q := l.end(lock.Grant{Key: "k", Owner: "o"}, end{})
	q.until = time.Now().Add(time.Hour)
	over = make(chan struct{})
	l.nodes[i].ask(q, func(answer) { close(over) })
	return over
}

// How far a guess is ahead of the clocks, and may be.
const (
	Lead   = lead
	Window = window
)
