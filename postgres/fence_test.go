package postgres_test

import (
	"context"
	"database/sql"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/stretchr/testify/require"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/internal/storetest"
	"github.com/seed-215fdefa/lock/postgres"
)

func staleBy(tb testing.TB, err error, key string, token, newest lock.Token) {
	tb.Helper()
	var stale *lock.StaleError
	require.ErrorAs(tb, err, &stale)
	require.ErrorIs(tb, err, lock.ErrStale)
	require.Equal(tb, lock.StaleError{Key: key, Token: token, Newest: newest}, *stale)
}

// fenced runs f in a transaction that is fenced.
func (w world) fenced(ctx context.Context, options pgx.TxOptions, key string, token lock.Token, f func(pgx.Tx) error) error {
	return pgx.BeginTxFunc(ctx, w.admin, options, func(tx pgx.Tx) error {
		if err := postgres.Fence(ctx, tx, key, token, w.options...); err != nil {
			return err
		}
		return f(tx)
	})
}

func nothing(pgx.Tx) error { return nil }

// TestFenceOrder: a token is refused once a newer one has committed; others are not.
func TestFenceOrder(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	ctx := storetest.Bounded(t)
	for _, key := range []string{"k", "a\x00b", "'; --", "ключ"} {
		require.NoError(t, w.fenced(ctx, pgx.TxOptions{}, key, 9, nothing))
		require.NoError(t, w.fenced(ctx, pgx.TxOptions{}, key, 9, nothing), "the same may go on")
		require.NoError(t, w.fenced(ctx, pgx.TxOptions{}, key, 10, nothing))
		staleBy(t, w.fenced(ctx, pgx.TxOptions{}, key, 9, nothing), key, 9, 10)
		staleBy(t, w.fenced(ctx, pgx.TxOptions{}, key, 1, nothing), key, 1, 10)
		require.NoError(t, w.fenced(ctx, pgx.TxOptions{}, key, lock.MaxToken, nothing))
		staleBy(t, w.fenced(ctx, pgx.TxOptions{}, key, lock.MaxToken-1, nothing), key, lock.MaxToken-1, lock.MaxToken)
	}
	require.NoError(t, w.fenced(ctx, pgx.TxOptions{}, "another", 1, nothing))

	// A transaction that is rolled back raises nothing.
	tx := begin(t, w, pgx.TxOptions{})
	require.NoError(t, postgres.Fence(ctx, tx, "another", 5, w.options...))
	require.NoError(t, tx.Rollback(ctx))
	require.NoError(t, w.fenced(ctx, pgx.TxOptions{}, "another", 4, nothing))
	// A refused one leaves the mark as it was.
	staleBy(t, w.fenced(ctx, pgx.TxOptions{}, "another", 3, nothing), "another", 3, 4)
	require.NoError(t, w.fenced(ctx, pgx.TxOptions{}, "another", 4, nothing))
}

// TestFenceInvalid: nothing is sent, so the transaction is not aborted.
func TestFenceInvalid(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	tx := begin(t, w, pgx.TxOptions{})
	ctx := storetest.Bounded(t)
	require.ErrorIs(t, postgres.Fence(ctx, nil, "k", 1), lock.ErrInvalid)
	require.ErrorIs(t, postgres.Fence(ctx, tx, "", 1), lock.ErrInvalid)
	require.ErrorIs(t, postgres.Fence(ctx, tx, "k", 0), lock.ErrInvalid)
	require.ErrorIs(t, postgres.Fence(ctx, tx, "k", lock.MaxToken+1), lock.ErrInvalid)
	ended, cancel := context.WithCancel(ctx)
	cancel()
	require.ErrorIs(t, postgres.Fence(ended, tx, "k", 1, w.options...), context.Canceled)
}

