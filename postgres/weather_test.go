package postgres_test

import (
	"context"
	"errors"
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

// demote makes a server read-only for all its connections, and leaves them open, as a managed
// failover does; its standby takes over.
func (w world) demote(tb testing.TB) {
	tb.Helper()
	w.pair.CatchUp()
	w.exec(tb, "ALTER SYSTEM SET default_transaction_read_only = on")
	w.exec(tb, "SELECT pg_reload_conf()")
	storetest.Eventually(tb, "the server to be read-only", func() bool {
		return value[string](tb, w, "SHOW transaction_read_only") == "on"
	})
	w.pair.Promote()
}

// TestDemotedServer: the connections of the pool live, to a server that takes no writes any
// more. They leave the pool: all calls go on at the new primary. So does the listener, which a
// release there is heard by.
func TestDemotedServer(t *testing.T) {
	t.Parallel()
	w := pairWorld(t)
	a, b := w.open(t), w.open(t)
	for _, l := range []*process{a, b} {
		l.warm(t) // connections to the old server, that which listens too
	}
	g := storetest.Acquire(t, a, storetest.Request("k"))
	waiting := storetest.Waits(t, b, storetest.Request("k"))
	w.demote(t)
	for i := range 4 {
		storetest.Release(t, a, storetest.Acquire(t, a, storetest.Request(fmt.Sprint("free ", i))))
	}
	g = storetest.Renew(t, a, g)
	storetest.Release(t, a, g)
	storetest.Release(t, b, waiting.Granted(t))

	// By now b listens where a notifies: a wake-up comes sooner than any recheck would.
	storetest.Eventually(t, "a prompt wake-up", func() bool {
		g := storetest.Acquire(t, a, storetest.Request("k"))
		waiting := storetest.Waits(t, b, storetest.Request("k"))
		time.Sleep(50 * time.Millisecond) // it has claimed since its listener came back
		released := time.Now()
		storetest.Release(t, a, g)
		h := waiting.Granted(t)
		prompt := time.Since(released) < time.Second
		storetest.Release(t, b, h)
		return prompt
	})
}

// withRole is w for a role that has the rights which the package comment asks for, and no more.
func (w world) withRole(tb testing.TB, name string) *pgxpool.Config {
	tb.Helper()
	role := pgx.Identifier{name}.Sanitize()
	w.exec(tb, "CREATE ROLE "+role+" LOGIN")
	schema := pgx.Identifier{w.schema}.Sanitize()
	w.exec(tb, fmt.Sprintf("GRANT USAGE ON SCHEMA %[1]s TO %[2]s; GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA %[1]s TO %[2]s", schema, role))
	tb.Cleanup(func() { w.exec(tb, "DROP OWNED BY "+role+"; DROP ROLE "+role) })
	config, err := pgxpool.ParseConfig(w.url())
	require.NoError(tb, err)
	config.ConnConfig.User = name
	return config
}

// told keeps what a WithPushObserver says.
type told struct {
	mu   sync.Mutex // guards errs
	errs []error
}

func (p *told) tell(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.errs = append(p.errs, err)
}

func (p *told) all() []error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return append([]error(nil), p.errs...)
}

// TestNoRightToNotify: releases, undos and forced releases have their effect, waiters get in by
// rechecks, and it is told.
func TestNoRightToNotify(t *testing.T) {
	t.Parallel()
	w := ownWorld(t)
	w.exec(t, "REVOKE EXECUTE ON FUNCTION pg_notify(text, text) FROM PUBLIC")
	config := w.withRole(t, "quiet")
	var push told
	var ls []*postgres.Locker
	for range 2 {
		l := postgres.New(poolWith(t, config.Copy()), append(w.options[:1:1], postgres.WithPushObserver(push.tell))...)
		t.Cleanup(func() { require.NoError(t, l.Close()) })
		ls = append(ls, l)
	}
	a, b := ls[0], ls[1]
	g := storetest.Acquire(t, a, storetest.Request("k"))
	first, second := storetest.Waits(t, b, storetest.Request("k")), storetest.Waits(t, b, storetest.Request("k"))
	storetest.Release(t, a, g)
	g = first.Granted(t)
	require.NoError(t, a.ForceRelease(storetest.Bounded(t), "k", g.Owner))
	undo(t, a, storetest.Request("k"))
	storetest.Release(t, b, second.Granted(t))

	storetest.Waits(t, b, holding(t, a, "held"))
	storetest.Eventually(t, "the state of the push", func() bool { return len(push.all()) > 0 })
	require.ErrorContains(t, push.all()[0], "pg_notify")
	w.exec(t, "GRANT EXECUTE ON FUNCTION pg_notify(text, text) TO PUBLIC")
	storetest.Eventually(t, "the way back", func() bool { all := push.all(); return all[len(all)-1] == nil })
}

// holding has l hold key, and returns a request for it.
func holding(tb testing.TB, l lock.Locker, key string) lock.Request {
	tb.Helper()
	storetest.Acquire(tb, l, storetest.Request(key))
	return storetest.Request(key)
}

