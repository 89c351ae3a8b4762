package httplock

import (
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"net/http"
	"strings"

	"github.com/seed-215fdefa/lock"
)

// WithCaller binds owners to callers: nobody renews, releases or undoes another caller's grant,
// even if a record shows its owner. f returns the name of a request's caller; "" binds nothing.
// f is called concurrently. Default: whoever knows an owner may act for it.
//
// In the store, the handler appends ten characters to each owner. They depend only on the
// caller's name. So a caller's owner has at most 54 characters, replicas need not agree on
// anything, and a renamed caller loses its grants. Records show a caller its own owners as it
// sent them, and others' as the store has them.
func WithCaller(f func(*http.Request) string) HandlerOption {
	return func(h *Handler) { h.caller = f }
}

// scope is what the owners of a caller end with in the store. Nobody can send an owner that ends
// with another's scope there, since its own is put behind it.
type scope string

const scopeHash = 9 // characters: 54 bits, for names that the operator chooses

func (h *Handler) scope(r *http.Request) scope {
	if h.caller == nil {
		return ""
	}
	name := h.caller(r)
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

// view changes b into the record as the caller shall see it.
func (s scope) view(b *recordBody) *recordBody {
	if s == "" || b == nil {
		return b
	}
	for i := range b.Holders {
		b.Holders[i].Owner = s.cut(b.Holders[i].Owner)
	}
	for i := range b.Waiters {
		w := &b.Waiters[i]
		w.Owner = s.cut(w.Owner)
		under := make([]string, len(w.Under)) // that of the record is the store's
		for j, o := range w.Under {
			under[j] = s.cut(o)
		}
		w.Under = under
	}
	return b
}
