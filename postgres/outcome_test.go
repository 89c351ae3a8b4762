package postgres_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/stretchr/testify/require"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/internal/storekit"
	"github.com/seed-215fdefa/lock/internal/storetest"
	"github.com/seed-215fdefa/lock/internal/testserver"
	"github.com/seed-215fdefa/lock/locktest/faultproxy"
	"github.com/seed-215fdefa/lock/postgres"
)

func undo(tb testing.TB, l lock.Locker, req lock.Request) {
	tb.Helper()
	storetest.Release(tb, l, lock.Grant{Key: req.Key, Owner: req.Owner})
}

// TestUndoRefusesLateRequest: an undo has overtaken its own request, which must not have any
// effect then, neither a grant nor a place in line; grants and releases of others do not
// take the mark away.
func TestUndoRefusesLateRequest(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	l, other := w.open(t), w.open(t)
	ctx := storetest.Bounded(t)
	for _, shared := range []bool{false, true} {
		for _, wait := range []bool{false, true} {
			for _, taken := range []bool{false, true} {
				late := storetest.Request(fmt.Sprint("k", shared, wait, taken))
				late.Shared, late.Wait = shared, wait
				refused := func(l lock.Locker) {
					t.Helper()
					_, err := l.Acquire(ctx, late)
					require.Error(t, err)
					if wait || !taken || shared { // else it is refused because of the holder
						require.ErrorIs(t, err, lock.ErrReleased)
					}
				}
				undo(t, l, late)
				var g lock.Grant
				if taken {
					g = storetest.Acquire(t, other, storetest.Request(late.Key))
				}
				if taken && !wait {
					_, err := l.Acquire(ctx, late)
					require.Error(t, err)
					storetest.Release(t, other, g)
					taken = false
				}
				refused(l)
				refused(other)
				if taken {
					storetest.Release(t, other, g)
				}
				for range 3 {
					g := storetest.Acquire(t, other, storetest.Request(late.Key))
					next := storetest.Waits(t, l, storetest.Request(late.Key))
					storetest.Release(t, other, g)
					storetest.Release(t, l, next.Granted(t))
				}
				refused(l)
				rec := storetest.Inspect(t, l, late.Key)
				require.Empty(t, rec.Holders)
				require.Empty(t, rec.Waiters)
			}
		}
	}
}

// TestUndoWhileHeld: the same while somebody else holds the key, who does not know of it.
func TestUndoWhileHeld(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	l, other := w.open(t), w.open(t)
	for _, shared := range []bool{false, true} {
		late := storetest.Request(fmt.Sprint("k", shared))
		holder := storetest.Request(late.Key)
		holder.Shared = shared
		g := storetest.Acquire(t, l, holder)
		undo(t, other, late)
		storetest.Holds(t, other, g)
		storetest.Release(t, l, g)
		_, err := other.Acquire(storetest.Bounded(t), late)
		require.ErrorIs(t, err, lock.ErrReleased)
		_, err = l.Renew(storetest.Bounded(t), lock.Grant{Key: late.Key, Owner: late.Owner, Token: g.Token, TTL: time.Minute})
		require.Zero(t, storetest.Lost(t, err), "nobody has forced it")
	}
}

// TestUndoOfRequestUnderWay: the request waits in the server for the row when its caller
// gives up, and the undo comes first, since it is sent on another connection and the row's
// queue is no line. Nothing is left.
func TestUndoOfRequestUnderWay(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	l, other := w.open(t), w.open(t)
	storetest.Release(t, l, storetest.Acquire(t, l, storetest.Request("k")))
	for range 5 {
		tx, err := w.admin.Begin(storetest.Bounded(t))
		require.NoError(t, err)
		_, err = tx.Exec(storetest.Bounded(t), "SELECT FROM "+w.table("")+" WHERE key = 'k' FOR UPDATE")
		require.NoError(t, err)
		ctx, cancel := context.WithCancel(context.Background())
		req := storetest.Request("k")
		ended := make(chan error, 1)
		go func() { _, err := l.Acquire(ctx, req); ended <- err }()
		blocked(t, w)
		cancel()
		require.ErrorIs(t, <-ended, context.Canceled)
		undone := make(chan error, 1)
		go func() { undone <- l.Release(storetest.Bounded(t), lock.Grant{Key: "k", Owner: req.Owner}) }()
		require.NoError(t, tx.Rollback(storetest.Bounded(t)))
		require.NoError(t, <-undone)
		require.Empty(t, storetest.Inspect(t, other, "k").Holders)
		storetest.Release(t, other, storetest.Acquire(t, other, storetest.Request("k")))
	}
}

