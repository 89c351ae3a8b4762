// Package tiers sends classes of keys to different stores: payments to one that survives a
// failover, carts to one that is fast.
//
//	client := lock.New(tiers.New(
//		tiers.Prefix("payment:", zk),
//		tiers.Prefix("cart:", rdb),
//	))
//
// A key belongs to the tier with the longest prefix that it begins with. A key that begins with
// no tier's prefix is ErrInvalid, unless there is a tier with the empty prefix ([Default]). Keys
// go to the stores unchanged.
//
// A Locker declares only what all its stores have: their common capabilities, the largest MinTTL
// and ExpirySlack, and the faults that all their promises survive. It refuses a request for
// more, even if the key's own store could serve it: whether a program works must not depend on
// the names of its keys.
//
// All processes must have the same tiers. Where they differ, a key may be held twice, once in
// each store. The same goes for moving a prefix to another store: see docs/migrating.md.
package tiers

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"reflect"
	"slices"
	"strings"

	"github.com/seed-215fdefa/lock"
)

// Tier is a class of keys and their store.
type Tier struct {
	prefix string
	store  lock.Locker
}

// Prefix returns the tier of the keys that begin with prefix, at store.
func Prefix(prefix string, store lock.Locker) Tier { return Tier{prefix, store} }

// Default returns the tier of the keys that no other tier has, at store.
func Default(store lock.Locker) Tier { return Prefix("", store) }

// Locker is a [lock.Locker] of several stores. It is safe for concurrent use.
//
// It implements [lock.Watcher]; Watch returns ErrUnsupported if the key's store does not.
// [lock.As] finds a [lock.Admin] in it if every store has one.
type Locker struct {
	tiers []Tier // the longest prefix first
	caps  lock.Capabilities
	err   error // what is wrong with New's arguments
}

var (
	_ lock.Locker  = (*Locker)(nil)
	_ lock.Watcher = (*Locker)(nil)
	_ lock.Admin   = admin{}
)

// New returns a Locker of tiers, in any order. Several tiers may share a store. Err and every
// call report an argument that is not valid: no tier at all, a nil store, a prefix given twice,
// or one longer than a key.
func New(tiers ...Tier) *Locker {
	l := &Locker{tiers: slices.Clone(tiers), err: check(tiers)}
	if l.err != nil {
		return l
	}
	slices.SortFunc(l.tiers, func(a, b Tier) int { return cmp.Compare(len(b.prefix), len(a.prefix)) })
	names := make([]string, len(tiers))
	l.caps = tiers[0].store.Capabilities()
	for i, t := range tiers {
		c := t.store.Capabilities()
		names[i] = c.Store
		l.caps = both(l.caps, c)
	}
	l.caps.Store = "tiers(" + strings.Join(names, ", ") + ")"
	return l
}

func check(tiers []Tier) error {
	if len(tiers) == 0 {
		return fmt.Errorf("%w: no tiers", lock.ErrInvalid)
	}
	seen := map[string]bool{}
	for _, t := range tiers {
		switch {
		case t.store == nil:
			return fmt.Errorf("%w: the store of prefix %q is nil", lock.ErrInvalid, t.prefix)
		case seen[t.prefix]:
			return fmt.Errorf("%w: prefix %q is given twice", lock.ErrInvalid, t.prefix)
		case t.prefix != "":
			if err := lock.CheckKey(t.prefix); err != nil {
				return fmt.Errorf("prefix: %w", err)
			}
		}
		seen[t.prefix] = true
	}
	return nil
}

// both is what two stores have.
func both(a, b lock.Capabilities) lock.Capabilities {
	a.Shared = a.Shared && b.Shared
	a.FIFO = a.FIFO && b.FIFO
	a.Push = a.Push && b.Push
	a.EarlyLoss = a.EarlyLoss && b.EarlyLoss
	a.Priority = a.Priority && b.Priority
	a.MinTTL = max(a.MinTTL, b.MinTTL)
	a.ExpirySlack = max(a.ExpirySlack, b.ExpirySlack)
	a.TokenSurvives &= b.TokenSurvives
	a.HoldSurvives &= b.HoldSurvives
	return a
}

// Err returns what is wrong with New's arguments, or nil.
func (l *Locker) Err() error { return l.err }

// route returns key's store.
func (l *Locker) route(key string) (lock.Locker, error) {
	if l.err != nil {
		return nil, l.err
	}
	if err := lock.CheckKey(key); err != nil {
		return nil, err
	}
	i := l.tier(key)
	if i < 0 {
		return nil, fmt.Errorf("%w: key %q begins with none of the prefixes %s", lock.ErrInvalid, key, l.prefixes())
	}
	return l.tiers[i].store, nil
}

