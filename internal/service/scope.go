package service

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"slices"
	"strings"

	"github.com/seed-215fdefa/lock"
)

// scope is what the owners of a caller end with in the store. Nobody can send an owner that ends
// with another's scope there, since its own is put behind it.
type scope string

const scopeHash = 9 // characters: 54 bits, for names that the operator chooses

func (s *Server) scope(ctx context.Context) scope {
	if s.Caller == nil {
		return ""
	}
	name := s.Caller(ctx)
	if name == "" {
		return ""
	}
	sum := sha256.Sum256([]byte(name))
	return scope("-" + base64.RawURLEncoding.EncodeToString(sum[:])[:scopeHash])
}

// add is the owner in the store. One that is missing stays so.
func (s scope) add(owner string) string {
	if owner == "" {
		return ""
	}
	return owner + string(s)
}

// check returns an error if an owner has no room for s.
func (s scope) check(owners ...string) error {
	for _, o := range owners {
		if most := lock.MaxOwnerLen - len(s); s != "" && len(o) > most {
			return fmt.Errorf("%w: owner %.80q has %d bytes: at this service an owner has 1 to %d", lock.ErrInvalid, o, len(o), most)
		}
	}
	return nil
}

// addAll is add for each.
func (s scope) addAll(owners []string) []string {
	owners = slices.Clone(owners)
	for i, o := range owners {
		owners[i] = s.add(o)
	}
	return owners
}

// cut is the owner as the caller knows it.
func (s scope) cut(owner string) string {
	if own := strings.TrimSuffix(owner, string(s)); own != "" {
		return own
	}
	return owner
}

// view is the record as the caller shall see it.
func (s scope) view(r lock.Record) lock.Record {
	if s == "" {
		return r
	}
	r.Holders, r.Waiters = slices.Clone(r.Holders), slices.Clone(r.Waiters) // those of r are the store's
	for i := range r.Holders {
		r.Holders[i].Owner = s.cut(r.Holders[i].Owner)
	}
	for i := range r.Waiters {
		w := &r.Waiters[i]
		w.Owner, w.Under = s.cut(w.Owner), slices.Clone(w.Under)
		for j, o := range w.Under {
			w.Under[j] = s.cut(o)
		}
	}
	return r
}
