package redlock_test

import (
	"context"
	"crypto/rand"
	"strings"
	"testing"
	"time"

	goredis "github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/internal/storetest"
	"github.com/seed-215fdefa/lock/redlock"
)

// TestRefusedConnections: a call to servers that are not there says so, and not just that there
// was no answer, the first call as well as a later one.
func TestRefusedConnections(t *testing.T) {
	t.Parallel()
	w := ownWorld(t)
	dial := func() *redlock.Locker {
		var nodes []goredis.UniversalClient
		for _, s := range w.servers {
			rdb := goredis.NewClient(&goredis.Options{Addr: s.Addr()}) // as users make it
			t.Cleanup(func() { _ = rdb.Close() })
			nodes = append(nodes, rdb)
		}
		l := redlock.New(nodes, redlock.WithPrefix(w.prefix))
		t.Cleanup(func() { _ = l.Close() })
		return l
	}
	known := dial()
	storetest.Eventually(t, "a first grant", func() bool {
		_, err := known.Acquire(storetest.Bounded(t), storetest.Request("k"))
		return err == nil
	})
	for _, s := range w.servers {
		s.Kill()
	}
	for name, l := range map[string]*redlock.Locker{"known": known, "stranger": dial()} {
		storetest.Eventually(t, name+" told of a refused connection", func() bool {
			_, err := l.Acquire(storetest.Bounded(t), storetest.Request("free"))
			require.ErrorIs(t, err, redlock.ErrNoQuorum)
			return strings.Count(err.Error(), "connection refused") == len(w.servers)
		})
	}
}

// TestPasswordChanged: nodes that have voted before refuse the login of new connections. Each of the calls
// that share one says so.
func TestPasswordChanged(t *testing.T) {
	t.Parallel()
	w := ownWorld(t, "--requirepass", "old")
	var nodes []goredis.UniversalClient
	for _, s := range w.servers {
		rdb := goredis.NewClient(&goredis.Options{Addr: s.Addr(), Password: "old"})
		t.Cleanup(func() { _ = rdb.Close() })
		nodes = append(nodes, rdb)
	}
	l := redlock.New(nodes, redlock.WithPrefix(w.prefix), redlock.WithTimeout(5*time.Second))
	t.Cleanup(func() { _ = l.Close() })
	storetest.Eventually(t, "a first grant", func() bool {
		_, err := l.Acquire(storetest.Bounded(t), storetest.Request("k"))
		return err == nil
	})
	for _, rdb := range nodes {
		require.NoError(t, rdb.ConfigSet(storetest.Bounded(t), "requirepass", "new").Err())
		require.NoError(t, rdb.Do(storetest.Bounded(t), "CLIENT", "KILL", "TYPE", "normal", "SKIPME", "no").Err())
	}
	errs := make(chan error, 64)
	for range cap(errs) {
		go func() {
			_, err := l.Acquire(storetest.Bounded(t), storetest.Request(rand.Text()))
			errs <- err
		}()
	}
	for range cap(errs) {
		err := storetest.Receive(t, errs)
		require.ErrorIs(t, err, redlock.ErrNoQuorum)
		require.ErrorContains(t, err, "WRONGPASS")
		require.NotContains(t, err.Error(), "unexpected reply")
	}
}

// TestRights: the rights that the package comment lists are enough, and a missing one is
// told with what to do, to a first call and to one who waits.
func TestRights(t *testing.T) {
	t.Parallel()
	w := ownWorld(t)
	w.prefix = "redlock:"
	acl := func(rules ...any) {
		for i := range w.servers {
			require.NoError(t, w.plain[i].Do(storetest.Bounded(t), append([]any{"ACL", "SETUSER", "app"}, rules...)...).Err())
		}
	}
	acl("on", ">p")
	for _, rules := range storetest.ACL(t, "redlock.go") {
		acl(rules...)
	}
	var nodes []goredis.UniversalClient
	for _, s := range w.servers {
		rdb := goredis.NewClient(&goredis.Options{Addr: s.Addr(), Username: "app", Password: "p"})
		t.Cleanup(func() { _ = rdb.Close() })
		nodes = append(nodes, rdb)
	}
	l := redlock.New(nodes, redlock.WithTimeout(5*time.Second))
	t.Cleanup(func() { _ = l.Close() })
	ctx := storetest.Bounded(t)
	for _, mode := range []func(lock.Request) lock.Request{exclusive, storetest.Shared} {
		g := storetest.Renew(t, l, storetest.Acquire(t, l, mode(storetest.Request("k"))))
		storetest.Refused(t, l, storetest.Request("k"))
		for rec, err := range l.List(ctx, "") {
			require.NoError(t, err)
			require.Equal(t, "k", rec.Key)
		}
		storetest.Release(t, l, g)
		g = storetest.Await(t, l, mode(storetest.Request("k")))
		require.NoError(t, l.ForceRelease(ctx, "k", g.Owner))
	}
	storetest.Await(t, l, storetest.Request("k"))
	waiting := storetest.Waits(t, l, storetest.Request("k"))
	acl("-time")
	waiting.End(t)
	require.ErrorContains(t, waiting.Err, "rights that the package comment lists")
	_, err := l.Acquire(ctx, storetest.Request("other"))
	require.ErrorContains(t, err, "rights that the package comment lists")
}

