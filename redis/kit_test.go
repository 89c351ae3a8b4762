package redis_test

import (
	"context"
	"testing"
	"time"

	goredis "github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/internal/storetest"
	"github.com/seed-215fdefa/lock/internal/testserver"
	"github.com/seed-215fdefa/lock/redis"
)

// patience is for what takes milliseconds on an idle machine: it is meant to fail hangs.
const patience = storetest.Patience

// The kit that the tests of all stores share, in short.
var (
	bounded    = storetest.Bounded
	request    = storetest.Request
	shared     = storetest.Shared
	lasting    = storetest.Lasting
	acquire    = storetest.Acquire
	release    = storetest.Release
	renew      = storetest.Renew
	inspect    = storetest.Inspect
	holds      = storetest.Holds
	refused    = storetest.Refused
	eventually = storetest.Eventually
)

// client returns a plain client of server, beside all Lockers.
func client(tb testing.TB, server *testserver.Server) *goredis.Client {
	tb.Helper()
	rdb := goredis.NewClient(&goredis.Options{Addr: server.Addr()})
	tb.Cleanup(func() { _ = rdb.Close() })
	return rdb
}

// both runs f for exclusive and for shared requests.
func both(t *testing.T, f func(t *testing.T, mode func(lock.Request) lock.Request)) {
	t.Run("exclusive", func(t *testing.T) { f(t, func(r lock.Request) lock.Request { return r }) })
	t.Run("shared", func(t *testing.T) { f(t, shared) })
}

// lostBecause checks that err is a *lock.LostError with that reason.
func lostBecause(tb testing.TB, reason lock.LostReason, err error) {
	tb.Helper()
	require.Equal(tb, reason, storetest.Lost(tb, err), "%v", err)
}

// waiter is an Acquire with Wait that is under way.
type waiter struct {
	tb     testing.TB
	l      lock.Locker
	req    lock.Request
	cancel context.CancelFunc
	done   chan struct{} // closed when it has returned; then the rest may be read
	grant  lock.Grant
	err    error
	at     time.Time
}

// waits lets req stand in line, and returns when it does.
func waits(tb testing.TB, l lock.Locker, req lock.Request) *waiter {
	tb.Helper()
	inLine := make(chan struct{})
	req.Waiting = func(lock.Record) { close(inLine) }
	w := asks(tb, l, req)
	select {
	case <-inLine:
	case <-w.done:
		require.FailNow(tb, "it does not wait", "%v %v", w.grant, w.err)
	case <-time.After(patience):
		require.FailNow(tb, "it is not in line")
	}
	return w
}

// asks sends req with Wait in the background, and undoes it with the test.
func asks(tb testing.TB, l lock.Locker, req lock.Request) *waiter {
	ctx, cancel := context.WithCancel(context.Background())
	req.Wait = true
	w := &waiter{tb: tb, l: l, req: req, cancel: cancel, done: make(chan struct{})}
	go func() {
		defer close(w.done)
		w.grant, w.err = l.Acquire(ctx, req)
		w.at = time.Now()
	}()
	tb.Cleanup(func() { cancel(); <-w.done })
	return w
}

// end returns when the wait is over.
func (w *waiter) end() {
	w.tb.Helper()
	select {
	case <-w.done:
	case <-time.After(patience):
		require.FailNow(w.tb, "the wait does not end")
	}
}

func (w *waiter) granted() lock.Grant {
	w.tb.Helper()
	w.end()
	require.NoError(w.tb, w.err)
	return w.grant
}

// undo cancels the wait and takes back its place in line.
func (w *waiter) undo() {
	w.tb.Helper()
	w.cancel()
	w.end()
	require.ErrorIs(w.tb, w.err, context.Canceled)
	release(w.tb, w.l, lock.Grant{Key: w.req.Key, Owner: w.req.Owner})
}

// still checks that the wait is not over.
func (w *waiter) still() {
	w.tb.Helper()
	select {
	case <-w.done:
		require.FailNow(w.tb, "it waits no more", "%v %v", w.grant, w.err)
	default:
	}
}

// inOrderOfGrant releases each waiter's grant as it comes, and returns them all.
func inOrderOfGrant(tb testing.TB, waiters []*waiter) []lock.Grant {
	tb.Helper()
	next := make(chan *waiter, len(waiters))
	for _, w := range waiters {
		go func() { <-w.done; next <- w }()
	}
	var all []lock.Grant
	for range waiters {
		select {
		case w := <-next:
			all = append(all, w.granted())
			release(tb, w.l, w.grant)
		case <-time.After(patience):
			require.FailNow(tb, "waiters who are not served", "after %v", all)
		}
	}
	return all
}

// names returns the names of all keys of one server that match prefix*.
func names(tb testing.TB, rdb *goredis.Client, prefix string) []string {
	tb.Helper()
	ctx := bounded(tb)
	var all []string
	it := rdb.Scan(ctx, 0, prefix+"*", 1000).Iterator()
	for it.Next(ctx) {
		all = append(all, it.Val())
	}
	require.NoError(tb, it.Err())
	return all
}

// keysOf names all keys of one lock that the store may write.
func keysOf(prefix, key string) map[string]string {
	base := prefix + "{" + key + "}"
	return map[string]string{
		"record": base, "counter": base + ":t", "readers": base + ":r",
		"info": base + ":i", "line": base + ":q", "waiters": base + ":w", "writers": base + ":x", "undone": base + ":u",
	}
}

// calls counts how often a server has run some commands since its statistics were reset.
func calls(tb testing.TB, rdb *goredis.Client, commands ...string) int {
	tb.Helper()
	stats, err := rdb.Info(bounded(tb), "commandstats").Result()
	require.NoError(tb, err)
	total := 0
	for _, c := range commands {
		total += storetest.RedisInfo(tb, stats, "cmdstat_"+c)
	}
	return total
}

// spy listens for all messages of this keyspace. heard returns those that were sent since it was called
// last, without what Lockers send to themselves.
func (w world) spy(tb testing.TB) (heard func() []string) {
	tb.Helper()
	ps := w.rdb.PSubscribe(bounded(tb), w.prefix+"*")
	tb.Cleanup(func() { _ = ps.Close() })
	_, err := ps.Receive(bounded(tb))
	require.NoError(tb, err)
	return func() (all []string) {
		end := w.prefix + "until here"
		require.NoError(tb, w.rdb.Publish(bounded(tb), end, "").Err())
		for {
			m, err := ps.ReceiveMessage(bounded(tb))
			require.NoError(tb, err)
			if m.Channel == end {
				return all
			}
			if m.Payload != "probe" {
				all = append(all, m.Payload)
			}
		}
	}
}

// world is a server, a prefix, and what a test opens on them.
type world struct {
	server *testserver.Server
	prefix string
	rdb    *goredis.Client
}

// sharedWorld is a clean keyspace of the server that the tests share.
func sharedWorld(tb testing.TB) world { return newWorld(tb, testserver.SharedRedis(tb)) }

// ownWorld is a server of the test's own, to break.
func ownWorld(tb testing.TB, args ...string) world {
	return newWorld(tb, testserver.Redis(tb, args...))
}

func newWorld(tb testing.TB, server *testserver.Server) world {
	return world{server, testserver.Prefix(), client(tb, server)}
}

// open starts one more process.
func (w world) open(tb testing.TB, opts ...redis.Option) *process {
	tb.Helper()
	return open(tb, w.server, append([]redis.Option{redis.WithPrefix(w.prefix)}, opts...)...)
}