// TestBrokenReply: the statement has taken effect, and the connection breaks instead of the
// reply. Each call is sent again, and ends up with the one grant.
func TestBrokenReply(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	other := w.open(t)
	for _, shared := range []bool{false, true} {
		l := w.open(t, "default_query_exec_mode=exec")
		req := storetest.Request(fmt.Sprint("k", shared))
		req.Shared = shared
		breaks := func(effective func() bool, call func() error) {
			t.Helper()
			heal := l.loseReplies(t)
			ended := make(chan error, 1)
			go func() { ended <- call() }()
			storetest.Eventually(t, "the effect", effective)
			l.net.sever()
			heal()
			require.NoError(t, <-ended)
		}
		holders := func() []lock.Holder { return storetest.Inspect(t, other, req.Key).Holders }
		var g lock.Grant
		breaks(func() bool { return len(holders()) == 1 }, func() (err error) {
			g, err = l.Acquire(storetest.Bounded(t), req)
			return err
		})
		storetest.Holds(t, other, g)
		g.TTL = 10 * time.Minute
		breaks(func() bool { return holders()[0].ExpiresIn > 5*time.Minute }, func() (err error) {
			g, err = l.Renew(storetest.Bounded(t), g)
			return err
		})
		breaks(func() bool { return len(holders()) == 0 }, func() error {
			return l.Release(storetest.Bounded(t), g)
		})
		_, err := other.Acquire(storetest.Bounded(t), req)
		require.ErrorIs(t, err, lock.ErrReleased, "a copy of the acquire that comes late is refused")
	}
}

// TestFrozenServer and what follows use a server that is really frozen. It looks at the
// clock, so nothing runs beside it.
func TestFrozenServer(t *testing.T) {
	w := ownWorld(t)
	holder, rival := w.open(t), w.open(t)
	holder.warm(t) // to connect takes time that is not the lease's
	storetest.FrozenServer(t, holder, rival, 2*time.Second, w.server.Pause, w.server.Resume)
}

// TestFrozenServerCancel: every method returns when its ctx ends, and Close at once.
func TestFrozenServerCancel(t *testing.T) {
	t.Parallel()
	w := ownWorld(t)
	l := w.open(t)
	g := storetest.Acquire(t, l, storetest.Request("held"))
	waiting := storetest.Waits(t, l, storetest.Request("held"))
	w.server.Pause()
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	calls := everyCall(l.Locker, g)
	results := make(chan error, len(calls))
	for name, call := range calls {
		go func() {
			if err := call(ctx); ctx.Err() == nil || !errors.Is(err, context.DeadlineExceeded) {
				results <- fmt.Errorf("%s: %w", name, err)
				return
			}
			results <- nil
		}()
	}
	timeout := time.After(storetest.Patience)
	for range calls {
		select {
		case err := <-results:
			require.NoError(t, err)
		case <-timeout:
			require.FailNow(t, "a method hangs past its ctx")
		}
	}
	closed := time.Now()
	require.NoError(t, l.Close())
	require.Less(t, time.Since(closed), storetest.Patience, "Close waits for the frozen server")
	waiting.End(t)
	require.ErrorIs(t, waiting.Err, lock.ErrClosed)
	w.server.Resume()
}

