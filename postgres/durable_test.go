package postgres_test

import (
	"context"
	"crypto/rand"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/internal/storetest"
	"github.com/seed-215fdefa/lock/postgres"
)

// lazy is for a server whose commits are not on disk when it acknowledges them.
var lazy = []string{"-c", "synchronous_commit=off", "-c", "wal_writer_delay=10s"}

// TestRestartAfterEach: whatever was acknowledged last before a crash is there after it, but
// for releases: a grant, and a renewal, without which the lock would be free before its
// holder thinks so; and that something was undone or ended by force.
func TestRestartAfterEach(t *testing.T) {
	t.Parallel()
	w := ownWorld(t, lazy...)
	a, b := w.open(t), w.open(t)
	acquires := func(req lock.Request) lock.Grant { return storetest.Acquire(t, a, req) }
	renewed := func(g lock.Grant) lock.Grant {
		g.TTL = time.Hour
		return storetest.Renew(t, a, g)
	}
	waited := func(l *process, req lock.Request) lock.Grant {
		g := storetest.Acquire(t, a, storetest.Request(req.Key))
		next := storetest.Waits(t, l, req)
		storetest.Release(t, a, g)
		return next.Granted(t)
	}
	for name, last := range map[string]func(lock.Request) lock.Grant{
		"a grant": acquires,
		"a second grant": func(req lock.Request) lock.Grant {
			acquires(storetest.Request("other")) // so that the next one has a connection that lives
			storetest.Release(t, a, acquires(storetest.Request(req.Key)))
			return acquires(req)
		},
		"a shared one":     func(req lock.Request) lock.Grant { return acquires(storetest.Shared(req)) },
		"a renewal":        func(req lock.Request) lock.Grant { return renewed(acquires(req)) },
		"a shared renewal": func(req lock.Request) lock.Grant { return renewed(acquires(storetest.Shared(req))) },
		"a hand-over":      func(req lock.Request) lock.Grant { return waited(a, req) },
		"a claim":          func(req lock.Request) lock.Grant { return waited(b, req) },
		"a shared claim":   func(req lock.Request) lock.Grant { return waited(b, storetest.Shared(req)) },
		"an undo": func(req lock.Request) lock.Grant {
			acquires(req)
			undo(t, a, req)
			return lock.Grant{}
		},
		"a forced release": func(req lock.Request) lock.Grant {
			require.NoError(t, b.ForceRelease(storetest.Bounded(t), req.Key, acquires(req).Owner))
			return lock.Grant{}
		},
	} {
		storetest.Eventually(t, "a checkpoint", func() bool { // else that of the recovery writes what follows
			_, err := w.admin.Exec(storetest.Bounded(t), "CHECKPOINT")
			return err == nil
		})
		g := last(storetest.Request(name))
		w.server.Kill()
		w.server.Start()
		a.pool.Reset() // else a hand-over may meet a dead connection, and become a claim
		b.pool.Reset()
		holders := storetest.Inspect(t, b, name).Holders
		if g.Key == "" {
			require.Empty(t, holders, name)
			continue
		}
		require.Len(t, holders, 1, name)
		require.Equal(t, g.Token, holders[0].Token, name)
		require.Equal(t, g.TTL == time.Hour, holders[0].ExpiresIn > 30*time.Minute, name)
	}
}

// TestReleaseDoesNotWait: a release needs no disk and no standby, unless it grants to the
// next. Here commits wait for a standby that there is not.
func TestReleaseDoesNotWait(t *testing.T) {
	t.Parallel()
	w := ownWorld(t)
	l, other := w.open(t), w.open(t)
	standby := func(name string) {
		w.exec(t, "ALTER SYSTEM SET synchronous_standby_names = '"+name+"'")
		w.exec(t, "SELECT pg_reload_conf()")
	}
	wait := func(n int) {
		storetest.Eventually(t, "commits that wait", func() bool {
			return value[int](t, w, "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'") >= n
		})
	}
	var released []lock.Grant
	for _, key := range []string{"free", "wanted", "read", "handed"} {
		req := storetest.Request(key)
		req.Shared = key == "read"
		released = append(released, storetest.Acquire(t, l, req))
	}
	elsewhere := storetest.Waits(t, other, storetest.Request("wanted"))
	here := storetest.Waits(t, l, storetest.Request("handed"))
	standby("nobody")
	ctx, granted := storetest.Bounded(t), make(chan error, 2)
	var reset atomic.Bool
	go func() { // until the server has noticed
		var err error
		for err == nil && !reset.Load() {
			_, err = other.Acquire(ctx, storetest.Request(rand.Text()))
		}
		granted <- err
	}()
	wait(1)
	storetest.Release(t, l, released[0])
	storetest.Release(t, l, released[1])
	storetest.Release(t, l, released[2])
	wait(2) // who was woken
	go func() { granted <- l.Release(ctx, released[3]) }()
	wait(3)
	reset.Store(true)
	standby("")
	require.NoError(t, <-granted)
	require.NoError(t, <-granted)
	elsewhere.Granted(t)
	here.Granted(t)
}

// TestRestartWithMixedSessions: that the commits of one connection are on disk says nothing
// about another's: somebody may have set it otherwise there.
func TestRestartWithMixedSessions(t *testing.T) {
	t.Parallel()
	w := ownWorld(t, "-c", "wal_writer_delay=10s")
	config, err := pgxpool.ParseConfig(w.url() + "&pool_max_conns=2")
	require.NoError(t, err)
	var sessions atomic.Int32
	config.AfterConnect = func(ctx context.Context, c *pgx.Conn) error {
		if sessions.Add(1) == 1 {
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
	require.EqualValues(t, 2, sessions.Load())
	w.server.Kill()
	w.server.Start()
	storetest.Holds(t, w.open(t), g)
}
