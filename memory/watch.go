package memory

import (
	"context"

	"github.com/seed-215fdefa/lock"
)

// Watch implements [lock.Watcher]. If nobody waits for an expiry, Watch reports it only when
// somebody next asks for the key, or a sweep finds it.
func (l *Locker) Watch(ctx context.Context, key string, changed func()) error {
	if err := lock.CheckKey(key); err != nil {
		return err
	}
	if err := l.usable(ctx); err != nil {
		return err
	}
	told := l.store.watch(key)
	defer l.store.unwatch(key, told)
	for {
		changed()
		select {
		case <-told:
		case <-ctx.Done():
			return ctx.Err()
		case <-l.closed:
			return lock.ErrClosed
		}
	}
}

// watch returns a channel that gets a message when key has changed since the last.
func (s *store) watch(key string) chan struct{} {
	told := make(chan struct{}, 1)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.watches[key] == nil {
		s.watches[key] = make(map[chan struct{}]struct{})
	}
	s.watches[key][told] = struct{}{}
	return told
}

func (s *store) unwatch(key string, told chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.watches[key], told)
	if len(s.watches[key]) == 0 {
		delete(s.watches, key)
	}
}

// touched tells those who watch key. s.mu is held.
func (s *store) touched(key string) {
	if len(s.watches) == 0 {
		return
	}
	for told := range s.watches[key] {
		select {
		case told <- struct{}{}:
		default:
		}
	}
}