// TestNotifyQueueFull: the server says so when it commits, so a function cannot go on without. A
// queue of 8 GB is not for a test: a trigger fails the first commit as it would. The next may be that of
// a waiter.
func TestNotifyQueueFull(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	a, b := w.open(t), w.open(t)
	w.exec(t, fmt.Sprintf(`CREATE SEQUENCE %[1]s;
		CREATE FUNCTION %[2]s() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
			IF nextval('%[1]s') = 1 THEN
				RAISE EXCEPTION 'too many notifications in the NOTIFY queue' USING ERRCODE = '54000';
			END IF;
			RETURN NEW;
		END $$`, w.table("_seq"), w.table("_full")))
	full := func(call func() error) {
		t.Helper()
		w.exec(t, fmt.Sprintf(`SELECT setval('%[1]s', 1, false);
			CREATE CONSTRAINT TRIGGER queue AFTER UPDATE OF owner ON %[2]s
			DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION %[3]s()`, w.table("_seq"), w.table(""), w.table("_full")))
		require.NoError(t, call())
		w.exec(t, "DROP TRIGGER queue ON "+w.table(""))
	}
	g := storetest.Acquire(t, a, storetest.Request("k"))
	first, second := storetest.Waits(t, b, storetest.Request("k")), storetest.Waits(t, b, storetest.Request("k"))
	full(func() error { return a.Release(storetest.Bounded(t), g) })
	g = first.Granted(t)
	full(func() error { return a.ForceRelease(storetest.Bounded(t), "k", g.Owner) })
	storetest.Release(t, b, second.Granted(t))
}

// TestMissingRights: the error names what to grant.
func TestMissingRights(t *testing.T) {
	t.Parallel()
	w := ownWorld(t)
	config := w.withRole(t, "beggar")
	schema := pgx.Identifier{w.schema}.Sanitize()
	for _, revoke := range []string{"USAGE ON SCHEMA " + schema, "UPDATE ON " + w.table("")} {
		w.exec(t, "REVOKE "+revoke+" FROM beggar")
		l := postgres.New(poolWith(t, config.Copy()), w.options...)
		_, err := l.Acquire(storetest.Bounded(t), storetest.Request("k"))
		require.ErrorContains(t, err, "permission denied")
		require.ErrorContains(t, err, "needs USAGE on schema "+schema+", and SELECT, INSERT, UPDATE and DELETE on its tables")
		require.NoError(t, l.Close())
		w.exec(t, "GRANT "+revoke+" TO beggar")
	}
}

// TestExhaustedPool: the error says what there was too little of.
func TestExhaustedPool(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	p := pool(t, w.url()+"&pool_max_conns=1")
	l := postgres.New(p, w.options...)
	defer func() { require.NoError(t, l.Close()) }()
	c, err := p.Acquire(storetest.Bounded(t))
	require.NoError(t, err)
	defer c.Release()
	ctx, cancel := context.WithTimeout(storetest.Bounded(t), time.Second)
	defer cancel()
	_, err = l.Acquire(ctx, storetest.Request("k"))
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.ErrorContains(t, err, "all 1 connections of the pool are in use")
}

// TestNoServer: the first request's error is told at once, and is the server's own.
func TestNoServer(t *testing.T) {
	t.Parallel()
	l := postgres.New(pool(t, "postgres://127.0.0.1:1/none?sslmode=disable"))
	defer func() { require.NoError(t, l.Close()) }()
	for _, wait := range []bool{false, true} {
		req := storetest.Request("k")
		req.Wait = wait
		_, err := l.Acquire(storetest.Bounded(t), req)
		require.ErrorContains(t, err, "connection refused")
		require.NotErrorIs(t, err, context.DeadlineExceeded)
	}
}

// TestZeroLocker: one that New has not made is an error, and no panic.
func TestZeroLocker(t *testing.T) {
	for name, l := range map[string]*postgres.Locker{"nil": nil, "zero": {}} {
		for method, call := range everyCall(l, someGrant()) {
			err := call(context.Background())
			require.ErrorIs(t, err, lock.ErrInvalid, "%s %s", name, method)
			require.ErrorContains(t, err, "New makes one", "%s %s", name, method)
		}
		require.NoError(t, l.Close())
	}
}

// TestEscapedBytes: a server that writes bytea in the old way, and a protocol that reads it.
func TestEscapedBytes(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	for _, mode := range []string{"cache_statement", "exec", "simple_protocol"} {
		l := w.open(t, "bytea_output=escape", "default_query_exec_mode="+mode)
		key := mode + " \\ \x01 ü '"
		g := storetest.Acquire(t, l, storetest.Request(key))
		storetest.Holds(t, l, g)
		n := 0
		for r, err := range l.List(storetest.Bounded(t), mode) {
			require.NoError(t, err)
			require.Equal(t, key, r.Key)
			n++
		}
		require.Equal(t, 1, n)
		w.age(t)
		_, err := l.Prune(storetest.Bounded(t), 0)
		require.NoError(t, err)
		storetest.Release(t, l, g)
	}
}

