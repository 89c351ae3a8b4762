package dynamo

import (
	"context"
	"sync"

	"github.com/seed-215fdefa/lock"
)

// undo ends whatever owner has on the key, if anything, and refuses what it has asked for
// and may come late: it raises the barrier above every token that a blind write of the
// owner can have, which changes the item for an informed one.
func (l *Locker) undo(ctx context.Context, g lock.Grant) error {
	err := l.repeat(ctx, func(ctx context.Context, _ int) error {
		it, err := l.read(ctx, g.Key, true, maxAttempt)
		for err == nil && it != nil {
			var m moment
			if m, err = l.now(ctx); err == nil {
				_, it, err = l.write(ctx, g.Key, composeUndo(it, g.Owner, m), maxAttempt)
			}
		}
		return err
	})
	if err == nil {
		l.lines.released(g.Key)
	}
	return err
}

func composeUndo(it *item, owner string, m moment) *update {
	u := newUpdate()
	u.as(it)
	barrier := max(lock.Token(m.upper), it.barrier()) + 1
	h := it.of(owner)
	switch {
	case it.writer != nil && h == nil:
		u.set(attrFloor, num(barrier))
	case h != nil && !h.shared:
		u.open(it, barrier)
		u.remove(attrHolder, attrFloor)
	default:
		u.open(it, barrier)
		if h != nil {
			u.removeHolder(it, *h)
		}
	}
	if it.intent.owner == owner {
		u.remove(attrIntent)
	}
	return u
}

// settled remembers owners of whom the table certainly has nothing, and from whom nothing
// is under way, so that their undo costs nothing. It forgets the oldest beyond some: then
// it costs a read and a write.
type settled struct {
	mu     sync.Mutex // guards the rest
	owners map[string]struct{}
	order  []string
}

const maxSettled = 1024

func (s *settled) add(owner string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.owners == nil {
		s.owners = make(map[string]struct{})
	}
	if len(s.order) == maxSettled {
		delete(s.owners, s.order[0])
		s.order = append(s.order[:0], s.order[1:]...)
	}
	s.owners[owner] = struct{}{}
	s.order = append(s.order, owner)
}

func (s *settled) take(owner string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, ok := s.owners[owner]
	delete(s.owners, owner)
	return ok
}
