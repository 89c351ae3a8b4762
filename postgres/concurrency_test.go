package postgres_test

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/internal/storetest"
	"github.com/seed-215fdefa/lock/locktest/faultproxy"
	"github.com/seed-215fdefa/lock/postgres"
)

// acquireIn runs the function acquire in a transaction of the test's, which stays open.
func acquireIn(tb testing.TB, w world, tx pgx.Tx, key, owner string, shared bool) (reply string) {
	tb.Helper()
	sql := fmt.Sprintf(`SELECT %s($1, $2, '1 min', $3, 'p', false, NULL, NULL, false, 0)`, w.function("acquire"))
	require.NoError(tb, tx.QueryRow(storetest.Bounded(tb), sql, []byte(key), owner, shared).Scan(&reply))
	return reply
}

func begin(tb testing.TB, w world, options pgx.TxOptions) pgx.Tx {
	tb.Helper()
	tx, err := w.admin.BeginTx(storetest.Bounded(tb), options)
	require.NoError(tb, err)
	tb.Cleanup(func() { _ = tx.Rollback(context.Background()) })
	return tx
}

// blocked waits until some backend waits for a lock that another of them has.
func blocked(tb testing.TB, w world) {
	tb.Helper()
	storetest.Eventually(tb, "a statement to wait for the row", func() bool {
		return value[bool](tb, w, `SELECT EXISTS (SELECT FROM pg_stat_activity
			WHERE wait_event_type = 'Lock' AND query LIKE '%' || $1 || '%')`, w.schema)
	})
}

// TestUncommittedGrant is the trap of READ COMMITTED: while a grant is not committed yet a
// rival's statement begins, with a snapshot that does not have it. It must wait for the
// row, and then see all that came with it: readers and waiters too, which have rows elsewhere.
func TestUncommittedGrant(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name          string
		holder, rival bool // shared
		granted       bool
	}{
		{"reader before writer", true, false, false},
		{"writer before writer", false, false, false},
		{"writer before reader", false, true, false},
		{"reader before reader", true, true, true},
	} {
		for _, fresh := range []bool{true, false} {
			t.Run(fmt.Sprint(c.name, " fresh ", fresh), func(t *testing.T) {
				t.Parallel()
				w := sharedWorld(t)
				l := w.open(t)
				if !fresh {
					storetest.Release(t, l, storetest.Acquire(t, l, storetest.Request("k")))
				}
				tx := begin(t, w, pgx.TxOptions{})
				token, err := lock.ParseToken(acquireIn(t, w, tx, "k", "first", c.holder))
				require.NoError(t, err)
				req := storetest.Request("k")
				req.Shared = c.rival
				done := make(chan struct{})
				var g lock.Grant
				go func() { defer close(done); g, err = l.Acquire(storetest.Bounded(t), req) }()
				blocked(t, w)
				require.NoError(t, tx.Commit(storetest.Bounded(t)))
				<-done
				if c.granted {
					require.NoError(t, err)
					require.Greater(t, g.Token, token)
					return
				}
				var held *lock.HeldError
				require.ErrorAs(t, err, &held)
				require.Len(t, held.Record.Holders, 1)
				require.Equal(t, "first", held.Record.Holders[0].Owner)
			})
		}
	}
}

// TestUncommittedPlace: the same for a place in line that is not committed yet, while the
// lock itself is free: whoever comes is behind it.
func TestUncommittedPlace(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	l := w.open(t)
	g := storetest.Acquire(t, l, storetest.Request("k"))
	tx := begin(t, w, pgx.TxOptions{})
	var reply string
	require.NoError(t, tx.QueryRow(storetest.Bounded(t),
		fmt.Sprintf(`SELECT %s($1, 'first', '1 min', false, 'p', false, NULL, '1 min', false, 0)`, w.function("acquire")), []byte("k")).Scan(&reply))
	require.Contains(t, reply, "recheck")
	released := make(chan error, 1)
	go func() { released <- l.Release(storetest.Bounded(t), g) }()
	blocked(t, w)
	require.NoError(t, tx.Commit(storetest.Bounded(t)))
	require.NoError(t, <-released)
	require.Empty(t, storetest.Refused(t, l, storetest.Request("k")).Holders, "the place is a reservation")
}