// tier is the index of key's tier, or -1.
func (l *Locker) tier(key string) int {
	return slices.IndexFunc(l.tiers, func(t Tier) bool { return strings.HasPrefix(key, t.prefix) })
}

func (l *Locker) prefixes() string {
	quoted := make([]string, len(l.tiers))
	for i, t := range l.tiers {
		quoted[i] = fmt.Sprintf("%q", t.prefix)
	}
	slices.Sort(quoted)
	return strings.Join(quoted, ", ")
}

// Acquire implements [lock.Locker].
func (l *Locker) Acquire(ctx context.Context, req lock.Request) (lock.Grant, error) {
	store, err := l.route(req.Key)
	if err == nil {
		err = lock.CheckRequest(req, l.caps)
	}
	if err != nil {
		return lock.Grant{}, err
	}
	if !l.caps.EarlyLoss {
		req.Lost = nil
	}
	return store.Acquire(ctx, req)
}

// Renew implements [lock.Locker].
func (l *Locker) Renew(ctx context.Context, g lock.Grant) (lock.Grant, error) {
	store, err := l.route(g.Key)
	if err != nil {
		return lock.Grant{}, err
	}
	return store.Renew(ctx, g)
}

// Release implements [lock.Locker].
func (l *Locker) Release(ctx context.Context, g lock.Grant) error {
	store, err := l.route(g.Key)
	if err != nil {
		return err
	}
	return store.Release(ctx, g)
}

// Inspect implements [lock.Locker].
func (l *Locker) Inspect(ctx context.Context, key string) (lock.Record, error) {
	store, err := l.route(key)
	if err != nil {
		return lock.Record{}, err
	}
	return store.Inspect(ctx, key)
}

// Capabilities implements [lock.Locker].
func (l *Locker) Capabilities() lock.Capabilities { return l.caps }

// Watch implements [lock.Watcher].
func (l *Locker) Watch(ctx context.Context, key string, changed func()) error {
	store, err := l.route(key)
	if err != nil {
		return err
	}
	w, ok := lock.As[lock.Watcher](store)
	if !ok {
		return fmt.Errorf("%w: store %s cannot watch", lock.ErrUnsupported, store.Capabilities().Store)
	}
	return w.Watch(ctx, key, changed)
}

// Close closes all stores that have a method Close() error, each once, and joins their errors.
// It does not close the stores' own clients.
func (l *Locker) Close() error {
	var errs []error
	var closed []any
	for _, t := range l.tiers {
		c, ok := t.store.(io.Closer)
		if !ok {
			continue
		}
		if reflect.TypeOf(c).Comparable() {
			if slices.Contains(closed, any(c)) {
				continue
			}
			closed = append(closed, c)
		}
		errs = append(errs, c.Close())
	}
	return errors.Join(errs...)
}

// Unwrap is for [lock.As]. It returns a [lock.Admin] over all stores, which reports what is wrong
// with New's arguments, or nil if one of the stores has none. It does not lead to the stores
// themselves.
func (l *Locker) Unwrap() lock.Locker {
	a := admin{Locker: l, l: l}
	if l.err != nil {
		return a
	}
	for _, t := range l.tiers {
		of, ok := lock.As[lock.Admin](t.store)
		if !ok {
			return nil
		}
		a.of = append(a.of, of)
	}
	return a
}

// admin is l where all stores have a [lock.Admin]. It has no Unwrap, at which lock.As would go
// on for ever.
type admin struct {
	lock.Locker
	l  *Locker
	of []lock.Admin // by tier
}

// List yields the records of each tier's own keys: a store may have others, such as those of a
// longer prefix that is another tier's.
func (a admin) List(ctx context.Context, prefix string) iter.Seq2[lock.Record, error] {
	return func(yield func(lock.Record, error) bool) {
		if a.l.err != nil {
			yield(lock.Record{}, a.l.err)
			return
		}
		for i, t := range a.l.tiers {
			within := prefix
			if strings.HasPrefix(t.prefix, prefix) {
				within = t.prefix
			} else if !strings.HasPrefix(prefix, t.prefix) {
				continue
			}
			for rec, err := range a.of[i].List(ctx, within) {
				if err == nil && a.l.tier(rec.Key) != i {
					continue
				}
				if !yield(rec, err) || err != nil {
					return
				}
			}
		}
	}
}

// ForceRelease implements [lock.Admin].
func (a admin) ForceRelease(ctx context.Context, key, owner string) error {
	if _, err := a.l.route(key); err != nil {
		return err
	}
	return a.of[a.l.tier(key)].ForceRelease(ctx, key, owner)
}