// TestWaitsThroughTrouble: what nodes refuse for a time ends no wait, nor does a majority that
// is away for a time.
func TestWaitsThroughTrouble(t *testing.T) {
	t.Parallel()
	config := func(k, v string) func(testing.TB, world) {
		return func(tb testing.TB, w world) {
			for i := range w.servers {
				require.NoError(tb, w.plain[i].ConfigSet(storetest.Bounded(tb), k, v).Err())
			}
		}
	}
	for name, c := range map[string]struct {
		fail, heal func(testing.TB, world)
		says       string
	}{
		"OOM":        {config("maxmemory", "1"), config("maxmemory", "0"), "OOM"},
		"NOREPLICAS": {config("min-replicas-to-write", "1"), config("min-replicas-to-write", "0"), "NOREPLICAS"},
		"refused": {func(_ testing.TB, w world) {
			for _, s := range w.servers {
				s.Kill()
			}
		}, func(_ testing.TB, w world) {
			for _, s := range w.servers {
				s.Start()
			}
		}, "connection refused"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := ownWorld(t)
			// Nodes that come back without their data abstain for no longer than this.
			const maxTTL = 5 * time.Second
			short := redlock.WithMaxTTL(maxTTL)
			a, b := w.ready(t, short), w.ready(t, short)
			g := storetest.Acquire(t, a, storetest.Lasting(storetest.Request("k"), maxTTL))
			waiting := storetest.Waits(t, b, storetest.Request("k"))
			c.fail(t, w)
			_, err := a.Acquire(storetest.Bounded(t), storetest.Request("first"))
			require.ErrorContains(t, err, c.says, "a call does not begin in trouble")
			storetest.Eventually(t, "the end of the grant", func() bool { return time.Since(g.Start) > g.TTL })
			_, err = a.Acquire(storetest.Bounded(t), storetest.Request("later"))
			require.Error(t, err)
			select {
			case <-waiting.Done: // a slow machine may have granted it before the trouble
				require.NoError(t, waiting.Err)
			default:
			}
			c.heal(t, w)
			waiting.Granted(t)
		})
	}
}

// TestTroubleOfACanceledWait: its error has what the nodes said last, besides ctx's.
func TestTroubleOfACanceledWait(t *testing.T) {
	t.Parallel()
	w := ownWorld(t)
	p := w.ready(t)
	g := storetest.Acquire(t, p, storetest.Request("k"))
	waiting := storetest.Waits(t, p, storetest.Request("k"))
	for i := range w.servers {
		require.NoError(t, w.plain[i].ConfigSet(storetest.Bounded(t), "maxmemory", "1").Err())
	}
	storetest.Release(t, p, g)
	refusals := func() (least int) {
		for i := range w.servers {
			info, err := w.plain[i].Info(storetest.Bounded(t), "stats").Result()
			require.NoError(t, err)
			if n := storetest.RedisInfo(t, info, "total_error_replies"); i == 0 || n < least {
				least = n
			}
		}
		return least
	}
	before := refusals()
	storetest.Eventually(t, "a whole look of the waiter", func() bool { return refusals() > before+2 })
	waiting.Cancel()
	waiting.End(t)
	require.ErrorIs(t, waiting.Err, context.Canceled)
	require.ErrorIs(t, waiting.Err, lock.ErrHeld)
	require.ErrorContains(t, waiting.Err, "OOM")
}

// TestLongTTL: a TTL above the longest is cut to it, and the grant says so.
func TestLongTTL(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	p := w.ready(t)
	g := storetest.Acquire(t, p, storetest.Lasting(storetest.Request("k"), time.Hour))
	require.Equal(t, time.Minute, g.TTL)
	g.TTL = time.Hour
	g = storetest.Renew(t, p, g)
	require.Equal(t, time.Minute, g.TTL)
	require.LessOrEqual(t, storetest.Inspect(t, p, "k").Holders[0].ExpiresIn, time.Minute)
	storetest.Release(t, p, g)
}
