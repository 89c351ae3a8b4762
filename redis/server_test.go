package redis_test

import (
	"context"
	"errors"
	"net"
	"testing"
	"time"

	goredis "github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/internal/storetest"
	"github.com/seed-215fdefa/lock/internal/testserver"
	"github.com/seed-215fdefa/lock/redis"
)

// dial is a Locker on a client of the test's own making.
func dial(tb testing.TB, o *goredis.Options, opts ...redis.Option) *redis.Locker {
	rdb := goredis.NewClient(o)
	l := redis.New(rdb, opts...)
	tb.Cleanup(func() {
		_ = l.Close()
		_ = rdb.Close()
	})
	return l
}

// hostPort splits a server's address for its command line.
func hostPort(tb testing.TB, s *testserver.Server) string {
	host, port, err := net.SplitHostPort(s.Addr())
	require.NoError(tb, err)
	return host + " " + port
}

// TestServerAway: a refused connection is an error of its own, and no loss.
func TestServerAway(t *testing.T) {
	t.Parallel()
	w := ownWorld(t)
	l := w.open(t)
	g := acquire(t, l, request("k"))
	w.server.Kill()
	for method, call := range everyCall(l.Locker) {
		err := call(bounded(t))
		require.ErrorContains(t, err, "lock: redis: ", method)
		require.ErrorContains(t, err, "connection refused", method)
		require.NotErrorIs(t, err, lock.ErrHeld, method)
		require.NotErrorIs(t, err, lock.ErrLost, method)
	}
	w.server.Start() // without its data
	// go-redis goes on refusing for up to a second by itself.
	eventually(t, "an answer", func() bool {
		_, err := l.Renew(bounded(t), g)
		if errors.Is(err, lock.ErrLost) {
			lostBecause(t, 0, err) // its TTL is not over: nobody can know why it is gone
			return true
		}
		require.ErrorContains(t, err, "connection refused")
		return false
	})
	next := acquire(t, l, request("k"))
	require.Greater(t, next.Token, g.Token)
}

// TestServerRestartsUnderWaiters: they go on, and are served.
func TestServerRestartsUnderWaiters(t *testing.T) {
	t.Parallel()
	w := ownWorld(t)
	a, b := w.open(t), w.open(t)
	g := acquire(t, a, request("k"))
	waiters := []*waiter{waits(t, a, request("k")), waits(t, b, request("k"))}
	w.server.Kill()
	w.server.Start()
	last := g.Token
	for _, w := range inOrderOfGrant(t, waiters) {
		require.Greater(t, w.Token, last)
		last = w.Token
	}
}

// TestServerRefusesLogin: the server's own words reach each caller, at once.
func TestServerRefusesLogin(t *testing.T) {
	t.Parallel()
	server := testserver.Redis(t, "--requirepass", "right")
	acquire(t, dial(t, &goredis.Options{Addr: server.Addr(), Password: "right"}), request("k"))
	for password, refusal := range map[string]struct {
		says    string
		callers int
	}{
		"wrong": {"WRONGPASS", 16},             // they share round trips
		"":      {"NOAUTH|unauthenticated", 1}, // the latter of a long command; then the server hangs up
	} {
		l := dial(t, &goredis.Options{Addr: server.Addr(), Password: password})
		for method, call := range everyCall(l) {
			errs := make(chan error, refusal.callers)
			for range refusal.callers {
				go func() { errs <- call(bounded(t)) }()
			}
			for range refusal.callers {
				err := storetest.Receive(t, errs)
				require.Error(t, err, method)
				require.Regexp(t, "^lock: redis: .*("+refusal.says+")", err.Error(), method)
			}
		}
	}
}

// TestServerForbidsKeys: a user without rights on the keys.
func TestServerForbidsKeys(t *testing.T) {
	t.Parallel()
	w := ownWorld(t)
	require.NoError(t, w.rdb.Do(bounded(t), "ACL", "SETUSER", "u", "on", ">p", "+@all", "~other:*", "&*").Err())
	l := dial(t, &goredis.Options{Addr: w.server.Addr(), Username: "u", Password: "p"})
	_, err := l.Acquire(bounded(t), request("k"))
	require.ErrorContains(t, err, "NOPERM")
	require.ErrorContains(t, err, `the scripts for "lock:{k}" need the rights`)
}

// TestReadOnlyReplica: writing fails and says so, reading works.
func TestReadOnlyReplica(t *testing.T) {
	t.Parallel()
	master := ownWorld(t)
	l := master.open(t)
	g, reader := acquire(t, l, request("k")), acquire(t, l, shared(request("s")))
	replica := testserver.Redis(t, "--replicaof", hostPort(t, master.server))
	there := open(t, replica, redis.WithPrefix(master.prefix))
	eventually(t, "replication", func() bool { return len(inspect(t, there, "k").Holders) == 1 })

	_, err := there.Acquire(bounded(t), request("free"))
	require.ErrorContains(t, err, "READONLY")
	_, err = there.Acquire(bounded(t), shared(request("s")))
	require.ErrorContains(t, err, "READONLY")
	for _, g := range []lock.Grant{g, reader} {
		_, err = there.Renew(bounded(t), g)
		require.ErrorContains(t, err, "READONLY")
		err = there.Release(bounded(t), g)
		require.ErrorContains(t, err, "READONLY")
		require.NotErrorIs(t, err, lock.ErrLost)
		holds(t, l, g)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond) // all its tries take longer
	defer cancel()
	_, err = there.Acquire(ctx, request("free"))
	require.ErrorIs(t, err, context.DeadlineExceeded)
}