// TestIsolationLevels: whatever the pool's default, the functions run under READ COMMITTED,
// and what fails to serialize is sent again.
func TestIsolationLevels(t *testing.T) {
	t.Parallel()
	for _, level := range []string{"repeatable read", "serializable"} {
		t.Run(level, func(t *testing.T) {
			t.Parallel()
			w := sharedWorld(t)
			var ls []*process
			for range 3 {
				ls = append(ls, w.open(t, "default_transaction_isolation="+escape(level)))
			}
			contest(t, ls, 8)
			require.NoError(t, ls[0].Close())
			w.exec(t, "DELETE FROM "+w.table("_tombstones")) // of claims that were answered late
			w.age(t)
			n, err := ls[1].Prune(storetest.Bounded(t), 0)
			require.NoError(t, err)
			require.Equal(t, 1, n)
		})
	}
}

// TestIsolationOfOldSnapshots: the renewal of a reader is not committed yet when a writer comes,
// and its first TTL ends meanwhile. Nothing but the reader's own row is written, so no level of
// isolation fails for it; one whose snapshot is from before the wait for the lock's row would let
// the writer in.
func TestIsolationOfOldSnapshots(t *testing.T) {
	t.Parallel()
	for _, level := range []string{"read committed", "repeatable read", "serializable"} {
		t.Run(level, func(t *testing.T) {
			t.Parallel()
			w := sharedWorld(t)
			l := w.open(t, "default_transaction_isolation="+escape(level))
			var tx pgx.Tx
			for ttl, reply := 2*time.Second, ""; reply != "1"; ttl *= 2 { // it may have ended on a busy machine
				g := storetest.Acquire(t, l, storetest.Lasting(storetest.Shared(storetest.Request("k")), ttl))
				w.exec(t, "UPDATE "+w.table("")+" SET swept = now() + interval '1 h'") // nor for what is dead
				tx = begin(t, w, pgx.TxOptions{})
				require.NoError(t, tx.QueryRow(storetest.Bounded(t),
					fmt.Sprintf(`SELECT %s($1, $2, $3, true, '1 h')`, w.function("renew")), []byte("k"), g.Owner, int64(g.Token)).Scan(&reply))
				if reply != "1" {
					require.NoError(t, tx.Rollback(storetest.Bounded(t)))
				}
			}
			done := make(chan error, 1)
			go func() {
				_, err := l.Acquire(storetest.Bounded(t), storetest.Request("k"))
				done <- err
			}()
			blocked(t, w)
			ends(t, w.open(t), "k")
			require.NoError(t, tx.Commit(storetest.Bounded(t)))
			require.ErrorIs(t, <-done, lock.ErrHeld, "it is beside the reader")
		})
	}
}

// contest has writers, and each third a reader, fight for one key on all of ls, and checks
// exclusion and the order of tokens by a count that is kept outside the store.
func contest(tb testing.TB, ls []*process, each int) {
	tb.Helper()
	ctx := storetest.Bounded(tb)
	var mu sync.Mutex // guards what follows
	var writers, readers int
	var newest lock.Token
	var all sync.WaitGroup
	errs := make(chan error, len(ls)*each)
	for i, l := range ls {
		for j := range each {
			all.Go(func() {
				req := storetest.Request("contest")
				req.Wait, req.Shared = (i+j)%4 != 0, j%3 == 2
				g, err := l.Acquire(ctx, req)
				if err != nil {
					if req.Wait || !strings.Contains(err.Error(), "lock: held") {
						errs <- err
					}
					return
				}
				mu.Lock()
				if req.Shared {
					readers++
				} else {
					writers++
				}
				if writers > 1 || writers == 1 && readers > 0 || !req.Shared && g.Token <= newest {
					errs <- fmt.Errorf("%d writers, %d readers, token %d after %d", writers, readers, g.Token, newest)
				}
				newest = max(newest, g.Token)
				mu.Unlock()
				if _, err := l.Renew(ctx, g); err != nil {
					errs <- err
				}
				mu.Lock()
				if req.Shared {
					readers--
				} else {
					writers--
				}
				mu.Unlock()
				if err := l.Release(ctx, g); err != nil {
					errs <- err
				}
			})
		}
	}
	all.Wait()
	close(errs)
	for err := range errs {
		require.NoError(tb, err)
	}
	rec := storetest.Inspect(tb, ls[0], "contest")
	require.Empty(tb, rec.Holders)
	require.Empty(tb, rec.Waiters)
}

