package redlock

import "time"

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

// Scripts are the names of those that are sent to a lock's nodes, by the names of their files.
func (l *Locker) Scripts() map[string]string {
	return map[string]string{"release": l.scripts.release.SHA, "renew": l.scripts.renew.SHA, "confirm": l.scripts.confirm.SHA}
}

// How far a guess is ahead of the clocks, and may be.
const (
	Lead   = lead
	Window = window
)
