package httplock_test

import (
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/httplock"
	"github.com/seed-215fdefa/lock/internal/storetest"
	"github.com/seed-215fdefa/lock/memory"
)

// callers starts a service that takes a bearer token for the caller's name, and returns what makes
// a Locker of a caller, and the store.
func callers(t *testing.T, opts ...httplock.HandlerOption) (as func(name string) *httplock.Locker, store *memory.Locker) {
	store = memory.New()
	opts = append(opts, httplock.WithCaller(func(r *http.Request) string {
		return r.Header.Get("Authorization")
	}))
	s := serve(t, func() lock.Locker { return store }, opts...)
	return func(name string) *httplock.Locker {
		l := httplock.New("http://"+s.Addr, httplock.WithBearerToken(name))
		t.Cleanup(func() { _ = l.Close() })
		return l
	}, store
}

// TestOwnersBelongToCallers has another caller, who knows owner and token, try to end a grant and a
// place in line.
func TestOwnersBelongToCallers(t *testing.T) {
	ctx := t.Context()
	as, store := callers(t)
	a, b := as("a"), as("b")
	g, err := a.Acquire(ctx, lock.Request{Key: "k", Owner: "alice", TTL: time.Minute})
	require.NoError(t, err)
	assert.Equal(t, "alice", g.Owner)
	rec, err := store.Inspect(ctx, "k")
	require.NoError(t, err)
	stored := rec.Holders[0].Owner
	assert.Regexp(t, `^alice-[\w-]{9}$`, stored)

	for _, owner := range []string{"alice", stored} {
		theirs := g
		theirs.Owner = owner
		_, err := b.Renew(ctx, theirs)
		assert.ErrorIs(t, err, lock.ErrLost, owner)
		assert.ErrorIs(t, b.Release(ctx, theirs), lock.ErrLost, owner)
		assert.NoError(t, b.Release(ctx, lock.Grant{Key: "k", Owner: owner}), "the undo finds nothing")
	}
	g, err = as("a").Renew(ctx, g) // another process of the same caller
	require.NoError(t, err)
	require.NoError(t, a.Release(ctx, g))
}

// TestLongOwnersAreRefused has no room left for what the service adds.
func TestLongOwnersAreRefused(t *testing.T) {
	ctx := t.Context()
	as, _ := callers(t)
	a, long := as("a"), strings.Repeat("o", 55)
	_, err := a.Acquire(ctx, lock.Request{Key: "k", Owner: long, TTL: time.Minute})
	assert.ErrorIs(t, err, lock.ErrInvalid)
	assert.ErrorContains(t, err, "55 bytes: at this service an owner has 1 to 54")
	_, err = a.Acquire(ctx, lock.Request{Key: "k", Owner: "o", TTL: time.Minute, Wait: true, Under: []string{long}})
	assert.ErrorIs(t, err, lock.ErrInvalid)
	_, err = a.Renew(ctx, lock.Grant{Key: "k", Owner: long, TTL: time.Minute, Token: 1})
	assert.ErrorIs(t, err, lock.ErrInvalid)
	assert.ErrorIs(t, a.Release(ctx, lock.Grant{Key: "k", Owner: long}), lock.ErrInvalid)
	assert.ErrorIs(t, a.ForceRelease(ctx, "k", long), lock.ErrLost, "a record may have shown it, of another caller")
	g, err := a.Acquire(ctx, lock.Request{Key: "k", Owner: long[1:], TTL: time.Minute})
	require.NoError(t, err)
	require.NoError(t, a.Release(ctx, g))
}