// TestFenceLongTransaction: one that is fenced and stays open delays no renewal, no
// release, and no acquire.
func TestFenceLongTransaction(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	l, other := w.open(t), w.open(t)
	ctx := storetest.Bounded(t)
	g := storetest.Acquire(t, l, storetest.Request("k"))
	tx := begin(t, w, pgx.TxOptions{})
	require.NoError(t, postgres.Fence(ctx, tx, "k", g.Token, w.options...))
	for range 5 {
		g = storetest.Renew(t, l, g)
	}
	waiting := storetest.Waits(t, other, storetest.Request("k"))
	storetest.Release(t, l, g)
	next := waiting.Granted(t)
	storetest.Renew(t, other, next)
	require.NoError(t, other.ForceRelease(ctx, "k", next.Owner))
	last := storetest.Acquire(t, l, storetest.Shared(storetest.Request("k")))
	storetest.Release(t, l, last)
	_, err := l.Prune(ctx, 0)
	require.NoError(t, err)
	require.NoError(t, tx.Commit(ctx))
}

// TestFenceSerializes: transactions of an old holder and its successor run one after the
// other, whichever is first, under every isolation level: a counter that both read and
// write has each one's addition, and never one of the old holder after the successor's.
func TestFenceSerializes(t *testing.T) {
	t.Parallel()
	for _, level := range []pgx.TxIsoLevel{pgx.ReadCommitted, pgx.RepeatableRead, pgx.Serializable} {
		t.Run(string(level), func(t *testing.T) {
			t.Parallel()
			w := sharedWorld(t)
			ctx := storetest.Bounded(t)
			w.exec(t, "CREATE TABLE "+w.table("_count")+" (n int, last bigint)")
			w.exec(t, "INSERT INTO "+w.table("_count")+" VALUES (0, 0)")
			add := func(token lock.Token) error {
				for {
					err := w.fenced(ctx, pgx.TxOptions{IsoLevel: level}, "k", token, func(tx pgx.Tx) error {
						var n int
						var last int64
						if err := tx.QueryRow(ctx, "SELECT n, last FROM "+w.table("_count")).Scan(&n, &last); err != nil {
							return err
						}
						if last > int64(token) {
							return fmt.Errorf("%d after %d", token, last)
						}
						_, err := tx.Exec(ctx, "UPDATE "+w.table("_count")+" SET n = $1, last = $2", n+1, int64(token))
						return err
					})
					if stateOf(err) != "40001" { // as the documentation says, to be run again
						return err
					}
				}
			}
			var all sync.WaitGroup
			var mu sync.Mutex // guards what follows
			var failures []error
			done := 0
			for token := range 20 {
				all.Go(func() {
					for range 3 {
						err := add(lock.Token(token + 1))
						mu.Lock()
						switch {
						case err == nil:
							done++
						case !isStale(err):
							failures = append(failures, err)
						}
						mu.Unlock()
					}
				})
			}
			all.Wait()
			require.Empty(t, failures)
			require.Positive(t, done)
			require.Equal(t, done, value[int](t, w, "SELECT n FROM "+w.table("_count")))
		})
	}
}

// TestFenceFrozenHolder: a holder freezes between its read and its write, loses its lease,
// and a successor books. The frozen one's write is refused when it wakes.
func TestFenceFrozenHolder(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	l, other := w.open(t), w.open(t)
	ctx := storetest.Bounded(t)
	w.exec(t, "CREATE TABLE "+w.table("_stock")+" (item text PRIMARY KEY, n int)")
	w.exec(t, "INSERT INTO "+w.table("_stock")+" VALUES ('book', 10)")
	read := func(token lock.Token) (n int, err error) {
		err = w.fenced(ctx, pgx.TxOptions{}, "stock", token, func(tx pgx.Tx) error {
			return tx.QueryRow(ctx, "SELECT n FROM "+w.table("_stock")).Scan(&n)
		})
		return n, err
	}
	write := func(token lock.Token, n int) error {
		return w.fenced(ctx, pgx.TxOptions{}, "stock", token, func(tx pgx.Tx) error {
			_, err := tx.Exec(ctx, "UPDATE "+w.table("_stock")+" SET n = $1", n)
			return err
		})
	}
	frozen := lock.New(l, lock.WithTTL(2*time.Second), lock.WithRenewal(false)) // it renews nothing
	lease, err := frozen.Lock(ctx, "stock")
	require.NoError(t, err)
	seen, err := read(lease.Token())
	require.NoError(t, err)

	successor := lock.New(other)
	require.NoError(t, successor.Do(ctx, "stock", func(_ context.Context, s *lock.Lease) error {
		n, err := read(s.Token())
		require.NoError(t, err)
		require.Equal(t, seen, n)
		staleBy(t, write(lease.Token(), seen-1), "stock", lease.Token(), s.Token()) // it wakes too soon
		return write(s.Token(), n-1)
	}))
	require.Error(t, lease.Err())
	require.ErrorIs(t, write(lease.Token(), seen-1), lock.ErrStale)
	_, err = read(lease.Token())
	require.ErrorIs(t, err, lock.ErrStale, "nor may it read on")
	require.Equal(t, 9, value[int](t, w, "SELECT n FROM "+w.table("_stock")))
	require.NoError(t, frozen.Close(ctx))
	require.NoError(t, successor.Close(ctx))
}

