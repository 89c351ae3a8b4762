package redlock_test

import (
	"context"
	"net"
	"strings"
	"testing"
	"time"

	goredis "github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/internal/storetest"
	"github.com/seed-215fdefa/lock/redlock"
)

// everyCall has a call of each method of a Locker, for a key that nobody holds.
func everyCall(l *redlock.Locker) map[string]func(context.Context) error {
	return storetest.EveryCall(l, storetest.NoGrant, nil)
}

// nowhere are clients of servers that must not be asked.
func nowhere(tb testing.TB, n int) (nodes []goredis.UniversalClient) {
	for range n {
		rdb := goredis.NewClient(&goredis.Options{
			Addr: "127.0.0.1:1",
			Dialer: func(context.Context, string, string) (_ net.Conn, err error) {
				tb.Error("something was sent")
				return nil, errCut
			},
		})
		tb.Cleanup(func() { _ = rdb.Close() })
		nodes = append(nodes, rdb)
	}
	return nodes
}

// opaque is somebody's own client, which does not tell what it talks to.
type opaque struct{ goredis.UniversalClient }

// wrapped is opaque, but tells.
type wrapped struct {
	opaque
	inner goredis.UniversalClient
}

func (w wrapped) Unwrap() goredis.UniversalClient { return w.inner }

// TestNotMadeByNew: a zero Locker and a nil one tell so, too.
func TestNotMadeByNew(t *testing.T) {
	for _, l := range []*redlock.Locker{nil, {}} {
		for method, call := range everyCall(l) {
			err := call(context.Background())
			require.ErrorIs(t, err, lock.ErrInvalid, method)
			require.ErrorContains(t, err, "not made by New", method)
		}
		require.NoError(t, l.Close())
		require.Equal(t, "redlock", l.Capabilities().Store)
	}
}

// TestWrappedClient: one of its own kind that tells is as good as what it wraps.
func TestWrappedClient(t *testing.T) {
	t.Parallel()
	p := sharedWorld(t).ready(t)
	for i, n := range p.nodes {
		p.nodes[i] = wrapped{opaque{n}, wrapped{opaque{n}, n}}
	}
	l := redlock.New(p.nodes, redlock.WithPrefix(p.prefix), redlock.WithTimeout(5*time.Second))
	storetest.Release(t, l, storetest.Acquire(t, l, storetest.Request("k")))
	require.NoError(t, l.Close())
}

// TestBadSetUp: New does no I/O and tells by every call what is wrong.
func TestBadSetUp(t *testing.T) {
	five := nowhere(t, 5)
	with := func(n goredis.UniversalClient) []goredis.UniversalClient {
		return append([]goredis.UniversalClient{n}, five[1:]...)
	}
	cluster := goredis.NewClusterClient(&goredis.ClusterOptions{Addrs: []string{"127.0.0.1:1"}})
	failover := goredis.NewFailoverClient(&goredis.FailoverOptions{MasterName: "m", SentinelAddrs: []string{"127.0.0.1:1"}})
	other := goredis.NewClient(&goredis.Options{Addr: "127.0.0.1:1", DB: 3})
	for _, c := range []goredis.UniversalClient{cluster, failover, other} {
		defer func() { _ = c.Close() }()
	}
	var noClient *goredis.Client
	for name, c := range map[string]struct {
		nodes []goredis.UniversalClient
		opts  []redlock.Option
		says  []string
	}{
		"no nodes":   {nil, nil, []string{"0 nodes", "from 3"}},
		"two nodes":  {five[:2], nil, []string{"2 nodes", "package redis"}},
		"nil":        {with(nil), nil, []string{"node 1 is nil"}},
		"nil client": {with(noClient), nil, []string{"node 1 is nil"}},
		"cluster":    {with(cluster), nil, []string{"*redis.ClusterClient", "one server"}},
		"opaque":     {with(opaque{five[0]}), nil, []string{"is a redlock_test.opaque", "Unwrap() goredis.UniversalClient"}},
		"wrapped":    {with(wrapped{opaque{five[0]}, cluster}), nil, []string{"*redis.ClusterClient", "one server"}},
		"wraps nil":  {with(wrapped{opaque{five[0]}, nil}), nil, []string{"node 1 is nil"}},
		"sentinel":   {with(failover), nil, []string{"fails over"}},
		"databases":  {with(other), nil, []string{"database 0", "has 3"}},
		"timeout":    {five, []redlock.Option{redlock.WithTimeout(time.Microsecond)}, []string{"1µs", "1ms"}},
		"longest":    {five, []redlock.Option{redlock.WithMaxTTL(25 * time.Hour)}, []string{"25h", "from 1s to 24h"}},
		"poll":       {five, []redlock.Option{redlock.WithPoll(2, 1)}, []string{"2ns", "1ns"}},
		"nil option": {five, []redlock.Option{nil}, []string{"option is nil"}},
	} {
		t.Run(name, func(t *testing.T) {
			l := redlock.New(c.nodes, c.opts...)
			for method, call := range everyCall(l) {
				err := call(context.Background())
				require.ErrorIs(t, err, lock.ErrInvalid, method)
				for _, says := range c.says {
					require.ErrorContains(t, err, says, method)
				}
			}
			require.NoError(t, l.Close())
		})
	}
}

