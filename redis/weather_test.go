package redis_test

import (
	"context"
	"errors"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	goredis "github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/internal/storetest"
	"github.com/seed-215fdefa/lock/locktest/faultproxy"
	"github.com/seed-215fdefa/lock/redis"
)

// TestNoChannelRights: a user without the right to the channels, as Redis 7 makes one, waits
// by rechecks; Preflight and the observer tell why, and it finds the way back.
func TestNoChannelRights(t *testing.T) {
	t.Parallel()
	w := ownWorld(t)
	acl := func(args ...any) {
		require.NoError(t, w.rdb.Do(bounded(t), append([]any{"ACL", "SETUSER", "mute"}, args...)...).Err())
	}
	acl("on", ">p", "+@all", "~*", "resetchannels")
	login := &goredis.Options{Addr: w.server.Addr(), Username: "mute", Password: "p"}
	told := make(chan error, 16)
	l := dial(t, login, redis.WithPushObserver(func(err error) { told <- err }))

	err := l.Preflight(bounded(t))
	require.ErrorIs(t, err, redis.ErrUnfit)
	require.ErrorContains(t, err, "NOPERM")
	require.ErrorContains(t, err, "lock:wake:*")

	g := acquire(t, dial(t, login), request("k"))
	waiter := waits(t, l, request("k"))
	require.ErrorContains(t, storetest.Receive(t, told), "NOPERM")
	release(t, l, g)
	release(t, l, waiter.granted())

	acl("allchannels")
	require.NoError(t, storetest.Receive(t, told))
}

// detour is the way to a server that changes, for connections that are made from then on.
type detour struct {
	addr atomic.Pointer[string]

	mu    sync.Mutex // guards conns
	conns []*detoured
}

// detoured is a connection that knows whether it subscribes.
type detoured struct {
	net.Conn
	subscriber atomic.Bool
}

func (c *detoured) Write(b []byte) (int, error) {
	if strings.Contains(string(b), "\r\nsubscribe\r\n") {
		c.subscriber.Store(true)
	}
	return c.Conn.Write(b)
}

func (d *detour) dial(ctx context.Context, network, _ string) (net.Conn, error) {
	conn, err := new(net.Dialer).DialContext(ctx, network, *d.addr.Load())
	if err != nil {
		return nil, err
	}
	c := &detoured{Conn: conn}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.conns = append(d.conns, c)
	return c, nil
}

// move leads to another server. Connections that subscribe stay where they are, as they do
// when a master is demoted and still answers pings.
func (d *detour) move(addr string) {
	d.addr.Store(&addr)
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, c := range d.conns {
		if !c.subscriber.Load() {
			_ = c.Close()
		}
	}
}

// TestSubscriberFollows: the subscriber's connection lives, but its server no longer speaks
// for the lock.
func TestSubscriberFollows(t *testing.T) {
	t.Parallel()
	old, next := ownWorld(t), ownWorld(t)
	d := new(detour)
	addr := old.server.Addr()
	d.addr.Store(&addr)
	rdb := goredis.NewClient(&goredis.Options{Addr: addr, Dialer: d.dial})
	told := make(chan error, 16)
	l := redis.New(rdb, redis.WithPushObserver(func(err error) { told <- err }))
	t.Cleanup(func() { _ = l.Close(); _ = rdb.Close() })

	req := request("k")
	req.Lost = func(lock.LostReason) {}
	g := acquire(t, l, req)
	require.Len(t, old.rdb.PubSubChannels(bounded(t), "lock:wake:*").Val(), 1)
	d.move(next.server.Addr())
	eventually(t, "a subscription on the server that decides", func() bool {
		return len(next.rdb.PubSubChannels(bounded(t), "lock:wake:*").Val()) == 1
	})
	require.Error(t, storetest.Receive(t, told))
	require.NoError(t, storetest.Receive(t, told))
	waiter := acquire(t, l, request("k")) // the other server has never heard of g
	require.Greater(t, waiter.Token, g.Token)
	require.ErrorIs(t, l.Release(bounded(t), g), lock.ErrLost)
}