// TestFenceStaleWaits: the old holder's transaction begins while the successor's is open. It
// waits, and is refused, even if it was first to ask for the lock.
func TestFenceStaleWaits(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	ctx := storetest.Bounded(t)
	require.NoError(t, w.fenced(ctx, pgx.TxOptions{}, "k", 1, nothing))
	tx := begin(t, w, pgx.TxOptions{})
	require.NoError(t, postgres.Fence(ctx, tx, "k", 7, w.options...))
	ended := make(chan error, 1)
	go func() { ended <- w.fenced(ctx, pgx.TxOptions{}, "k", 6, nothing) }()
	blocked(t, w)
	require.NoError(t, tx.Commit(ctx))
	staleBy(t, <-ended, "k", 6, 7)
}

// TestFenceEndsAFrozenTransaction: a holder freezes inside its fenced transaction. Its successor
// does not wait for longer than the lease has lasted, and the frozen one books nothing.
func TestFenceEndsAFrozenTransaction(t *testing.T) {
	t.Parallel()
	for _, shared := range []bool{false, true} {
		t.Run(fmt.Sprint("shared ", shared), func(t *testing.T) {
			t.Parallel()
			w := sharedWorld(t)
			a, b := w.open(t), w.open(t)
			ctx := storetest.Bounded(t)
			w.exec(t, "CREATE TABLE "+w.table("_booked")+" (token bigint)")
			book := func(tx pgx.Tx, token lock.Token) error {
				_, err := tx.Exec(ctx, "INSERT INTO "+w.table("_booked")+" VALUES ($1)", int64(token))
				return err
			}
			req := storetest.Lasting(storetest.Request("k"), 5*time.Second)
			req.Shared = shared
			g := storetest.Acquire(t, a, req)
			frozen := begin(t, w, pgx.TxOptions{})
			require.NoError(t, postgres.Fence(ctx, frozen, "k", g.Token, w.options...))
			require.NoError(t, book(frozen, g.Token))
			next := storetest.Await(t, b, storetest.Request("k"))
			require.NoError(t, w.fenced(ctx, pgx.TxOptions{}, "k", next.Token, func(tx pgx.Tx) error { return book(tx, next.Token) }))
			require.Error(t, frozen.Commit(ctx))
			require.Equal(t, []int64{int64(next.Token)}, value[[]int64](t, w, "SELECT array_agg(token) FROM "+w.table("_booked")))
		})
	}
}