// TestBadRequest: nothing is sent, and the error names the value.
func TestBadRequest(t *testing.T) {
	l := redlock.New(nowhere(t, 3))
	defer func() { require.NoError(t, l.Close()) }()
	ctx := context.Background()
	for want, change := range map[string]func(*lock.Request){
		"key is empty":  func(r *lock.Request) { r.Key = "" },
		"513 bytes":     func(r *lock.Request) { r.Key = strings.Repeat("k", 513) },
		`"a:b"`:         func(r *lock.Request) { r.Owner = "a:b" },
		"TTL 0s":        func(r *lock.Request) { r.TTL = 0 },
		"TTL 9ms":       func(r *lock.Request) { r.TTL = 9 * time.Millisecond },
		"at most 8784h": func(r *lock.Request) { r.TTL = lock.MaxTTL + 1 },
		"4097 bytes":    func(r *lock.Request) { r.Metadata = map[string]string{"m": strings.Repeat("v", 4096)} },
	} {
		req := storetest.Request("k")
		change(&req)
		_, err := l.Acquire(ctx, req)
		require.ErrorIs(t, err, lock.ErrInvalid, want)
		require.ErrorContains(t, err, want)
	}
	g := lock.Grant{Key: "k", Owner: "o", Token: 1}
	for _, ttl := range []time.Duration{0, -1, lock.MaxTTL + 1} {
		g.TTL = ttl
		_, err := l.Renew(ctx, g)
		require.ErrorIs(t, err, lock.ErrInvalid)
	}
	require.ErrorIs(t, l.Release(ctx, lock.Grant{Key: "k"}), lock.ErrInvalid)
	require.ErrorIs(t, l.Release(ctx, lock.Grant{Owner: "o"}), lock.ErrInvalid)
	_, err := l.Inspect(ctx, "\xff")
	require.ErrorIs(t, err, lock.ErrInvalid)
	require.ErrorIs(t, l.ForceRelease(ctx, "", "o"), lock.ErrInvalid)
}

// TestOneServerTwice: it would have two votes.
func TestOneServerTwice(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	w.servers[3] = w.servers[1]
	p := w.open(t)
	_, _ = p.Acquire(storetest.Bounded(t), storetest.Request("k")) // now it knows them
	for method, call := range everyCall(p.Locker) {
		err := call(storetest.Bounded(t))
		require.ErrorIs(t, err, lock.ErrInvalid, method)
		require.ErrorContains(t, err, "are one server", method)
		require.ErrorContains(t, err, w.servers[1].Addr(), method)
	}
}

// TestClosed: of the Locker and of its clients.
func TestClosed(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	ctx := storetest.Bounded(t)
	l, other := w.ready(t), w.open(t)
	g := storetest.Acquire(t, l, storetest.Request("k"))
	first := storetest.Waits(t, l, storetest.Request("k"))
	second := storetest.Waits(t, l, storetest.Request("k"))
	require.NoError(t, l.Close())
	for _, waiting := range []*storetest.Waiting{first, second} {
		waiting.End(t)
		require.ErrorIs(t, waiting.Err, lock.ErrClosed)
	}
	require.NoError(t, l.Close())
	for method, call := range everyCall(l.Locker) {
		require.ErrorIs(t, call(ctx), lock.ErrClosed, method)
	}
	storetest.Holds(t, other, g) // Close releases nothing
	require.NoError(t, l.nodes[0].Ping(ctx).Err())

	for _, n := range other.nodes {
		require.NoError(t, n.Close())
	}
	for method, call := range everyCall(other.Locker) {
		require.ErrorIs(t, call(ctx), goredis.ErrClosed, method)
	}
}

// TestForeignKeys: what somebody else has put in the place of a lock is told, and stays.
func TestForeignKeys(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	p := w.ready(t)
	ctx := storetest.Bounded(t)
	for i := range w.servers {
		require.NoError(t, w.plain[i].Set(ctx, w.prefix+"s:text", "something else", 0).Err())
		require.NoError(t, w.plain[i].RPush(ctx, w.prefix+"s:list", "something else").Err())
	}
	for key, says := range map[string]string{"text": "holds something else", "list": "WRONGTYPE"} {
		_, err := p.Acquire(ctx, storetest.Request(key))
		require.ErrorContains(t, err, says)
		_, err = p.Inspect(ctx, key)
		require.ErrorContains(t, err, says)
	}
	require.Equal(t, "something else", w.plain[0].Get(ctx, w.prefix+"s:text").Val())
}

func TestClientClosedFirst(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	l := w.open(t)
	storetest.ClientClosedFirst(t, l, w.open(t), func() {
		for _, rdb := range l.nodes {
			require.NoError(t, rdb.Close())
		}
	})
}