// TestWaitsThroughTrouble: what a server refuses for a time ends no wait.
func TestWaitsThroughTrouble(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		set, back, says string
		args            []string
	}{
		"OOM":        {"maxmemory 1", "maxmemory 0", "OOM", nil},
		"NOREPLICAS": {"min-replicas-to-write 1", "min-replicas-to-write 0", "NOREPLICAS", nil},
		"MISCONF": {
			"stop-writes-on-bgsave-error yes", "stop-writes-on-bgsave-error no", "MISCONF",
			[]string{"--enable-protected-configs", "local", "--stop-writes-on-bgsave-error", "no", "--save", "3600 1"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := ownWorld(t, c.args...)
			config := func(line string) {
				k, v, _ := strings.Cut(line, " ")
				require.NoError(t, w.rdb.ConfigSet(bounded(t), k, v).Err())
			}
			if name == "MISCONF" {
				config("dir /proc")
				require.NoError(t, w.rdb.BgSave(bounded(t)).Err())
				eventually(t, "a snapshot that fails", func() bool {
					return strings.Contains(w.rdb.Info(bounded(t), "persistence").Val(), "rdb_last_bgsave_status:err")
				})
			}
			a, b := w.open(t), w.open(t)
			g := acquire(t, a, request("k"))
			waiter := waits(t, b, request("k"))
			config(c.set)
			_, err := b.Acquire(bounded(t), request("first"))
			require.ErrorContains(t, err, c.says, "a call does not begin in trouble")
			refusals := w.refusals(t)
			eventually(t, "a look of the waiter that is refused", func() bool { return w.refusals(t) > refusals })
			waiter.still()
			config(c.back)
			release(t, a, g)
			waiter.granted()
		})
	}
}

// refusals counts the errors that the server has answered with.
func (w world) refusals(tb testing.TB) int { return w.stat(tb, "stats", "total_error_replies") }

// stat is a number of INFO.
func (w world) stat(tb testing.TB, section, name string) int {
	tb.Helper()
	info, err := w.rdb.Info(bounded(tb), section).Result()
	require.NoError(tb, err)
	return storetest.RedisInfo(tb, info, name)
}

// TestPartialLoss: an operator deletes one key of a lock that is held. Whoever gets it then,
// the old holder is told at its next renewal, also if the new one has come and gone.
func TestPartialLoss(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	a, b := w.open(t), w.open(t)
	for part := range own {
		both(t, func(t *testing.T, mode func(lock.Request) lock.Request) {
			for _, gone := range []bool{false, true} {
				key := rename(t, part, gone)
				g := acquire(t, a, mode(request(key)))
				require.NoError(t, w.rdb.Del(bounded(t), keysOf(w.prefix, key)[part]).Err())
				rival, err := b.Acquire(bounded(t), request(key))
				if errors.Is(err, lock.ErrHeld) {
					continue // nobody got it: whether g lives on is all the same
				}
				require.NoError(t, err)
				if gone {
					release(t, b, rival)
					acquire(t, b, shared(request(key)))
				}
				_, err = a.Renew(bounded(t), g)
				require.ErrorIs(t, err, lock.ErrLost, "%s deleted, gone %t", part, gone)
				require.NotEqual(t, lock.ReasonExpired, storetest.Lost(t, err), "its time is not over")
			}
		})
	}
}

func rename(t *testing.T, part string, gone bool) string {
	if gone {
		return t.Name() + part + " gone"
	}
	return t.Name() + part
}

// TestPlaceIsMadeAnew: a place in line that somebody deleted is made anew where it was.
func TestPlaceIsMadeAnew(t *testing.T) {
	t.Parallel()
	for _, part := range []string{"line", "writers", "counter"} {
		t.Run(part, func(t *testing.T) {
			t.Parallel()
			w := sharedWorld(t)
			a, b := w.open(t), w.open(t)
			g := acquire(t, a, request("k"))
			first, second := waits(t, b, request("k")), waits(t, a, request("k"))
			name := keysOf(w.prefix, "k")[part]
			require.NoError(t, w.rdb.Del(bounded(t), name).Err())
			eventually(t, "what was deleted to be there again", func() bool {
				n, err := w.rdb.Exists(bounded(t), name).Result()
				require.NoError(t, err)
				return n == 1 && (part == "counter" || w.rdb.ZCard(bounded(t), name).Val() == 2)
			})
			_, err := a.Acquire(bounded(t), request("k"))
			require.ErrorIs(t, err, lock.ErrHeld)
			release(t, a, g)
			require.Equal(t, []string{first.req.Owner, second.req.Owner}, owners(inOrderOfGrant(t, []*waiter{first, second})))
		})
	}
}

