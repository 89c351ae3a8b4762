// Package custombackend is a store for package lock, written from docs/writing-a-store.md alone: for
// one process, with waiters that poll. It never forgets a key, since tokens must rise.
package custombackend

import (
	"cmp"
	"context"
	"maps"
	"sync"
	"time"

	"github.com/seed-215fdefa/lock"
)

// New returns an empty store.
func New() lock.Locker { return new(store) }

type store struct{ sync.Map } // key to *hold, which is replaced, never changed

type hold struct {
	lock.Holder // its Token counts after the end, too
	end         time.Time
}

func (h *hold) live() bool { return time.Now().Before(h.end) }

func (s *store) load(key string) *hold { h, _ := s.LoadOrStore(key, new(hold)); return h.(*hold) }

func (s *store) Capabilities() lock.Capabilities {
	return lock.Capabilities{Store: "syncmap", TokenSurvives: lock.SurvivesRelease | lock.SurvivesExpiry}
}

func (s *store) Acquire(ctx context.Context, req lock.Request) (lock.Grant, error) {
	if err := cmp.Or(lock.CheckRequest(req, s.Capabilities()), ctx.Err()); err != nil {
		return lock.Grant{}, err
	}
	return lock.Poll(ctx, req, 10*time.Millisecond, time.Second, func(ctx context.Context) (lock.Grant, error) {
		start, old := time.Now(), s.load(req.Key)
		h := lock.Holder{Owner: req.Owner, Token: old.Token + 1, Held: -1, Metadata: maps.Clone(req.Metadata)}
		if !old.live() && s.CompareAndSwap(req.Key, old, &hold{h, start.Add(req.TTL)}) { // grant and token in one step
			return lock.Grant{Key: req.Key, Owner: req.Owner, Token: h.Token, TTL: req.TTL, Start: start}, nil
		}
		record, err := s.Inspect(ctx, req.Key)
		return lock.Grant{}, &lock.HeldError{Record: record, Err: err}
	})
}

func (s *store) Renew(ctx context.Context, g lock.Grant) (lock.Grant, error) {
	g.Start = time.Now()
	return g, s.setEnd(ctx, g, g.Start.Add(g.TTL))
}

func (s *store) Release(ctx context.Context, g lock.Grant) error {
	return s.setEnd(ctx, g, time.Time{})
}

func (s *store) setEnd(ctx context.Context, g lock.Grant, end time.Time) error {
	for ctx.Err() == nil {
		old := s.load(g.Key)
		mine := old.live() && old.Owner == g.Owner && (old.Token == g.Token || g.Token == 0)
		switch {
		case !mine && g.Token != 0:
			return &lock.LostError{Token: g.Token}
		case !mine || s.CompareAndSwap(g.Key, old, &hold{old.Holder, end}):
			return nil // done, or there was nothing to undo
		}
	}
	return ctx.Err()
}

func (s *store) Inspect(ctx context.Context, key string) (lock.Record, error) {
	h := *s.load(key)
	r := lock.Record{Key: key, Token: h.Token}
	h.ExpiresIn, h.Metadata = time.Until(h.end), maps.Clone(h.Metadata)
	if h.live() {
		r.Holders, r.HolderCount = []lock.Holder{h.Holder}, 1
	}
	return r, cmp.Or(lock.CheckKey(key), ctx.Err())
}
