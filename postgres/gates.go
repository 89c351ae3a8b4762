package postgres

import (
	"context"
	"sync"
)

// gates let the callers of one key line up one at a time, in order of arrival. In the server
// they would do so anyway, since each locks the key's row; but there each would have a
// connection meanwhile, and releases and renewals would have to wait for both.
type gates struct {
	mu    sync.Mutex // guards byKey and the counts in it
	byKey map[string]*gate
}

type gate struct {
	inside chan struct{} // has room for one
	users  int           // inside or waiting
}

// enter returns when it is the caller's turn, which ends with leave, or when ctx ends.
func (g *gates) enter(ctx context.Context, key string) (leave func(), err error) {
	g.mu.Lock()
	if g.byKey == nil {
		g.byKey = make(map[string]*gate)
	}
	k := g.byKey[key]
	if k == nil {
		k = &gate{inside: make(chan struct{}, 1)}
		g.byKey[key] = k
	}
	k.users++
	g.mu.Unlock()
	select {
	case k.inside <- struct{}{}:
		return func() { <-k.inside; g.forget(key, k) }, nil
	case <-ctx.Done():
		g.forget(key, k)
		return nil, ctx.Err()
	}
}

func (g *gates) forget(key string, k *gate) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if k.users--; k.users == 0 {
		delete(g.byKey, key)
	}
}
