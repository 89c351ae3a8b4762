package memory

import "time"

// Size is how many keys and marks the store of l has, and how many waiters.
func Size(l *Locker) (keys, marks, waiters int) {
	s := l.store
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, e := range s.keys {
		if e.line != nil {
			waiters += len(e.line.owners)
		}
	}
	return len(s.keys), len(s.forced), waiters
}

// Forget is the loss of all that the store of l knows, its last token too. Who waits
// notices, and lines up again.
func Forget(l *Locker) {
	s := l.store
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, e := range s.keys {
		for e.line != nil && e.line.head != nil {
			e.line.remove(e.line.head)
		}
		if e.line != nil {
			e.line.timer.Stop()
		}
	}
	for key := range s.keys {
		s.touched(key)
	}
	clear(s.keys)
	clear(s.forced)
	s.ring, s.last = nil, 0
}

// Timer is that of key's line, or nil.
func Timer(l *Locker, key string) *time.Timer {
	s := l.store
	s.mu.Lock()
	defer s.mu.Unlock()
	if e := s.keys[key]; e != nil && e.line != nil {
		return e.line.timer
	}
	return nil
}

// Stall holds the store's mutex until resume is called.
func Stall(l *Locker) (resume func()) {
	l.store.mu.Lock()
	return l.store.mu.Unlock
}