// TestFenceIdleTimeout: it is what is left of the lease, for this transaction alone, and never
// longer than it was; a lease that is over has a second. That of another store's lease stays.
func TestFenceIdleTimeout(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	l := w.open(t)
	ctx := storetest.Bounded(t)
	timeout := func(key string, token lock.Token, before string) time.Duration {
		t.Helper()
		tx := begin(t, w, pgx.TxOptions{})
		_, err := tx.Exec(ctx, "SET LOCAL idle_in_transaction_session_timeout = '"+before+"'")
		require.NoError(t, err)
		require.NoError(t, postgres.Fence(ctx, tx, key, token, w.options...))
		var ms int64
		require.NoError(t, tx.QueryRow(ctx, "SELECT setting::bigint FROM pg_settings WHERE name = 'idle_in_transaction_session_timeout'").Scan(&ms))
		require.NoError(t, tx.Commit(ctx))
		return time.Duration(ms) * time.Millisecond
	}
	g := storetest.Acquire(t, l, storetest.Lasting(storetest.Request("k"), 50*time.Second))
	require.InDelta(t, 30*time.Second, timeout("k", g.Token, "0"), float64(20*time.Second))
	require.Equal(t, 5*time.Second, timeout("k", g.Token, "5s"))
	require.Greater(t, timeout("k", g.Token, "2h"), time.Second)
	require.LessOrEqual(t, timeout("k", g.Token, "2h"), 50*time.Second)
	g.TTL = lock.MaxTTL
	g = storetest.Renew(t, l, g)
	require.Equal(t, 20*24*time.Hour, timeout("k", g.Token, "0"))
	storetest.Release(t, l, g)
	require.Equal(t, time.Second, timeout("k", g.Token, "0"))
	require.Zero(t, timeout("k", g.Token+1, "0"))
	require.Zero(t, timeout("elsewhere", 7, "0"))
	require.Equal(t, 7*time.Minute, timeout("elsewhere", 7, "7min"))
}

// TestFenceIdleTimeoutAfterAWait: the fence waits for the transaction before it for longer than its
// lease lasted when it began to, and the lease is renewed meanwhile.
func TestFenceIdleTimeoutAfterAWait(t *testing.T) {
	t.Parallel()
	for _, shared := range []bool{false, true} {
		w := sharedWorld(t)
		ctx := storetest.Bounded(t)
		req, leases := storetest.Request("k"), w.table("")
		if req.Shared = shared; shared {
			leases = w.table("_readers")
		}
		before := begin(t, w, pgx.TxOptions{})
		require.NoError(t, postgres.Fence(ctx, before, "k", 1, w.options...)) // nobody has the lock yet, so it may be idle
		g := storetest.Acquire(t, w.open(t), req)
		w.exec(t, "UPDATE "+leases+" SET expires = now()")
		tx, fenced := begin(t, w, pgx.TxOptions{}), make(chan error, 1)
		go func() { fenced <- postgres.Fence(ctx, tx, "k", g.Token, w.options...) }()
		blocked(t, w)
		w.exec(t, "UPDATE "+leases+" SET expires = now() + interval '1 h'") // as renewals do
		require.NoError(t, before.Commit(ctx))
		require.NoError(t, <-fenced)
		var ms int64
		require.NoError(t, tx.QueryRow(ctx, "SELECT setting::bigint FROM pg_settings WHERE name = 'idle_in_transaction_session_timeout'").Scan(&ms))
		require.Greater(t, ms, int64(time.Minute/time.Millisecond))
		require.NoError(t, tx.Commit(ctx))
	}
}

// TestFenceSQL: the same fence for transactions of database/sql.
func TestFenceSQL(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	ctx := storetest.Bounded(t)
	db := stdlib.OpenDBFromPool(w.admin)
	defer func() { require.NoError(t, db.Close()) }()
	fenced := func(token lock.Token) error {
		tx, err := db.BeginTx(ctx, nil)
		require.NoError(t, err)
		if err := postgres.FenceSQL(ctx, tx, "k\x00", token, w.options...); err != nil {
			require.NoError(t, tx.Rollback())
			return err
		}
		return tx.Commit()
	}
	require.NoError(t, fenced(7))
	require.NoError(t, w.fenced(ctx, pgx.TxOptions{}, "k\x00", 8, nothing))
	staleBy(t, fenced(7), "k\x00", 7, 8)
	require.NoError(t, fenced(8))
	var none *sql.Tx
	require.ErrorIs(t, postgres.FenceSQL(ctx, none, "k", 1), lock.ErrInvalid)
	require.ErrorIs(t, postgres.FenceSQL(ctx, nil, "k", 1), lock.ErrInvalid)
	require.ErrorIs(t, postgres.Fence(ctx, (*pgxpool.Tx)(nil), "k", 1), lock.ErrInvalid)

	tx, err := db.BeginTx(ctx, nil)
	require.NoError(t, err)
	require.ErrorIs(t, postgres.FenceSQL(ctx, tx, "k", 1, postgres.WithSchema("none")), postgres.ErrSchema)
	require.NoError(t, tx.Rollback())
}