// TestRestart: a crash of the server, and all that was acknowledged is there: holders,
// readers, and the waiter goes on. It holds where synchronous_commit is off too.
func TestRestart(t *testing.T) {
	t.Parallel()
	for _, args := range [][]string{nil, {"-c", "synchronous_commit=off", "-c", "wal_writer_delay=10s"}} {
		t.Run(strings.Join(args, " "), func(t *testing.T) {
			t.Parallel()
			w := ownWorld(t, args...)
			a, b := w.open(t), w.open(t)
			storetest.Release(t, a, storetest.Acquire(t, a, storetest.Request("handed")))
			first := storetest.Acquire(t, a, storetest.Request("handed"))
			next := storetest.Waits(t, a, storetest.Request("handed"))
			waiting := storetest.Waits(t, b, storetest.Request("handed"))
			reader := storetest.Acquire(t, a, storetest.Shared(storetest.Request("read")))
			storetest.Release(t, a, first)
			second := next.Granted(t)
			writer := storetest.Acquire(t, a, storetest.Request("written")) // the last before the crash
			w.server.Kill()
			w.server.Start()
			for _, g := range []lock.Grant{second, reader, writer} {
				storetest.Holds(t, b, g)
				storetest.Renew(t, a, g)
			}
			storetest.Release(t, a, second)
			require.Greater(t, waiting.Granted(t).Token, second.Token)
		})
	}
}

// TestStandby: it is refused clearly, and can be looked at; so is a read-only database.
func TestStandby(t *testing.T) {
	t.Parallel()
	w := pairWorld(t)
	g := storetest.Acquire(t, w.open(t), storetest.Request("k"))
	w.pair.CatchUp()
	for name, url := range map[string]string{
		"standby":              testserver.PostgresURL(w.pair.Standby.Addr()),
		"read-only":            w.url() + "&default_transaction_read_only=on",
		"serializable standby": testserver.PostgresURL(w.pair.Standby.Addr()) + "&default_transaction_isolation=serializable",
	} {
		p := pool(t, url)
		l := postgres.New(p, w.options...)
		for _, call := range []func() error{
			func() error { _, err := l.Acquire(storetest.Bounded(t), storetest.Request("free")); return err },
			func() error {
				_, err := l.Acquire(storetest.Bounded(t), storetest.Shared(storetest.Request("k")))
				return err
			},
			func() error { _, err := l.Renew(storetest.Bounded(t), g); return err },
			func() error { return l.Release(storetest.Bounded(t), g) },
			func() error { return l.ForceRelease(storetest.Bounded(t), g.Key, g.Owner) },
		} {
			err := call()
			require.ErrorIs(t, err, postgres.ErrReadOnly, name)
			require.ErrorContains(t, err, "standby", name)
		}
		if name != "serializable standby" { // where nothing can be read
			storetest.Holds(t, l, g)
		}
		require.NoError(t, l.Close())
	}
}

// TestLateRequestShortensNothing: a copy of the request that arrives late finds its grant,
// and must not bring its end forward.
func TestLateRequestShortensNothing(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	l := w.open(t)
	for _, shared := range []bool{false, true} {
		req := storetest.Request(fmt.Sprint("k", shared))
		req.Shared = shared
		g := storetest.Acquire(t, l, req)
		g.TTL = time.Hour
		storetest.Renew(t, l, g)
		require.Equal(t, g.Token, storetest.Acquire(t, l, req).Token)
		require.Greater(t, storetest.Inspect(t, l, req.Key).Holders[0].ExpiresIn, 30*time.Minute)
	}
}