// TestOutOfMemory: nothing new is granted, and what is held can be kept and let go of.
func TestOutOfMemory(t *testing.T) {
	t.Parallel()
	w := ownWorld(t)
	ctx := bounded(t)
	l := w.open(t)
	writer := acquire(t, l, request("writer"))
	readers := []lock.Grant{acquire(t, l, shared(request("r"))), acquire(t, l, shared(request("r")))}
	undone, undoneReader := acquire(t, l, request("u")), acquire(t, l, shared(request("ur")))
	passed := acquire(t, l, request("passed"))
	next := waits(t, l, request("passed"))
	limit := func(maxmemory string) {
		t.Helper()
		require.NoError(t, w.rdb.ConfigSet(ctx, "maxmemory", maxmemory).Err())
	}
	limit("1")
	_, err := l.Acquire(ctx, request("free"))
	require.ErrorContains(t, err, "lock: redis: OOM")
	wait := request("writer")
	wait.Wait = true
	_, err = l.Acquire(ctx, wait)
	require.ErrorContains(t, err, "lock: redis: OOM")
	release(t, l, lock.Grant{Key: wait.Key, Owner: wait.Owner}) // the place in line, if any
	// Redis refuses only a script's first write, so a reader may get in.
	for _, req := range []lock.Request{shared(request("free")), shared(request("r"))} {
		if g, err := l.Acquire(ctx, req); err == nil {
			release(t, l, g)
		} else {
			require.ErrorContains(t, err, "lock: redis: OOM")
		}
	}

	for _, g := range append(readers, writer) {
		renew(t, l, g)
		before := inspect(t, l, g.Key)
		time.Sleep(2 * time.Millisecond)
		renewed := renew(t, l, g)
		require.Len(t, inspect(t, l, g.Key).Holders, len(before.Holders))
		release(t, l, renewed)
	}
	for _, g := range []lock.Grant{undone, undoneReader} {
		release(t, l, lock.Grant{Key: g.Key, Owner: g.Owner})
	}
	release(t, l, passed)
	for _, key := range []string{"writer", "r", "u", "ur"} {
		require.Empty(t, inspect(t, l, key).Holders, key)
	}
	limit("0")
	if next.end(); next.err == nil { // handed over, or refused before: both are clear
		release(t, l, next.grant)
	} else {
		require.ErrorContains(t, next.err, "OOM")
	}
	require.Greater(t, acquire(t, l, request("writer")).Token, writer.Token)
}

// TestScriptsForgotten: the server may lose its scripts between any two calls.
func TestScriptsForgotten(t *testing.T) {
	t.Parallel()
	w := ownWorld(t)
	l, other := w.open(t), w.open(t)
	forget := func() { require.NoError(t, w.rdb.ScriptFlush(bounded(t)).Err()) }
	both(t, func(t *testing.T, mode func(lock.Request) lock.Request) {
		forget()
		g := acquire(t, l, mode(request("k")))
		forget()
		g = renew(t, l, g)
		forget()
		inspect(t, l, "k")
		next := waits(t, other, request("k"))
		forget()
		release(t, l, g)
		forget()
		h := next.granted()
		require.Greater(t, h.Token, g.Token)
		forget()
		require.NoError(t, l.ForceRelease(bounded(t), "k", h.Owner))
		forget()
		release(t, l, lock.Grant{Key: "k", Owner: "undo"})
	})
}

// TestServerBusy: a script of somebody else's holds up the server, which says BUSY.
func TestServerBusy(t *testing.T) {
	t.Parallel()
	w := ownWorld(t, "--busy-reply-threshold", "1")
	l := w.open(t)
	acquire(t, l, request("warm up"))
	slow := goredis.NewClient(&goredis.Options{Addr: w.server.Addr(), ReadTimeout: -1})
	defer func() { _ = slow.Close() }()
	ended := make(chan error, 1)
	go func() { ended <- slow.Eval(context.Background(), "while true do end", nil).Err() }()
	eventually(t, "BUSY", func() bool {
		return goredis.HasErrorPrefix(w.rdb.Get(bounded(t), "x").Err(), "BUSY")
	})
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond) // all its tries take longer
	defer cancel()
	_, err := l.Acquire(ctx, request("k"))
	require.ErrorIs(t, err, context.DeadlineExceeded)

	got := asks(t, l, request("k")) // from now until the script is killed it is refused
	require.NoError(t, w.rdb.ScriptKill(bounded(t)).Err())
	require.Error(t, <-ended)
	got.granted()
}
