package postgres_test

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/internal/storetest"
	"github.com/seed-215fdefa/lock/postgres"
)

// TestKnownKey: who was granted a key before expects its row to be there, and no more than
// that. Whatever has become of it meanwhile counts.
func TestKnownKey(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		meanwhile func(t *testing.T, w world, other *process)
		refused   bool
	}{
		"nothing": {func(*testing.T, world, *process) {}, false},
		"pruned": {func(t *testing.T, w world, other *process) {
			w.age(t)
			n, err := other.Prune(storetest.Bounded(t), 0)
			require.NoError(t, err)
			require.Equal(t, 1, n)
		}, false},
		"held": {func(t *testing.T, _ world, other *process) {
			storetest.Acquire(t, other, storetest.Request("k"))
		}, true},
		"read": {func(t *testing.T, _ world, other *process) {
			storetest.Acquire(t, other, storetest.Shared(storetest.Request("k")))
		}, true},
		"expired": {func(t *testing.T, _ world, other *process) {
			storetest.Acquire(t, other, storetest.Lasting(storetest.Request("k"), 10*time.Millisecond))
			ends(t, other, "k")
		}, false},
	} {
		for _, wait := range []bool{false, true} {
			t.Run(fmt.Sprint(name, " wait ", wait), func(t *testing.T) {
				t.Parallel()
				w := sharedWorld(t)
				l, other := w.open(t), w.open(t)
				first := storetest.Acquire(t, l, storetest.Request("k"))
				storetest.Release(t, l, first)
				c.meanwhile(t, w, other)
				req := storetest.Request("k")
				switch req.Wait = wait; {
				case !c.refused:
					require.Greater(t, storetest.Acquire(t, l, req).Token, first.Token)
				case wait:
					storetest.Waits(t, l, req)
				default:
					require.NotEmpty(t, storetest.Refused(t, l, req).Holders)
				}
			})
		}
	}
}

// TestKnownKeyAnew: nothing of a grant is from the one before.
func TestKnownKeyAnew(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	l, other := w.open(t), w.open(t)
	for _, before := range []*process{l, other} {
		req := storetest.Request("k")
		req.Metadata = map[string]string{"who": "somebody else"}
		storetest.Release(t, before, storetest.Acquire(t, before, req))
	}
	w.age(t)
	req, lost := storetest.Lasting(storetest.Request("k"), time.Hour), make(chan lock.LostReason, 1)
	req.Metadata = map[string]string{"who": "me"}
	req.Lost = func(r lock.LostReason) { lost <- r }
	before := value[int64](t, w, "SELECT (date_part('epoch', clock_timestamp()) * 1000000)::bigint")
	g := storetest.Acquire(t, l, req)
	require.GreaterOrEqual(t, int64(g.Token), before, "the token is the time")
	holders := storetest.Inspect(t, other, "k").Holders
	require.Len(t, holders, 1)
	require.Equal(t, req.Owner, holders[0].Owner)
	require.Equal(t, g.Token, holders[0].Token)
	require.Equal(t, req.Metadata, holders[0].Metadata)
	require.GreaterOrEqual(t, holders[0].ExpiresIn, g.TTL-time.Since(g.Start), "it ends before its holder thinks so")
	require.NoError(t, other.ForceRelease(storetest.Bounded(t), "k", req.Owner))
	select {
	case r := <-lost:
		require.Equal(t, lock.ReasonForced, r)
	case <-time.After(storetest.Patience):
		require.FailNow(t, "the loss was not told")
	}
}

// TestKnownKeyStart: the reply that brings the grant may be late. Start is from before the request
// all the same.
func TestKnownKeyStart(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	l, other := w.open(t, "default_query_exec_mode=exec"), w.open(t)
	l.warm(t)
	storetest.Release(t, l, storetest.Acquire(t, l, storetest.Request("k")))
	heal := l.net.holdReplies()
	granted := make(chan lock.Grant, 1)
	go func() { granted <- storetest.Acquire(t, l, storetest.Request("k")) }()
	storetest.Eventually(t, "the grant", func() bool { return len(storetest.Inspect(t, other, "k").Holders) == 1 })
	seen := time.Now()
	heal()
	require.True(t, (<-granted).Start.Before(seen))
}

// sent counts the statements of a pool.
type sent struct {
	mu sync.Mutex // guards n
	n  int
}

func (s *sent) TraceQueryStart(ctx context.Context, _ *pgx.Conn, _ pgx.TraceQueryStartData) context.Context {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.n++
	return ctx
}

func (s *sent) TraceQueryEnd(context.Context, *pgx.Conn, pgx.TraceQueryEndData) {}

func (s *sent) take() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := s.n
	s.n = 0
	return n
}

// TestStatements: an uncontended acquire, a renewal and a release are one statement each, be
// the key new or known. One whose row was pruned costs a second.
func TestStatements(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	config, err := pgxpool.ParseConfig(w.url())
	require.NoError(t, err)
	var n sent
	config.ConnConfig.Tracer = &n
	l := postgres.New(poolWith(t, config), w.options...)
	defer func() { require.NoError(t, l.Close()) }()
	for i, c := range []struct {
		meanwhile string
		acquires  int
	}{
		{"", 1},
		{"", 1},
		{"UPDATE %s SET owner = 'dead', expires = now() - interval '1 s'", 1},
		{"DELETE FROM %s", 2},
		{"", 1},
	} {
		if c.meanwhile != "" {
			w.exec(t, fmt.Sprintf(c.meanwhile, w.table("")))
		}
		g := storetest.Acquire(t, l, storetest.Request("k"))
		require.Equal(t, c.acquires, n.take(), "round %d", i)
		g = storetest.Renew(t, l, g)
		require.Equal(t, 1, n.take())
		storetest.Release(t, l, g)
		require.Equal(t, 1, n.take())
	}
	require.Zero(t, value[int](t, w, "SELECT count(*) FROM "+w.table("")+" WHERE owner IS NOT NULL"))
}