// TestWritersBeforeReaders: nobody passes a waiting writer, whether it tries or waits.
func TestWritersBeforeReaders(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	a, b := w.open(t), w.open(t)
	g := storetest.Acquire(t, a, storetest.Shared(storetest.Request("k")))
	writer := storetest.Waits(t, b, storetest.Request("k"))
	rec := storetest.Refused(t, a, storetest.Shared(storetest.Request("k")))
	require.Equal(t, 1, rec.WaiterCount)
	reader := storetest.Waits(t, a, storetest.Shared(storetest.Request("k")))
	storetest.Release(t, a, g)
	h := writer.Granted(t)
	require.False(t, reader.Grant.Token != 0)
	storetest.Release(t, b, h)
	storetest.Release(t, a, reader.Granted(t))
}

// TestReasonIsAFact: a grant that vanished before its TTL was over has not expired.
func TestReasonIsAFact(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	l := w.open(t)
	for _, shared := range []bool{false, true} {
		for _, table := range []string{"", "_readers"} {
			req := storetest.Request(fmt.Sprint(shared, table))
			req.Shared = shared
			g := storetest.Acquire(t, l, req)
			w.exec(t, "DELETE FROM "+w.table(table))
			_, err := l.Renew(storetest.Bounded(t), g)
			if table == "" || shared {
				require.Zero(t, storetest.Lost(t, err))
				require.Zero(t, storetest.Lost(t, l.Release(storetest.Bounded(t), g)))
			}
		}
	}
	g := storetest.Acquire(t, l, storetest.Lasting(storetest.Request("short"), 10*time.Millisecond))
	ends(t, l, "short")
	_, err := l.Renew(storetest.Bounded(t), g)
	require.Equal(t, lock.ReasonExpired, storetest.Lost(t, err))
}

// TestWaitOutlivesARestart, of a server that is down for longer than one try lasts.
func TestWaitOutlivesARestart(t *testing.T) {
	t.Parallel()
	w := ownWorld(t)
	a, b := w.open(t), w.open(t)
	g := storetest.Acquire(t, a, storetest.Request("k"))
	waiting := storetest.Waits(t, b, storetest.Request("k"))
	killed := time.Now()
	w.server.Kill()
	_, err := a.Renew(storetest.Bounded(t), g)
	require.Error(t, err)
	require.False(t, errors.Is(err, lock.ErrLost))
	time.Sleep(11 * time.Second) // what patience was
	w.server.Start()
	storetest.Eventually(t, "the server", func() bool { _, err := a.Renew(storetest.Bounded(t), g); return err == nil })
	if away := time.Since(killed); away > lock.Patience-10*time.Second {
		t.Skipf("too slow a machine: the server was away for %v", away)
	}
	storetest.Release(t, a, g)
	storetest.Release(t, b, waiting.Granted(t))
}

// TestReadOnlyForLong: a server that stays read-only is not asked by ever new connections, however many
// wait for it. They go on when it takes writes again.
func TestReadOnlyForLong(t *testing.T) {
	t.Parallel()
	w := ownWorld(t)
	w.keepPlaces(t)
	holder, l := w.open(t), w.open(t)
	var grants []lock.Grant
	var waiting []*storetest.Waiting
	for i := range 50 {
		req := storetest.Request(fmt.Sprint("k", i%10))
		if i < 10 {
			grants = append(grants, storetest.Acquire(t, holder, storetest.Lasting(storetest.Request(req.Key), time.Hour)))
		}
		waiting = append(waiting, storetest.Waits(t, l, req))
	}
	setReadOnly := func(on bool) { // and leave the connections open
		w.exec(t, fmt.Sprintf("ALTER SYSTEM SET default_transaction_read_only = %t", on))
		w.exec(t, "SELECT pg_reload_conf()")
	}
	setReadOnly(true)
	storetest.Eventually(t, "the server to be read-only", func() bool {
		_, err := l.Acquire(storetest.Bounded(t), storetest.Request("free"))
		return errors.Is(err, postgres.ErrReadOnly)
	})
	before, begun := l.pool.Stat().NewConnsCount(), time.Now()
	for time.Since(begun) < 3*time.Second { // far less than Patience
		_, err := l.Acquire(storetest.Bounded(t), storetest.Request("free"))
		require.ErrorIs(t, err, postgres.ErrReadOnly)
		time.Sleep(30 * time.Millisecond) // while all of them look
	}
	most := int64(l.pool.Config().MaxConns) * int64(time.Since(begun)/time.Second+2) // all of them, once a second
	require.LessOrEqual(t, l.pool.Stat().NewConnsCount()-before, most)
	setReadOnly(false)
	for i, g := range grants {
		storetest.Eventually(t, "the release", func() bool { return holder.Release(storetest.Bounded(t), g) == nil })
		storetest.Release(t, l, waiting[i].Granted(t))
	}
}
