package postgres_test

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/internal/storetest"
	"github.com/seed-215fdefa/lock/internal/testserver"
	"github.com/seed-215fdefa/lock/locktest/faultproxy"
	"github.com/seed-215fdefa/lock/postgres"
)

// listeners counts the connections of this server that listen for these locks' channels, by
// what they have sent last: LISTEN, or a ping.
func listeners(tb testing.TB, w world) []int32 {
	tb.Helper()
	rows, err := w.admin.Query(storetest.Bounded(tb), `SELECT pid FROM pg_stat_activity WHERE query LIKE 'LISTEN "lock_%'`)
	require.NoError(tb, err)
	pids, err := pgx.CollectRows(rows, pgx.RowTo[int32])
	require.NoError(tb, err)
	return pids
}

// TestListenerKilled: the connection that listens is ended. It comes back, and its waiters
// look again at once, so a notification that fell into the gap costs nothing.
func TestListenerKilled(t *testing.T) {
	t.Parallel()
	w := ownWorld(t)
	a, b := w.open(t), w.open(t)
	look := func() time.Duration {
		g := storetest.Acquire(t, a, storetest.Request("k"))
		waiting := storetest.Waits(t, b, storetest.Request("k"))
		storetest.Eventually(t, "the listener", func() bool { return len(listeners(t, w)) == 1 })
		heal := b.net.deafen()
		storetest.Release(t, a, g)
		w.exec(t, `SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE 'LISTEN "lock_%'`)
		heal()
		killed := time.Now()
		next := waiting.Granted(t)
		took := time.Since(killed)
		storetest.Release(t, b, next)
		return took
	}
	for range 3 {
		storetest.Fastest(t, "a look at once, not by its own timer", 5*time.Second/3, look)
	}
}

// TestListenerConnections: one for each Locker that needs it, however many wait, beside the
// pool, and none after Close.
func TestListenerConnections(t *testing.T) {
	t.Parallel()
	w := ownWorld(t)
	a, b, idle := w.open(t), w.open(t), w.open(t)
	storetest.Acquire(t, idle, storetest.Request("another"))
	g := storetest.Acquire(t, a, storetest.Request("k"))
	require.Empty(t, listeners(t, w), "nobody waits, nobody wants to be told")
	for i := range 10 {
		storetest.Waits(t, []*process{a, b}[i%2], storetest.Request("k"))
		req := storetest.Request(fmt.Sprint(i))
		req.Lost = func(lock.LostReason) {}
		storetest.Acquire(t, a, req)
	}
	require.Len(t, listeners(t, w), 2)
	require.LessOrEqual(t, a.pool.Stat().TotalConns(), a.pool.Config().MaxConns)
	storetest.Release(t, a, g)
	require.NoError(t, a.Close())
	storetest.Eventually(t, "a's end", func() bool { return len(listeners(t, w)) == 1 })
}

// TestListenerFollowsThePool: a password that BeforeConnect brings, and a handler of
// notifications that the user has set for connections of the pool.
func TestListenerFollowsThePool(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	p := w.open(t)
	config := p.pool.Config()
	var mu sync.Mutex // guards asked
	asked := 0
	config.ConnConfig.User = "nobody-knows-him"
	config.BeforeConnect = func(_ context.Context, c *pgx.ConnConfig) error {
		mu.Lock()
		defer mu.Unlock()
		asked++
		c.User = "postgres"
		return nil
	}
	config.ConnConfig.OnNotification = func(*pgconnConn, *notification) { t.Error("a notification of ours") }
	other := poolWith(t, config)
	l := postgres.New(other, w.options...)
	defer func() { require.NoError(t, l.Close()) }()
	storetest.Fastest(t, "a notification", 5*time.Second/3, func() time.Duration {
		g := storetest.Acquire(t, p, storetest.Request("k"))
		waiting := storetest.Waits(t, l, storetest.Lasting(storetest.Request("k"), 10*time.Minute))
		released := time.Now()
		storetest.Release(t, p, g)
		next := waiting.Granted(t)
		took := time.Since(released)
		storetest.Release(t, l, next)
		return took
	})
	mu.Lock()
	defer mu.Unlock()
	require.Greater(t, int64(asked), other.Stat().NewConnsCount(), "the listener asks, too")
}

