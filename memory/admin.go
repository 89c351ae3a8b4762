package memory

import (
	"cmp"
	"context"
	"fmt"
	"iter"
	"maps"
	"slices"
	"strings"

	"github.com/seed-215fdefa/lock"
)

// List implements [lock.Admin]. Each record is a snapshot of its own moment. No mutex is held
// while the loop's body runs, so the body may use the store.
func (l *Locker) List(ctx context.Context, prefix string) iter.Seq2[lock.Record, error] {
	return func(yield func(lock.Record, error) bool) {
		for _, key := range l.store.names(prefix) {
			if err := l.usable(ctx); err != nil {
				yield(lock.Record{}, err)
				return
			}
			rec := l.inspect(key)
			if len(rec.Holders) > 0 && !yield(rec, nil) {
				return
			}
		}
		if err := l.usable(ctx); err != nil {
			yield(lock.Record{}, err)
		}
	}
}

func (s *store) names(prefix string) []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var keys []string
	for key := range s.keys {
		if strings.HasPrefix(key, prefix) {
			keys = append(keys, key)
		}
	}
	return keys
}

// ForceRelease implements [lock.Admin]. Request.Lost tells the holder. Its Renew and Release
// return a *LostError with reason Forced until the grant's TTL would have run out. A waiter that
// was handed the key, but has not returned from Acquire yet, lines up again.
func (l *Locker) ForceRelease(ctx context.Context, key, owner string) error {
	if err := lock.CheckGrant(lock.Grant{Key: key, Owner: owner}); err != nil {
		return err
	}
	if err := l.usable(ctx); err != nil {
		return err
	}
	s, now := l.store, l.store.now()
	var lost notices
	s.mu.Lock()
	err := s.force(key, owner, now, &lost)
	s.mu.Unlock()
	lost.tell()
	return err
}

func (s *store) force(key, owner string, now moment, lost *notices) error {
	e := s.refresh(key, now, lost)
	h := e.find(owner)
	if h == nil {
		return fmt.Errorf("%w: owner %q does not hold key %q", lock.ErrLost, owner, key)
	}
	if h.unclaimed == nil {
		s.remember(e, h, now)
	}
	lost.add(h, lock.ReasonForced)
	e.drop(h)
	s.touched(key)
	s.refresh(key, now, lost)
	return nil
}

// holders returns the owners of key's grants.
func (s *store) holders(key string) []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.keys[key]
	if e == nil {
		return nil
	}
	return append(slices.Collect(maps.Keys(e.more)), e.first.owner)
}

// record is what is known of key, whose entry is e or nil. It shows the first in line, and
// of the readers any: neither costs more where there are many. Its Metadata and
// Under are the store's own: see detached.
func (e *entry) record(key string, now moment) lock.Record {
	rec := lock.Record{Key: key}
	if e == nil {
		return rec
	}
	rec.Token, rec.HolderCount = e.top, 1+len(e.more)
	rec.Holders = make([]lock.Holder, 0, min(rec.HolderCount, lock.MaxRecord))
	rec.Holders = append(rec.Holders, e.first.holder(now))
	for _, h := range e.more {
		if len(rec.Holders) == lock.MaxRecord {
			break
		}
		rec.Holders = append(rec.Holders, h.holder(now))
	}
	slices.SortFunc(rec.Holders, func(a, b lock.Holder) int { return cmp.Compare(a.Token, b.Token) })
	if e.line == nil {
		return rec
	}
	rec.WaiterCount = len(e.line.owners)
	rec.Waiters = make([]lock.Waiter, 0, min(rec.WaiterCount, lock.MaxRecord))
	for w := e.line.head; w != nil && len(rec.Waiters) < lock.MaxRecord; w = w.next {
		rec.Waiters = append(rec.Waiters, lock.Waiter{
			Owner: w.req.Owner, Shared: w.req.Shared,
			Waited: now.since(w.since), Metadata: w.req.Metadata, Under: w.req.Under,
		})
	}
	return rec
}

func (h *hold) holder(now moment) lock.Holder {
	return lock.Holder{
		Owner: h.owner, Token: h.token, Shared: h.shared,
		Held: now.since(h.start), ExpiresIn: max(0, h.expires-now.at), Metadata: h.metadata,
	}
}

// detached gives rec copies of its maps and slices. The store never changes what it has, so
// this needs no mutex.
func detached(rec lock.Record) lock.Record {
	for i := range rec.Holders {
		rec.Holders[i].Metadata = maps.Clone(rec.Holders[i].Metadata)
	}
	for i := range rec.Waiters {
		w := &rec.Waiters[i]
		w.Metadata, w.Under = maps.Clone(w.Metadata), slices.Clone(w.Under)
	}
	return rec
}
