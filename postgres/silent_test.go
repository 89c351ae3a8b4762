package postgres_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/internal/storetest"
	"github.com/seed-215fdefa/lock/locktest/faultproxy"
	"github.com/seed-215fdefa/lock/postgres"
)

// openSilenced is a Locker whose connections silence has no answer come from any more, as a NAT does
// that has forgotten them. Those which are made later are sound.
func (w world) openSilenced(tb testing.TB) (p *process, silence func()) {
	tb.Helper()
	old, sound := faultproxy.New(tb, w.server.Addr()), faultproxy.New(tb, w.server.Addr())
	var way atomic.Pointer[faultproxy.Proxy]
	way.Store(old)
	config, err := pgxpool.ParseConfig(w.url() + "&pool_max_conns=4")
	require.NoError(tb, err)
	config.ConnConfig.DialFunc = func(ctx context.Context, network, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, network, way.Load().Addr())
	}
	p = &process{world: w, pool: poolWith(tb, config)}
	p.Locker = postgres.New(p.pool, w.options...)
	tb.Cleanup(func() { require.NoError(tb, p.Close()) })
	p.warm(tb)
	return p, func() {
		way.Store(sound)
		old.Freeze()
	}
}

// TestSilentConnections: no call waits for an answer on them without end.
func TestSilentConnections(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	l, silence := w.openSilenced(t)
	calls := everyCall(l.Locker, storetest.Acquire(t, l, storetest.Request("k")))
	delete(calls, "Acquire Wait") // those beside it keep the lock
	silence()
	results := make(chan error, len(calls))
	for name, call := range calls {
		go func() {
			err := call(context.Background())
			if errors.Is(err, lock.ErrHeld) || errors.Is(err, lock.ErrLost) {
				err = nil // an answer too
			} else if err != nil {
				err = fmt.Errorf("%s: %w", name, err)
			}
			results <- err
		}()
	}
	for range calls {
		require.NoError(t, storetest.Receive(t, results))
	}
}

// TestSilentConnectionsOfAWaiter: it goes on by new ones. On a machine that is not too busy it keeps
// its place.
func TestSilentConnectionsOfAWaiter(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	other := w.open(t)
	for range 3 {
		l, silence := w.openSilenced(t)
		g := storetest.Acquire(t, other, storetest.Request("k"))
		waiting := storetest.Waits(t, l, storetest.Request("k"))
		arrived := value[time.Time](t, w, "SELECT arrived FROM "+w.table("_waiters"))
		silence()
		alive := "SELECT count(*) FROM " + w.table("_waiters") + " WHERE deadline > $1"
		silent := value[time.Time](t, w, "SELECT clock_timestamp()")
		storetest.Eventually(t, "a sign of life", func() bool {
			return value[int](t, w, alive, silent.Add(6*time.Second)) == 1
		})
		kept := value[time.Time](t, w, "SELECT arrived FROM "+w.table("_waiters")).Equal(arrived)
		storetest.Release(t, other, g)
		storetest.Release(t, l, waiting.Granted(t))
		if kept {
			return
		}
	}
	require.FailNow(t, "the waiter lost its place each time")
}

// TestBlackHole: an acquire that nobody ever answers has Patience for all that it does.
func TestBlackHole(t *testing.T) {
	for name, wait := range map[string]bool{"try": false, "wait": true} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				config, err := pgxpool.ParseConfig("postgres://127.0.0.1:1/none?sslmode=disable")
				require.NoError(t, err)
				config.ConnConfig.DialFunc = func(ctx context.Context, _, _ string) (net.Conn, error) {
					<-ctx.Done()
					return nil, ctx.Err()
				}
				p, err := pgxpool.NewWithConfig(t.Context(), config)
				require.NoError(t, err)
				defer p.Close()
				l := postgres.New(p)
				defer func() { require.NoError(t, l.Close()) }()
				req := storetest.Request("k")
				req.Wait, req.Lost = wait, func(lock.LostReason) {}
				begun := time.Now()
				_, err = l.Acquire(t.Context(), req)
				require.ErrorIs(t, err, lock.ErrUnavailable)
				require.LessOrEqual(t, time.Since(begun), lock.Patience)
			})
		})
	}
}