// TestEarlyLossFromTheStart: the first grant of a Locker may be forced as soon as it is
// there, so it is not asked for before the Locker can hear of that.
func TestEarlyLossFromTheStart(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	other := w.open(t)
	for _, wait := range []bool{false, true} {
		for _, shared := range []bool{false, true} {
			late := faultproxy.New(t, w.server.Addr())
			thaw := late.Freeze()
			l := postgres.New(pool(t, w.url()), append(w.options, postgres.WithListenConfig(listenConfig(t, late.Addr())))...)
			defer func() { require.NoError(t, l.Close()) }()
			req, lost := storetest.Request(fmt.Sprint("k", wait, shared)), make(chan lock.LostReason, 2)
			req.Wait, req.Shared, req.Lost = wait, shared, func(r lock.LostReason) { lost <- r }
			var g lock.Grant
			granted := make(chan error, 1)
			go func() {
				var err error
				g, err = l.Acquire(storetest.Bounded(t), req)
				granted <- err
			}()
			select {
			case err := <-granted:
				require.FailNow(t, "it was granted while nobody listened", "%v", err)
			case <-time.After(300 * time.Millisecond):
			}
			require.Empty(t, storetest.Inspect(t, other, req.Key).Holders)
			thaw()
			require.NoError(t, <-granted)
			require.NoError(t, other.ForceRelease(storetest.Bounded(t), req.Key, req.Owner))
			select {
			case r := <-lost:
				require.Equal(t, lock.ReasonForced, r)
			case <-time.After(storetest.Patience):
				require.FailNow(t, "the loss was not told")
			}
			_, err := l.Renew(storetest.Bounded(t), g)
			require.Equal(t, lock.ReasonForced, storetest.Lost(t, err))
			require.Equal(t, lock.ReasonForced, storetest.Lost(t, l.Release(storetest.Bounded(t), g)))
		}
	}
}

// TestNotifyOnlyWhereNeeded: NOTIFY makes commits of the whole server wait for each other. A
// release with nobody in line, or with the next one in the same process, does without.
func TestNotifyOnlyWhereNeeded(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	l, other := w.open(t), w.open(t)
	heard := make(chan string, 10)
	spy, err := pgx.Connect(storetest.Bounded(t), w.url())
	require.NoError(t, err)
	defer func() { _ = spy.Close(context.Background()) }()
	processes := func(l *process) string { // the channel of l, from its row in the line
		g := storetest.Acquire(t, l, storetest.Request("name"))
		waiting := storetest.Waits(t, l, storetest.Request("name"))
		name := value[string](t, w, "SELECT process FROM "+w.table("_waiters"))
		storetest.Release(t, l, g)
		storetest.Release(t, l, waiting.Granted(t))
		return name
	}
	for _, p := range []*process{l, other} {
		_, err = spy.Exec(storetest.Bounded(t), "LISTEN "+pgx.Identifier{"lock_" + processes(p)}.Sanitize())
		require.NoError(t, err)
	}
	_, err = spy.Exec(storetest.Bounded(t), "LISTEN here")
	require.NoError(t, err)
	look := func() { // notifications come in the order of their commits
		w.exec(t, "NOTIFY here")
		for {
			n, err := spy.WaitForNotification(storetest.Bounded(t))
			require.NoError(t, err)
			if n.Channel == "here" {
				return
			}
			if n.Payload != "probe" { // that of a Locker to itself
				heard <- n.Payload
			}
		}
	}
	storetest.Release(t, l, storetest.Acquire(t, l, storetest.Request("k")))
	g := storetest.Acquire(t, l, storetest.Request("k"))
	near, far := storetest.Waits(t, l, storetest.Request("k")), storetest.Waits(t, other, storetest.Request("k"))
	storetest.Release(t, l, g)
	g = near.Granted(t)
	look()
	require.Empty(t, heard)
	storetest.Release(t, l, g)
	far.Granted(t)
	look()
	require.Equal(t, "wake "+far.Owner, <-heard)
	require.Empty(t, heard)

	// Nor is a writer woken who has others in the way still, when one in front gives up.
	reader := storetest.Acquire(t, l, storetest.Shared(storetest.Request("read")))
	quits, stays := storetest.Waits(t, l, storetest.Request("read")), storetest.Waits(t, other, storetest.Request("read"))
	quits.Cancel()
	quits.End(t)
	storetest.Release(t, l, lock.Grant{Key: "read", Owner: quits.Owner})
	look()
	require.Empty(t, heard)
	storetest.Release(t, l, reader)
	stays.Granted(t)
	look()
	require.Equal(t, "wake "+stays.Owner, <-heard)
}