// TestSerializationFailure: a statement that a deadlock ended is sent again, within ctx.
func TestSerializationFailure(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	l := w.open(t)
	ctx := storetest.Bounded(t)
	for _, code := range []string{"40001", "40P01"} {
		// The first two writes of the row fail. A sequence is not rolled back.
		w.exec(t, fmt.Sprintf(`CREATE SEQUENCE %[1]s MINVALUE -1000000 START 1;
			CREATE FUNCTION %[2]s() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
				IF nextval('%[3]s') < 3 THEN RAISE EXCEPTION 'on purpose' USING ERRCODE = '%[4]s'; END IF;
				RETURN NEW;
			END $$;
			CREATE TRIGGER fails BEFORE INSERT OR UPDATE ON %[5]s FOR EACH ROW EXECUTE FUNCTION %[2]s()`,
			w.table("_seq"), w.table("_fail"), w.table("_seq"), code, w.table("")))
		reset := func() { w.exec(t, fmt.Sprintf(`SELECT setval('%s', 1, false)`, w.table("_seq"))) }
		key := "k" + code
		g := storetest.Acquire(t, l, storetest.Request(key))
		reset()
		g = storetest.Renew(t, l, g)
		waiting := storetest.Waits(t, l, storetest.Request(key))
		reset()
		storetest.Release(t, l, g)
		next := waiting.Granted(t)
		reset()
		require.NoError(t, l.ForceRelease(ctx, key, next.Owner))

		bounded, cancel := context.WithTimeout(ctx, 50*time.Millisecond) // all its tries take longer
		w.exec(t, fmt.Sprintf(`SELECT setval('%s', -1000000, false)`, w.table("_seq")))
		_, err := l.Acquire(bounded, storetest.Request(key))
		cancel()
		require.ErrorIs(t, err, context.DeadlineExceeded)
		w.exec(t, fmt.Sprintf(`DROP TRIGGER fails ON %s; DROP FUNCTION %s; DROP SEQUENCE %s`,
			w.table(""), w.table("_fail"), w.table("_seq")))
	}
}

// TestPoolOfOne: no call needs a second connection, none is held while waiting, and List
// holds none while it yields.
func TestPoolOfOne(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	l := postgres.New(pool(t, w.url()+"&pool_max_conns=1"), w.options...)
	defer func() { require.NoError(t, l.Close()) }()
	ctx := storetest.Bounded(t)
	c := lock.New(l)
	var all sync.WaitGroup
	errs := make(chan error, 100)
	for i := range 30 {
		all.Go(func() {
			errs <- c.Do(ctx, fmt.Sprint("key ", i%2), func(ctx context.Context, ls *lock.Lease) error {
				return ls.Renew(ctx)
			})
		})
	}
	all.Wait()
	close(errs)
	for err := range errs {
		require.NoError(t, err)
	}
	g := storetest.Acquire(t, l, storetest.Request("listed"))
	for r, err := range l.List(ctx, "") {
		require.NoError(t, err)
		require.NoError(t, l.ForceRelease(ctx, r.Key, g.Owner))
	}
	require.NoError(t, c.Close(ctx))
}

// TestManyAtOnce: many callers on a small pool, several processes, one key.
func TestManyAtOnce(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	contest(t, []*process{w.open(t), w.open(t), w.open(t)}, 30)
}

// TestIsolationOfFrozenCaller: where statements need a transaction that says its isolation
// level, it ends without the caller. One that freezes on the way, or whose reply is lost,
// must not keep the row locked for all others.
func TestIsolationOfFrozenCaller(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	l, other := w.open(t, "default_transaction_isolation=serializable"), w.open(t)
	g := storetest.Acquire(t, l, storetest.Shared(storetest.Request("k")))
	heal := l.net.all(func(p *faultproxy.Proxy) func() { // of a prepared statement, or rows
		return p.Drop(faultproxy.Replies().Matching(func(chunk []byte) bool { return chunk[0] == '2' || chunk[0] == 'D' })).Heal
	})
	ctx, renewed := storetest.Bounded(t), make(chan error, 1)
	g.TTL = time.Hour
	go func() { _, err := l.Renew(ctx, g); renewed <- err }()
	storetest.Eventually(t, "the renewal", func() bool {
		hs := storetest.Inspect(t, other, "k").Holders
		return len(hs) == 1 && hs[0].ExpiresIn > 30*time.Minute
	})
	heal()
	l.net.sever() // the reply is gone for good
	require.NoError(t, <-renewed)
}
