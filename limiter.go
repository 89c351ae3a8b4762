package lock

import (
	"sync/atomic"
	"time"
)

const (
	// maxYoung is how many of the engine's own calls run at once, if all are answered soon.
	maxYoung = 256
	// youngFor is how long a call counts: a store that hangs on some keys, as a cluster does
	// that has lost a part, must not delay the renewals of others.
	youngFor = 25 * time.Millisecond
)

// limiter bounds how many calls run at once: at most maxYoung, not counting those that have
// been in the store for youngFor. A store that answers is thus not flooded, and one that
// hangs on many keys keeps no other waiting.
type limiter struct {
	young int     // calls that count
	slots []*slot // in the order of their begin; may have some that do not count any more
}

// slot is one call's in a limiter.
type slot struct {
	until  time.Duration // when it stops to count
	counts bool
	// inStore: the store has been asked and has not answered. Else the call's goroutine
	// waits for a processor, and more of them would be no help: without this, 100,000 leases
	// on a starved machine had 3,000 goroutines.
	inStore atomic.Bool
}

// begin counts a call.
func (m *limiter) begin(s *slot, now time.Duration) {
	s.until, s.counts = now+youngFor, true
	m.young++
	m.slots = append(m.slots, s)
}

// end is the call's having returned.
func (m *limiter) end(s *slot) {
	if s.counts {
		s.counts = false
		m.young--
	}
}

// full reports whether no call may begin now.
func (m *limiter) full(now time.Duration) bool {
	for len(m.slots) > 0 {
		s := m.slots[0]
		if s.counts && (s.until > now || !s.inStore.Load()) {
			break
		}
		m.end(s)
		m.slots[0] = nil
		m.slots = m.slots[1:]
	}
	return m.young >= maxYoung
}

// freeAt is when to look again whether a full limiter has room.
func (m *limiter) freeAt(now time.Duration) time.Duration {
	return max(m.slots[0].until, now+time.Millisecond)
}