// TestReadersWokenTogether: the readers at the head of the line, near and far, are all woken
// by the writer's release: none waits for its own timer.
func TestReadersWokenTogether(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	l, other := w.open(t), w.open(t)
	round := 0
	storetest.Fastest(t, "a wake-up of all readers", time.Second, func() time.Duration {
		round++
		key := fmt.Sprint("k", round)
		g := storetest.Acquire(t, l, storetest.Request(key))
		var readers []*storetest.Waiting
		for j := range 6 {
			readers = append(readers, storetest.Waits(t, []*process{l, other}[j%2], storetest.Shared(storetest.Request(key))))
		}
		released := time.Now()
		storetest.Release(t, l, g)
		for _, r := range readers {
			r.Granted(t)
		}
		return time.Since(released)
	})
}

// TestReservation: a waiter that has been woken and has not claimed yet is not overtaken,
// neither by a try nor by who stands behind it, until its heartbeat ends.
func TestReservation(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	a, slow, b := w.open(t), w.open(t), w.open(t)
	g := storetest.Acquire(t, a, storetest.Request("k"))
	storetest.Waits(t, slow, storetest.Lasting(storetest.Request("k"), 3*time.Second))
	slow.net.cut()
	deadline := value[time.Time](t, w, "SELECT deadline FROM "+w.table("_waiters"))
	second := storetest.Waits(t, b, storetest.Request("k"))
	storetest.Release(t, a, g)
	tries := 0
	for ; ; tries++ {
		g, err := a.Acquire(storetest.Bounded(t), storetest.Request("k"))
		if err == nil { // behind the second's, maybe, but never before the deadline
			require.Greater(t, g.Token, lock.Token(deadline.UnixMicro()))
			storetest.Release(t, a, g)
			break
		}
		require.ErrorIs(t, err, lock.ErrHeld)
		select {
		case <-second.Done:
		case <-time.After(100 * time.Millisecond):
			continue
		}
		break
	}
	require.Greater(t, second.Granted(t).Token, lock.Token(deadline.UnixMicro()), "it was overtaken")
	if tries == 0 {
		t.Skip("too slow a machine: the heartbeat had ended before the first try")
	}
}

// TestLongLine: waiters over three processes are served in the order of their arrival, with
// rising tokens.
func TestLongLine(t *testing.T) {
	t.Parallel()
	const n = 100
	w := sharedWorld(t)
	w.keepPlaces(t)
	ls := []*process{w.open(t), w.open(t), w.open(t)}
	g := storetest.Acquire(t, ls[0], storetest.Lasting(storetest.Request("k"), time.Hour))
	var line []*storetest.Waiting
	for i := range n {
		line = append(line, storetest.Waits(t, ls[i*i%3], storetest.Request("k")))
	}
	storetest.Release(t, ls[0], g)
	last := g.Token
	for i, waiting := range line {
		h := waiting.Granted(t)
		require.Greater(t, h.Token, last, "place %d", i)
		if i+1 < n {
			select {
			case <-line[i+1].Done:
				require.FailNow(t, "two at once", "place %d", i)
			default:
			}
		}
		last = h.Token
		storetest.Release(t, ls[i*i%3], h)
	}
}

