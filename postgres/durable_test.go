package postgres_test

import (
	"context"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/seed-215fdefa/lock/internal/storetest"
	"github.com/seed-215fdefa/lock/postgres"
)

// lazy is for a server whose commits are not on disk when it acknowledges them.
var lazy = []string{"-c", "synchronous_commit=off", "-c", "wal_writer_delay=10s"}

// TestRestartAfterRenewal: a renewal that was acknowledged is there after a crash, else the
// lock would be free before its holder thinks so.
func TestRestartAfterRenewal(t *testing.T) {
	t.Parallel()
	for _, shared := range []bool{false, true} {
		w := ownWorld(t, lazy...)
		a, b := w.open(t), w.open(t)
		req := storetest.Request("k")
		req.Shared = shared
		g := storetest.Acquire(t, a, req)
		g.TTL = time.Hour
		storetest.Renew(t, a, g)
		w.server.Kill()
		w.server.Start()
		storetest.Holds(t, b, g)
		require.Greater(t, storetest.Inspect(t, b, "k").Holders[0].ExpiresIn, 30*time.Minute)
	}
}

// TestRestartWithMixedSessions: that the commits of one connection are on disk says nothing
// about another's: somebody may have set it otherwise there.
func TestRestartWithMixedSessions(t *testing.T) {
	t.Parallel()
	w := ownWorld(t, "-c", "wal_writer_delay=10s")
	config, err := pgxpool.ParseConfig(w.url() + "&pool_max_conns=2")
	require.NoError(t, err)
	sessions := 0
	config.AfterConnect = func(ctx context.Context, c *pgx.Conn) error {
		if sessions++; sessions == 1 {
			return nil
		}
		_, err := c.Exec(ctx, "SET synchronous_commit = off")
		return err
	}
	p := poolWith(t, config)
	l := postgres.New(p, w.options...)
	defer func() { require.NoError(t, l.Close()) }()
	storetest.Acquire(t, l, storetest.Request("first"))
	busy, err := p.Acquire(storetest.Bounded(t))
	require.NoError(t, err)
	g := storetest.Acquire(t, l, storetest.Request("second"))
	busy.Release()
	require.Equal(t, 2, sessions)
	w.server.Kill()
	w.server.Start()
	storetest.Holds(t, w.open(t), g)
}