// TestRecordsShowCallersTheirOwn compares what two callers see of one line.
func TestRecordsShowCallersTheirOwn(t *testing.T) {
	ctx := t.Context()
	as, store := callers(t)
	a, b := as("a"), as("b")
	_, err := a.Acquire(ctx, lock.Request{Key: "k", Owner: "alice", TTL: time.Minute})
	require.NoError(t, err)
	var waits sync.WaitGroup
	defer waits.Wait()
	placed := make(chan struct{})
	waits.Go(func() {
		g, err := b.Acquire(ctx, lock.Request{
			Key: "k", Owner: "bob", TTL: time.Minute, Wait: true, Under: []string{"bert"},
			Waiting: func(rec lock.Record) {
				for _, h := range rec.Holders { // a late answer has none
					assert.Regexp(t, `^alice-`, h.Owner)
				}
				close(placed)
			},
		})
		assert.NoError(t, err)
		assert.Equal(t, "bob", g.Owner)
	})
	<-placed
	var rec lock.Record
	storetest.Eventually(t, "bob in line", func() bool { // on a starved machine he may be late, and line up again
		rec, err = a.Inspect(ctx, "k")
		return err == nil && len(rec.Waiters) == 1
	})
	assert.Equal(t, "alice", rec.Holders[0].Owner)
	assert.Regexp(t, `^bob-`, rec.Waiters[0].Owner)
	assert.Regexp(t, `^bert-`, rec.Waiters[0].Under[0])
	storetest.Eventually(t, "bob in a list", func() bool {
		for rec, err = range b.List(ctx, "") {
			require.NoError(t, err)
		}
		return len(rec.Waiters) == 1
	})
	assert.Regexp(t, `^alice-`, rec.Holders[0].Owner)
	assert.Equal(t, "bob", rec.Waiters[0].Owner)
	assert.Equal(t, []string{"bert"}, rec.Waiters[0].Under)
	_, err = a.Acquire(ctx, lock.Request{Key: "k", Owner: "anne", TTL: time.Minute})
	var held *lock.HeldError
	require.ErrorAs(t, err, &held)
	assert.Equal(t, "alice", held.Record.Holders[0].Owner)

	assert.ErrorIs(t, b.ForceRelease(ctx, "k", "alice"), lock.ErrLost, "for b that is an owner of its own")
	rec, err = store.Inspect(ctx, "k")
	require.NoError(t, err)
	require.NoError(t, a.ForceRelease(ctx, "k", "alice"), "as a's records show it")
	waits.Wait()
	rec, err = store.Inspect(ctx, "k")
	require.NoError(t, err)
	require.NoError(t, a.ForceRelease(ctx, "k", rec.Holders[0].Owner), "b's")
}

// TestObserver has each outcome told with what it was about.
func TestObserver(t *testing.T) {
	ctx := t.Context()
	var mu sync.Mutex
	var calls []httplock.Call
	as, _ := callers(t, httplock.WithObserver(func(_ *http.Request, c httplock.Call) {
		mu.Lock()
		defer mu.Unlock()
		calls = append(calls, c)
	}))
	last := func() httplock.Call { // the answer may be there before the call is told
		var c httplock.Call
		require.Eventually(t, func() bool {
			mu.Lock()
			defer mu.Unlock()
			if len(calls) == 0 {
				return false
			}
			c, calls = calls[0], calls[1:]
			return true
		}, storetest.Patience, time.Millisecond)
		assert.Positive(t, c.Elapsed)
		c.Elapsed = 0
		return c
	}
	a := as("")
	g, err := a.Acquire(ctx, lock.Request{Key: "k", Owner: "o", TTL: time.Minute})
	require.NoError(t, err)
	assert.Equal(t, httplock.Call{Action: "acquire", Key: "k", Owner: "o", Token: g.Token, Outcome: "ok"}, last())
	_, _ = a.Acquire(ctx, lock.Request{Key: "k", Owner: "p", TTL: time.Minute})
	assert.Equal(t, httplock.Call{Action: "acquire", Key: "k", Owner: "p", Outcome: "held"}, last())
	_, _ = a.Renew(ctx, g)
	assert.Equal(t, httplock.Call{Action: "renew", Key: "k", Owner: "o", Token: g.Token, Outcome: "ok"}, last())
	_ = a.Release(ctx, g)
	assert.Equal(t, httplock.Call{Action: "release", Key: "k", Owner: "o", Token: g.Token, Outcome: "ok"}, last())
	_ = a.Release(ctx, g)
	assert.Equal(t, "lost", last().Outcome)
	_ = a.ForceRelease(ctx, "k", "o")
	assert.Equal(t, httplock.Call{Action: "force", Key: "k", Owner: "o", Outcome: "lost"}, last())
	_, _ = a.Inspect(ctx, "k")
	assert.Equal(t, httplock.Call{Action: "inspect", Key: "k", Outcome: "ok"}, last())
	for _, err := range a.List(ctx, "pre") {
		t.Error("there is none", err)
	}
	assert.Equal(t, httplock.Call{Action: "list", Key: "pre", Outcome: "ok"}, last())
}