// TestLineUpCost: who stands in line behind thousands reads some of them, and is told how many
// there are.
func TestLineUpCost(t *testing.T) {
	t.Parallel()
	const n = 5000
	w := sharedWorld(t)
	l := w.open(t)
	storetest.Acquire(t, l, storetest.Request("k"))
	w.exec(t, "INSERT INTO "+w.table("_waiters")+` (key, owner, ticket, shared, ttl, arrived, deadline, process, listens)
		SELECT 'k', 'o' || i, i, false, '1 min', now(), now() + '1 h', 'none', false FROM generate_series(1, $1::int) i`, n)
	// Dead ones are looked for once a second, and not now.
	w.exec(t, "UPDATE "+w.table("")+" SET crowd = true, line = $1, swept = now() + '1 h'", n)
	count := func(column string) int {
		return value[int](t, w, "SELECT coalesce("+column+", 0) FROM pg_stat_user_tables WHERE relid = $1::regclass", w.table("_waiters"))
	}
	counted := func(lined int) {
		storetest.Eventually(t, "what was read to be counted", func() bool { return count("n_tup_ins") >= n+lined })
	}
	w.exec(t, "ANALYZE "+w.table("_waiters")) // as the server does by itself: it plans by that
	counted(0)
	before := count("idx_tup_fetch + seq_tup_read")
	told := make(chan lock.Record, 1)
	req := storetest.Request("k")
	req.Wait, req.Waiting = true, func(r lock.Record) { told <- r }
	ctx, cancel := context.WithCancel(storetest.Bounded(t))
	failed := make(chan error, 1)
	go func() { _, err := l.Acquire(ctx, req); failed <- err }()
	rec := storetest.Receive(t, told)
	cancel()
	require.ErrorIs(t, storetest.Receive(t, failed), context.Canceled)
	require.Equal(t, n, rec.WaiterCount)
	require.Len(t, rec.Waiters, lock.MaxRecord)
	counted(1)
	require.Less(t, count("idx_tup_fetch + seq_tup_read")-before, n/4)
}

// TestPgBouncerWithListenConfig: statements go through the pooler, notifications past it.
func TestPgBouncerWithListenConfig(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	w.bouncer, w.listens = testserver.PgBouncer(t, w.server), true
	a, b := w.open(t), w.open(t)
	storetest.Fastest(t, "a wake-up", 5*time.Second/3, func() time.Duration {
		g := storetest.Acquire(t, a, storetest.Request("k"))
		waiting := storetest.Waits(t, b, storetest.Request("k"))
		released := time.Now()
		storetest.Release(t, a, g)
		next := waiting.Granted(t)
		took := time.Since(released)
		storetest.Release(t, b, next)
		return took
	})
	req := storetest.Request("forced")
	lost := make(chan lock.LostReason, 1)
	req.Lost = func(r lock.LostReason) { lost <- r }
	storetest.Acquire(t, b, req)
	require.NoError(t, a.ForceRelease(storetest.Bounded(t), req.Key, req.Owner))
	require.Equal(t, lock.ReasonForced, <-lost)
	contest(t, []*process{a, b}, 8)
}

// TestPgBouncerWithoutListen: a Locker that is not told of the pooler listens in vain. Its
// waiters are served all the same, by their rechecks, in any mode of sending statements that
// the pooler bears.
func TestPgBouncerWithoutListen(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	url := testserver.PostgresURL(testserver.PgBouncer(t, w.server).Addr())
	for _, mode := range []string{"exec", "simple_protocol", "cache_describe"} {
		t.Run(mode, func(t *testing.T) {
			open := func() *postgres.Locker {
				l := postgres.New(pool(t, url+"&default_query_exec_mode="+mode), w.options...)
				t.Cleanup(func() { require.NoError(t, l.Close()) })
				return l
			}
			a, b := open(), open()
			for _, mode := range []func(lock.Request) lock.Request{storetest.Shared, func(r lock.Request) lock.Request { return r }} {
				req := mode(storetest.Request("k\x00'\\" + t.Name()))
				req.Metadata = map[string]string{"it's": "\"q\" \\ \x00 ü 😀"}
				g := storetest.Renew(t, a, storetest.Acquire(t, a, req))
				require.Equal(t, req.Metadata, storetest.Inspect(t, b, req.Key).Holders[0].Metadata)
				waiting := storetest.Waits(t, b, storetest.Request(req.Key))
				storetest.Release(t, a, g)
				storetest.Release(t, b, waiting.Granted(t))
				for _, err := range a.List(storetest.Bounded(t), "k") {
					require.NoError(t, err)
				}
			}
		})
	}
}

// TestCrowd: a thousand of one process wait for one key.
func TestCrowd(t *testing.T) {
	storetest.Crowd(t, ownWorld(t).open(t), 1000)
}
