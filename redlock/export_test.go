package redlock

// ForgetClocks makes the next acquire do without a guess of its token.
func (l *Locker) ForgetClocks() {
	for _, n := range l.nodes {
		n.clock.ahead.Store(0)
	}
}