// TestLateTryOfHeldKey: a try is sent twice, and its second copy is refused. The first comes when the
// key is free, and has no effect: nobody would give back what it got.
func TestLateTryOfHeldKey(t *testing.T) {
	t.Parallel()
	for _, shared := range []bool{false, true} {
		for _, known := range []bool{false, true} {
			t.Run(fmt.Sprint("shared ", shared, " known ", known), func(t *testing.T) {
				t.Parallel()
				w := sharedWorld(t)
				l, other := w.open(t), w.open(t)
				l.warm(t)
				if known {
					storetest.Release(t, l, storetest.Acquire(t, l, storetest.Request("k")))
				}
				holder := storetest.Acquire(t, other, storetest.Request("k"))
				late, waits := storetest.Request("k"), storetest.Request("k")
				late.Shared, waits.Shared = shared, shared
				prepare := faultproxy.Requests().Matching(func(m []byte) bool { return m[0] == 'P' }).Nth(1) // no ping
				first := l.proxy().Lose(prepare)
				storetest.Refused(t, l, late)
				storetest.Receive(t, first.Hit())
				first = l.proxy().Lose(prepare)
				_, err := l.Acquire(storekit.ReuseOwner(storetest.Bounded(t)), waits)
				require.ErrorIs(t, err, lock.ErrHeld)
				storetest.Receive(t, first.Hit())
				next := storetest.Waits(t, l, waits)
				storetest.Release(t, other, holder)
				storetest.Release(t, l, next.Granted(t))
				_, err = other.Acquire(storetest.Bounded(t), waits) // the first copy
				require.ErrorIs(t, err, lock.ErrReleased, "who stood in line")
				_, err = other.Acquire(storetest.Bounded(t), late) // the first copy
				require.ErrorIs(t, err, lock.ErrReleased)
				require.Empty(t, storetest.Inspect(t, other, "k").Holders)
			})
		}
	}
}

// TestTryOfWhoWaits: the lock service is asked by way of another replica, which tries, and then goes on with
// the wait. The place stays, and is that replica's now.
func TestTryOfWhoWaits(t *testing.T) {
	t.Parallel()
	for _, shared := range []bool{false, true} {
		w := sharedWorld(t)
		a, b := w.open(t), w.open(t)
		holder, waits := storetest.Request("k"), storetest.Request("k")
		holder.Shared, waits.Shared = !shared, shared
		g := storetest.Acquire(t, w.open(t), holder)
		first := storetest.Waits(t, a, waits)
		process := value[string](t, w, "SELECT process FROM "+w.table("_waiters"))
		_, err := b.Acquire(storekit.ReuseOwner(storetest.Bounded(t)), waits)
		require.ErrorIs(t, err, lock.ErrHeld)
		require.Len(t, storetest.Inspect(t, b, "k").Waiters, 1)

		next := storetest.Waits(t, b, waits)
		require.NotEqual(t, process, value[string](t, w, "SELECT process FROM "+w.table("_waiters")))
		first.Cancel()
		first.End(t)
		storetest.Release(t, a, g)
		storetest.Release(t, b, next.Granted(t))
	}
}

// TestForcedForLong: as long as the grant would have lived it is known that it was ended by force, also to
// a release that is sent twice.
func TestForcedForLong(t *testing.T) {
	t.Parallel()
	for _, shared := range []bool{false, true} {
		w := sharedWorld(t)
		l, other := w.open(t), w.open(t)
		l.warm(t)
		req := storetest.Lasting(storetest.Request("k"), time.Hour)
		req.Shared = shared
		g := storetest.Acquire(t, l, req)
		require.NoError(t, other.ForceRelease(storetest.Bounded(t), "k", g.Owner))
		storetest.Release(t, other, lock.Grant{Key: "k", Owner: g.Owner}) // leaves a mark, too
		require.True(t, value[bool](t, w, "SELECT expires > clock_timestamp() + interval '30 min' FROM "+w.table("_tombstones")))
		first := l.proxy().Lose(faultproxy.Requests().Matching(func(m []byte) bool { return m[0] == 'P' }).Nth(1))
		require.Equal(t, lock.ReasonForced, storetest.Lost(t, l.Release(storetest.Bounded(t), g)))
		storetest.Receive(t, first.Hit())
	}
}

