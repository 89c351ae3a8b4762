package storetest

import (
	"context"
	"maps"
	"time"

	"github.com/seed-215fdefa/lock"
)

// NoGrant is a grant of a key that nobody has.
var NoGrant = lock.Grant{Key: "k", Owner: "o", Token: 1, TTL: time.Second, Start: time.Now()}

// EveryCall has a call of each method of l, by name: those about a grant with g, the others
// for keys that nobody holds. more are the store's own.
func EveryCall(l interface {
	lock.Locker
	lock.Admin
}, g lock.Grant, more map[string]func(context.Context) error,
) map[string]func(context.Context) error {
	acquire := func(change func(*lock.Request)) func(context.Context) error {
		return func(ctx context.Context) error {
			req := Request("free")
			change(&req)
			_, err := l.Acquire(ctx, req)
			return err
		}
	}
	reader := g
	reader.Shared = true
	calls := map[string]func(context.Context) error{
		"Acquire":        acquire(func(*lock.Request) {}),
		"Acquire Wait":   acquire(func(r *lock.Request) { r.Wait = true }),
		"Acquire Lost":   acquire(func(r *lock.Request) { r.Lost = func(lock.LostReason) {} }),
		"Acquire Shared": acquire(func(r *lock.Request) { r.Shared = true }),
		"Renew":          func(ctx context.Context) error { _, err := l.Renew(ctx, g); return err },
		"Renew Shared":   func(ctx context.Context) error { _, err := l.Renew(ctx, reader); return err },
		"Release":        func(ctx context.Context) error { return l.Release(ctx, g) },
		"Release Shared": func(ctx context.Context) error { return l.Release(ctx, reader) },
		"undo":           func(ctx context.Context) error { return l.Release(ctx, lock.Grant{Key: "k", Owner: "o"}) },
		"Inspect":        func(ctx context.Context) error { _, err := l.Inspect(ctx, "k"); return err },
		"ForceRelease":   func(ctx context.Context) error { return l.ForceRelease(ctx, g.Key, g.Owner) },
		"List": func(ctx context.Context) (last error) {
			for _, err := range l.List(ctx, "") {
				last = err
			}
			return last
		},
	}
	maps.Copy(calls, more)
	return calls
}
