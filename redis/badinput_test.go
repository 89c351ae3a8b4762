package redis_test

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
	"github.com/seed-215fdefa/lock/redis"
)

// everyCall has a call of each method of a Locker, for a key that nobody holds.
func everyCall(l *redis.Locker) map[string]func(context.Context) error {
	return storetest.EveryCall(l, storetest.NoGrant, map[string]func(context.Context) error{
		"Preflight": l.Preflight,
	})
}

// nowhere is a client of a server that does not exist, and that must not be asked.
func nowhere(tb testing.TB) *goredis.Client {
	rdb := goredis.NewClient(&goredis.Options{
		Addr: "127.0.0.1:1",
		Dialer: func(context.Context, string, string) (_ net.Conn, err error) {
			tb.Error("something was sent")
			return nil, errCut
		},
	})
	tb.Cleanup(func() { _ = rdb.Close() })
	return rdb
}

// TestBadSetUp: New does no I/O and tells by every call what is wrong.
// opaque hides what client it is, as instrumentation does.
type opaque struct{ goredis.UniversalClient }

// wrapped is opaque, but tells.
type wrapped struct {
	opaque
	inner goredis.UniversalClient
}

func (w wrapped) Unwrap() goredis.UniversalClient { return w.inner }

// TestNotMade: what New and NewFence did not make is no Locker and no Fence, and no panic.
func TestNotMade(t *testing.T) {
	for _, l := range []*redis.Locker{nil, {}} {
		for method, call := range everyCall(l) {
			require.ErrorIs(t, call(context.Background()), lock.ErrInvalid, method)
		}
		require.NoError(t, l.Close())
	}
	for _, f := range []*redis.Fence{nil, {}} {
		_, err := f.Get(context.Background(), "k", 1)
		require.ErrorIs(t, err, lock.ErrInvalid)
	}
}

func TestBadSetUp(t *testing.T) {
	rdb := nowhere(t)
	ring := goredis.NewRing(&goredis.RingOptions{Addrs: map[string]string{"a": "127.0.0.1:1"}})
	defer func() { _ = ring.Close() }()
	var noClient *goredis.Client
	var noCluster *goredis.ClusterClient
	for name, c := range map[string]struct {
		rdb  goredis.UniversalClient
		opts []redis.Option
		says []string
	}{
		"nil":                {nil, nil, []string{"client is nil"}},
		"nil client":         {noClient, nil, []string{"client is nil"}},
		"nil cluster client": {noCluster, nil, []string{"client is nil"}},
		"ring":               {ring, nil, []string{"Ring", "use a Cluster"}},
		"opaque":             {opaque{ring}, nil, []string{"client of type redis_test.opaque", "Unwrap() goredis.UniversalClient"}},
		"wrapped ring":       {wrapped{opaque{ring}, ring}, nil, []string{"Ring", "use a Cluster"}},
		"wrapped nothing":    {wrapped{opaque{ring}, nil}, nil, []string{"client is nil"}},
		"prefix":             {rdb, []redis.Option{redis.WithPrefix("a{b}:")}, []string{`"a{b}:"`, "braces"}},
		"counter TTL":        {rdb, []redis.Option{redis.WithCounterTTL(999 * time.Millisecond)}, []string{"999ms", "from 1s to"}},
		"nil option":         {rdb, []redis.Option{nil}, []string{"option is nil"}},
	} {
		t.Run(name, func(t *testing.T) {
			l := redis.New(c.rdb, c.opts...)
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
	l := redis.New(nowhere(t))
	defer func() { require.NoError(t, l.Close()) }()
	ctx := context.Background()
	for want, change := range map[string]func(*lock.Request){
		"key is empty": func(r *lock.Request) { r.Key = "" },
		"513 bytes":    func(r *lock.Request) { r.Key = strings.Repeat("k", 513) },
		`"\xff"`:       func(r *lock.Request) { r.Key = "\xff" },
		`"a:b"`:        func(r *lock.Request) { r.Owner = "a:b" },
		"TTL 0s":       func(r *lock.Request) { r.TTL = 0 },
		"TTL 9ms":      func(r *lock.Request) { r.TTL = 9 * time.Millisecond },
		"4097 bytes":   func(r *lock.Request) { r.Metadata = map[string]string{"m": strings.Repeat("v", 4096)} },
	} {
		req := request("k")
		change(&req)
		_, err := l.Acquire(ctx, req)
		require.ErrorIs(t, err, lock.ErrInvalid, want)
		require.ErrorContains(t, err, want)
	}
	for _, key := range []string{"", "\xff", strings.Repeat("k", 513)} {
		g := lock.Grant{Key: key, Owner: "o", Token: 1, TTL: time.Second}
		_, err := l.Renew(ctx, g)
		require.ErrorIs(t, err, lock.ErrInvalid)
		require.ErrorIs(t, l.Release(ctx, g), lock.ErrInvalid)
		_, err = l.Inspect(ctx, key)
		require.ErrorIs(t, err, lock.ErrInvalid)
		require.ErrorIs(t, l.ForceRelease(ctx, key, "o"), lock.ErrInvalid)
	}
	_, err := l.Renew(ctx, lock.Grant{Key: "k", Token: 1, TTL: time.Second})
	require.ErrorIs(t, err, lock.ErrInvalid)
	_, err = l.Renew(ctx, lock.Grant{Key: "k", Owner: "o", Token: 1})
	require.ErrorContains(t, err, "TTL 0s")
	require.ErrorIs(t, l.Release(ctx, lock.Grant{Key: "k"}), lock.ErrInvalid)
}

// TestClosed: of the Locker and of its client.
func TestClosed(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	ctx := bounded(t)
	t.Run("locker", func(t *testing.T) {
		l, other := w.open(t), w.open(t)
		g := acquire(t, l, request("k"))
		waiting := waits(t, l, request("k"))
		require.NoError(t, l.Close())
		waiting.end()
		require.ErrorIs(t, waiting.err, lock.ErrClosed)
		require.NoError(t, l.Close())
		for method, call := range everyCall(l.Locker) {
			require.ErrorIs(t, call(ctx), lock.ErrClosed, method)
		}
		holds(t, other, g) // Close releases nothing
		require.NoError(t, l.rdb.Ping(ctx).Err())
	})
	t.Run("client", func(t *testing.T) {
		l := w.open(t)
		acquire(t, l, request("c"))
		waiting := waits(t, l, request("c"))
		require.NoError(t, l.rdb.Close())
		waiting.end() // at its next look
		require.ErrorIs(t, waiting.err, goredis.ErrClosed)
		for method, call := range everyCall(l.Locker) {
			err := call(ctx)
			require.ErrorIs(t, err, goredis.ErrClosed, method)
			require.ErrorIs(t, err, lock.ErrClosed, method)
			require.ErrorContains(t, err, "lock: redis: the client is closed", method)
		}
	})
}

func TestClientClosedFirst(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	l := w.open(t)
	storetest.ClientClosedFirst(t, l, w.open(t), func() { require.NoError(t, l.rdb.Close()) })
}