// TestDoubtAfterError: a waiter goes on through errors of the server after which a request
// may still be under way, so its release leaves a mark for that.
func TestDoubtAfterError(t *testing.T) {
	t.Parallel()
	for _, code := range []string{"08P01", "25P04", "57P05"} {
		w := sharedWorld(t)
		l, other := w.open(t), w.open(t)
		g := storetest.Acquire(t, other, storetest.Request("k"))
		waiting := storetest.Waits(t, l, storetest.Request("k"))
		w.exec(t, fmt.Sprintf(`CREATE SEQUENCE %[1]s;
		CREATE FUNCTION %[2]s() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
			IF nextval('%[1]s') = 1 THEN RAISE EXCEPTION 'server conn crashed?' USING ERRCODE = '%[4]s'; END IF;
			RETURN NEW;
		END $$;
		CREATE TRIGGER fails BEFORE UPDATE ON %[3]s FOR EACH ROW EXECUTE FUNCTION %[2]s()`,
			w.table("_seq"), w.table("_fail"), w.table("_waiters"), code))
		storetest.Eventually(t, "the error", func() bool { return value[bool](t, w, "SELECT is_called FROM "+w.table("_seq")) })
		storetest.Release(t, other, g)
		h := waiting.Granted(t)
		storetest.Release(t, l, h)
		req := storetest.Request("k")
		req.Owner = h.Owner
		_, err := other.Acquire(storetest.Bounded(t), req)
		require.ErrorIs(t, err, lock.ErrReleased)
	}
}

// TestPoolerEndsTheConnection: a pooler passes on that its server does not let it in, or has an error of its
// own, and closes. That says nothing of the lock.
func TestPoolerEndsTheConnection(t *testing.T) {
	for _, code := range []string{"28P01", "58000", "XX000"} {
		require.True(t, postgres.MayPass(&pgconn.PgError{Severity: "FATAL", Code: code}), code)
		require.False(t, postgres.MayPass(&pgconn.PgError{Severity: "ERROR", Code: code}), code)
	}
}

// TestReleaseAgainAfterFailedUndo: a release has ended the grant, and failed to leave the tombstone
// that refuses the owner's late first request. Called again it leaves it.
func TestReleaseAgainAfterFailedUndo(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	l, other := w.open(t), w.open(t)
	req := storetest.Request("k")
	g := storetest.Acquire(t, l, req)
	l.Doubt(g.Owner)
	w.exec(t, fmt.Sprintf(`CREATE FUNCTION %[1]s() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
			RAISE EXCEPTION 'refused by the test';
		END $$;
		CREATE TRIGGER fails BEFORE INSERT ON %[2]s FOR EACH ROW EXECUTE FUNCTION %[1]s()`,
		w.table("_fail"), w.table("_tombstones")))
	require.ErrorContains(t, l.Release(storetest.Bounded(t), g), "refused by the test")
	require.Empty(t, storetest.Inspect(t, other, "k").Holders)
	w.exec(t, "DROP TRIGGER fails ON "+w.table("_tombstones"))
	require.ErrorIs(t, l.Release(storetest.Bounded(t), g), lock.ErrLost)
	_, err := other.Acquire(storetest.Bounded(t), req)
	require.ErrorIs(t, err, lock.ErrReleased)
}

// TestCommitFails: a transaction may fail at its very end, after the statement's reply: what
// has not been committed is no grant, no renewal and no release.
func TestCommitFails(t *testing.T) {
	t.Parallel()
	for _, level := range []string{"read committed", "serializable"} {
		for _, mode := range []string{"cache_statement", "exec", "simple_protocol"} {
			t.Run(level+" "+mode, func(t *testing.T) {
				t.Parallel()
				w := sharedWorld(t)
				l := w.open(t, "default_transaction_isolation="+escape(level), "default_query_exec_mode="+mode)
				ctx := storetest.Bounded(t)
				writer := storetest.Acquire(t, l, storetest.Request("written"))
				reader := storetest.Acquire(t, l, storetest.Shared(storetest.Request("read")))
				w.exec(t, fmt.Sprintf(`CREATE FUNCTION %[1]s() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
						RAISE EXCEPTION 'at the end';
					END $$;
					CREATE CONSTRAINT TRIGGER fails AFTER INSERT OR UPDATE OR DELETE ON %[2]s
						DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION %[1]s();
					CREATE CONSTRAINT TRIGGER fails AFTER INSERT OR UPDATE OR DELETE ON %[3]s
						DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION %[1]s()`,
					w.table("_fail"), w.table(""), w.table("_readers")))
				for _, g := range []lock.Grant{writer, reader} {
					free := storetest.Request("free")
					free.Shared = g.Shared
					_, err := l.Acquire(ctx, free)
					require.ErrorContains(t, err, "at the end")
					_, err = l.Renew(ctx, g)
					require.ErrorContains(t, err, "at the end")
					require.ErrorContains(t, l.Release(ctx, g), "at the end")
					storetest.Holds(t, l, g)
				}
			})
		}
	}
}