// TestLineIsMadeAnew: somebody deletes the line, and the lock changes hands before those who stood in it
// look. Once one has looked, nobody overtakes it, and a release wakes it.
func TestLineIsMadeAnew(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	a := w.open(t)
	b, proxy := w.far(t)
	g := acquire(t, a, request("k"))
	waiting := waits(t, b, request("k"))
	held := proxy.Hold(faultproxy.Requests())
	require.NoError(t, w.rdb.Del(bounded(t), keysOf(w.prefix, "k")["line"]).Err())
	release(t, a, g)
	next := acquire(t, w.open(t), request("k"))
	held.Heal()
	line := keysOf(w.prefix, "k")["line"]
	eventually(t, "the line", func() bool { return w.rdb.Exists(bounded(t), line).Val() == 1 })
	require.Regexp(t, `^\d+\*$`, w.rdb.Get(bounded(t), keysOf(w.prefix, "k")["counter"]).Val())

	defer proxy.Hold(faultproxy.All()).Heal()
	heard := w.spy(t)
	deadline := reservedUntil(t, w, waiting)
	release(t, w.open(t), next)
	wakes := heard()
	h, err := w.open(t).Acquire(bounded(t), request("k"))
	if err == nil {
		require.Greater(t, h.Token, deadline, "it was overtaken")
		t.Skip("too slow a machine: the heartbeat had ended before the try")
	}
	require.ErrorIs(t, err, lock.ErrHeld)
	require.Equal(t, []string{"wake " + waiting.req.Owner}, wakes)
}

func owners(grants []lock.Grant) (all []string) {
	for _, g := range grants {
		all = append(all, g.Owner)
	}
	return all
}

// TestManyWaiters: a thousand of one process, all served, writers in order, and the holder
// keeps its lock meanwhile. Each costs the same however many there are.
func TestManyWaiters(t *testing.T) {
	if testing.Short() {
		t.Skip("needs a server")
	}
	var spent []time.Duration
	both(t, func(t *testing.T, mode func(lock.Request) lock.Request) {
		const many = 1000
		w := ownWorld(t)
		l := w.open(t)
		l.patient()
		g := acquire(t, l, lasting(request("k"), time.Hour))
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
		defer cancel()
		var arrived, served sync.WaitGroup
		errs := make(chan error, many)
		for range many {
			arrived.Add(1)
			inLine := sync.OnceFunc(arrived.Done)
			req := mode(request("k"))
			req.Wait, req.Waiting = true, func(lock.Record) { inLine() }
			served.Go(func() {
				defer inLine()
				g, err := l.Acquire(ctx, req)
				if err == nil {
					err = l.Release(ctx, g)
				}
				errs <- err
			})
		}
		arrived.Wait()
		require.Less(t, w.stat(t, "stats", "total_net_output_bytes")/many, 10_000, "a long line costs each newcomer more")
		rec := inspect(t, l, "k")
		require.Greater(t, rec.WaiterCount, many/2, "some may be late, and stand in line anew")
		require.Len(t, rec.Waiters, lock.MaxRecord)
		renew(t, l, g)
		release(t, l, g)
		for range many {
			require.NoError(t, <-errs)
		}
		served.Wait()
		spent = append(spent, w.cpu(t))
	})
	require.Len(t, spent, 2)
	require.Less(t, spent[1], 3*spent[0], "the server's time for readers, and for writers")
}

// cpu is for how long a server has computed.
func (w world) cpu(tb testing.TB) time.Duration {
	tb.Helper()
	info, err := w.rdb.Info(bounded(tb), "cpu").Result()
	require.NoError(tb, err)
	_, after, _ := strings.Cut(info, "used_cpu_user:")
	seconds, _, _ := strings.Cut(after, "\r\n")
	d, err := time.ParseDuration(seconds + "s")
	require.NoError(tb, err)
	return d
}