// TestReleaseOfABareGrant, of which its Locker knows neither Start nor TTL: if its first request has
// ended it, it is no loss, and else nobody knows why it is gone.
func TestReleaseOfABareGrant(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	l, other := w.open(t, "default_query_exec_mode=exec"), w.open(t)
	l.warm(t)
	for _, shared := range []bool{false, true} {
		req := storetest.Request("k")
		req.Shared = shared
		g := storetest.Acquire(t, other, req)
		bare := lock.Grant{Key: g.Key, Owner: g.Owner, Token: g.Token, Shared: shared}
		lost := l.proxy().Lose(faultproxy.Replies().Matching(func(m []byte) bool { return m[0] == '1' }).Nth(1)) // no ping's
		storetest.Release(t, l, bare)
		storetest.Receive(t, lost.Hit())
		require.Zero(t, storetest.Lost(t, l.Release(storetest.Bounded(t), bare)))
	}
}

// TestAnotherToken: a grant is an owner's and a token's. Whoever has one of the two has none.
func TestAnotherToken(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	l, other := w.open(t), w.open(t)
	ctx := storetest.Bounded(t)
	for _, shared := range []bool{false, true} {
		for _, waited := range []bool{false, true} {
			req := storetest.Request(fmt.Sprint("k", shared, waited))
			req.Shared = shared
			g := storetest.Acquire(t, l, req)
			if waited {
				storetest.Waits(t, other, storetest.Request(req.Key))
			}
			for _, wrong := range []lock.Grant{
				{Key: g.Key, Owner: g.Owner, Token: g.Token + 1, TTL: time.Hour, Shared: shared},
				{Key: g.Key, Owner: g.Owner, Token: g.Token - 1, TTL: time.Hour, Shared: shared},
				{Key: g.Key, Owner: "another", Token: g.Token, TTL: time.Hour, Shared: shared},
			} {
				_, err := l.Renew(ctx, wrong)
				require.ErrorIs(t, err, lock.ErrLost)
				require.ErrorIs(t, l.Release(ctx, wrong), lock.ErrLost)
			}
			storetest.Holds(t, l, g)
			require.Less(t, storetest.Inspect(t, l, req.Key).Holders[0].ExpiresIn, 2*time.Minute)
		}
	}
}

// TestExpiredReader: the TTL of a reader is over, and its row is still there, beside that of a living
// one.
func TestExpiredReader(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	l, other := w.open(t), w.open(t)
	living := storetest.Acquire(t, other, storetest.Shared(storetest.Request("k")))
	g := storetest.Acquire(t, l, storetest.Shared(storetest.Request("k")))
	w.exec(t, "UPDATE "+w.table("")+" SET swept = now() + interval '1 h'")
	w.exec(t, "UPDATE "+w.table("_readers")+" SET expires = now() - interval '1 s' WHERE owner = $1", g.Owner)
	_, err := l.Renew(storetest.Bounded(t), g)
	storetest.Lost(t, err)
	storetest.Lost(t, l.Release(storetest.Bounded(t), g))
	storetest.Holds(t, l, living)
}

// setBack has the clock step back to before the end of every grant and every place in line, as seen
// from what is over: it is not over any more.
func (w world) setBack(tb testing.TB) {
	tb.Helper()
	w.exec(tb, "UPDATE "+w.table("_readers")+" SET expires = now() + interval '1 min'")
	w.exec(tb, "UPDATE "+w.table("_waiters")+" SET deadline = now() + interval '1 min'")
}

// TestClockSetBackBesideAWriter: a reader's TTL is over, and a writer has the lock, from a try or from
// a release. Then the clock is set back: the reader does not live again beside the writer.
func TestClockSetBackBesideAWriter(t *testing.T) {
	t.Parallel()
	for _, handedOver := range []bool{false, true} {
		t.Run(fmt.Sprint("handed over ", handedOver), func(t *testing.T) {
			t.Parallel()
			w := sharedWorld(t)
			l, other := w.open(t), w.open(t)
			dead := storetest.Acquire(t, l, storetest.Shared(storetest.Request("k")))
			last := storetest.Acquire(t, other, storetest.Shared(storetest.Request("k")))
			waiting := storetest.Waits(t, other, storetest.Request("k"))
			w.exec(t, "UPDATE "+w.table("")+" SET swept = now() + interval '1 h'")
			w.exec(t, "UPDATE "+w.table("_readers")+" SET expires = now() - interval '1 s' WHERE owner = $1", dead.Owner)
			if handedOver {
				storetest.Release(t, other, last)
			} else {
				w.exec(t, "UPDATE "+w.table("_readers")+" SET expires = now() - interval '1 s'")
			}
			writer := waiting.Granted(t)
			w.setBack(t)
			storetest.Lost(t, l.Release(storetest.Bounded(t), dead))
			_, err := l.Renew(storetest.Bounded(t), dead)
			storetest.Lost(t, err)
			storetest.Refused(t, l, storetest.Request("k"))
			storetest.Renew(t, other, writer)
			storetest.Holds(t, other, writer)
		})
	}
}

// TestClockSetBackToALostPlace: a waiter whose place is over is granted the lock. Then the clock is
// set back: it does not wait any more.
func TestClockSetBackToALostPlace(t *testing.T) {
	t.Parallel()
	for _, shared := range []bool{false, true} {
		w := sharedWorld(t)
		l := w.open(t)
		req := storetest.Request("k")
		req.Shared, req.Wait = shared, true
		g := storetest.Acquire(t, l, storetest.Request("k"))
		lineUp(t, w, req)
		w.exec(t, "UPDATE "+w.table("")+" SET swept = now() + interval '1 h'")
		w.exec(t, "UPDATE "+w.table("_waiters")+" SET deadline = now() - interval '1 s'")
		storetest.Release(t, l, g)
		g = storetest.Acquire(t, l, req)
		w.setBack(t)
		require.Zero(t, storetest.Inspect(t, l, "k").WaiterCount)
		storetest.Release(t, l, g)
		require.Zero(t, storetest.Inspect(t, l, "k").HolderCount)
	}
}

// TestLineUpAgain: a place was lost, and its waiter lines up again before it is swept away. It counts
// once.
func TestLineUpAgain(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	l := w.open(t)
	req := storetest.Request("k")
	storetest.Acquire(t, l, storetest.Request("k"))
	lineUp(t, w, req)
	w.exec(t, "UPDATE "+w.table("")+" SET swept = now() + interval '1 h'")
	w.exec(t, "UPDATE "+w.table("_waiters")+" SET deadline = now() - interval '1 s'")
	lineUp(t, w, req)
	require.Equal(t, 1, storetest.Refused(t, l, storetest.Request("k")).WaiterCount)
}

// lineUp has req stand in line, and nobody keep its place.
func lineUp(tb testing.TB, w world, req lock.Request) {
	tb.Helper()
	w.exec(tb, fmt.Sprintf("SELECT %s($1, $2, '1 min', $3, 'p', false, NULL, '5 s', false, 0)", w.function("acquire")),
		[]byte(req.Key), req.Owner, req.Shared)
}
