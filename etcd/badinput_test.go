package etcd_test

import (
	"bufio"
	"context"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/etcd"
	"github.com/seed-215fdefa/lock/internal/storetest"
	"github.com/seed-215fdefa/lock/internal/testserver"
)

// everyCall has a call of each method of a Locker, for a key that nobody holds.
func everyCall(l *etcd.Locker) map[string]func(context.Context) error {
	return storetest.EveryCall(l, storetest.NoGrant, nil)
}

// nowhere is a client of a server that does not exist.
func nowhere(tb testing.TB) *clientv3.Client {
	tb.Helper()
	return plain(tb, "127.0.0.1:1")
}

// TestBadSetUp: New does no I/O and tells by every call what is wrong.
func TestBadSetUp(t *testing.T) {
	t.Parallel()
	cli := nowhere(t)
	for says, c := range map[string]struct {
		cli  *clientv3.Client
		opts []etcd.Option
	}{
		"client is nil":       {nil, nil},
		"has no connection":   {clientv3.NewCtxClient(context.Background()), nil},
		"prefix is empty":     {cli, []etcd.Option{etcd.WithPrefix("")}},
		"max TTL 999ms":       {cli, []etcd.Option{etcd.WithMaxTTL(999 * time.Millisecond)}},
		"must be at least 1s": {cli, []etcd.Option{etcd.WithMaxTTL(-1)}},
		"option is nil":       {cli, []etcd.Option{nil}},
	} {
		l := etcd.New(c.cli, c.opts...)
		for method, call := range everyCall(l) {
			err := call(context.Background())
			require.ErrorIs(t, err, lock.ErrInvalid, method)
			require.ErrorContains(t, err, says, method)
		}
		require.NoError(t, l.Close())
	}
}

// TestBadRequest: nothing is sent, and the error names the value.
func TestBadRequest(t *testing.T) {
	t.Parallel()
	l := etcd.New(nowhere(t))
	defer func() { require.NoError(t, l.Close()) }()
	ctx := context.Background()
	for want, change := range map[string]func(*lock.Request){
		"key is empty": func(r *lock.Request) { r.Key = "" },
		`"a:b"`:        func(r *lock.Request) { r.Owner = "a:b" },
		"TTL 999ms":    func(r *lock.Request) { r.TTL = 999 * time.Millisecond },
		"4097 bytes":   func(r *lock.Request) { r.Metadata = map[string]string{"m": strings.Repeat("v", 4096)} },
	} {
		req := storetest.Request("k")
		change(&req)
		_, err := l.Acquire(ctx, req)
		require.ErrorIs(t, err, lock.ErrInvalid, want)
		require.ErrorContains(t, err, want)
	}
	for _, g := range []lock.Grant{
		{Key: "", Owner: "o", Token: 1, TTL: time.Second},
		{Key: "k", Token: 1, TTL: time.Second},
		{Key: "k", Owner: "a/b", Token: 1, TTL: time.Second},
	} {
		_, err := l.Renew(ctx, g)
		require.ErrorIs(t, err, lock.ErrInvalid)
		require.ErrorIs(t, l.Release(ctx, g), lock.ErrInvalid)
		require.ErrorIs(t, l.ForceRelease(ctx, g.Key, g.Owner), lock.ErrInvalid)
	}
	for _, g := range []lock.Grant{{Key: "k", Owner: "o", Token: 1}, {Key: "k", Owner: "o", TTL: time.Second}} {
		_, err := l.Renew(ctx, g)
		require.ErrorIs(t, err, lock.ErrInvalid)
	}
}

// TestClosed: of the Locker and of its client.
func TestClosed(t *testing.T) {
	t.Parallel()
	t.Run("locker", func(t *testing.T) {
		t.Parallel()
		l, other, _ := pair(t)
		g := storetest.Acquire(t, l, storetest.Request("k"))
		waiting := storetest.Waits(t, l, storetest.Request("k"))
		require.NoError(t, l.Close())
		waiting.End(t)
		require.ErrorIs(t, waiting.Err, lock.ErrClosed)
		require.NoError(t, l.Close())
		for method, call := range everyCall(l.Locker) {
			require.ErrorIs(t, call(context.Background()), lock.ErrClosed, method)
		}
		storetest.Holds(t, other, g) // Close releases nothing
		_, err := l.cli.Get(storetest.Bounded(t), "k")
		require.NoError(t, err)
	})
	t.Run("locker of a frozen server", func(t *testing.T) {
		t.Parallel()
		l, _, _ := pair(t)
		g := storetest.Acquire(t, l, storetest.Request("k"))
		waiting := storetest.Waits(t, l, storetest.Request("k"))
		defer l.proxy.Freeze()()
		renewal := make(chan error, 1)
		ctx, cancel := context.WithCancel(context.Background())
		go func() { _, err := l.Renew(ctx, g); renewal <- err }()
		begin := time.Now()
		require.NoError(t, l.Close())
		waiting.End(t)
		require.ErrorIs(t, waiting.Err, lock.ErrClosed)
		require.Less(t, time.Since(begin), storetest.Patience/2)
		cancel()
		require.Error(t, <-renewal) // as of ctx or of the Locker, whichever it sees first
	})
	t.Run("client", func(t *testing.T) {
		t.Parallel()
		l, _, _ := pair(t)
		storetest.Acquire(t, l, storetest.Request("c"))
		waiting := storetest.Waits(t, l, storetest.Request("c"))
		require.NoError(t, l.cli.Close())
		waiting.End(t)
		require.ErrorContains(t, waiting.Err, "client is closed")
		for method, call := range everyCall(l.Locker) {
			require.ErrorContains(t, call(storetest.Bounded(t)), "lock: etcd: the client is closed", method)
		}
	})
}

// TestAuth: with etcd's authentication, a role for the prefix is enough, and without one the
// server's refusal is returned, at once from a wait too.
func TestAuth(t *testing.T) {
	t.Parallel()
	server, prefix := testserver.Etcd(t), testserver.Prefix()
	cli, ctx := plain(t, server.Addr()), storetest.Bounded(t)
	secure(t, cli, prefix)
	as := func(user, password string) *etcd.Locker {
		l := etcd.New(login(t, server, user, password), etcd.WithPrefix(prefix))
		t.Cleanup(func() { require.NoError(t, l.Close()) })
		return l
	}
	l, other := as("alice", "a"), as("alice", "a")
	g := storetest.Acquire(t, l, storetest.Request("k"))
	w := storetest.Waits(t, other, storetest.Request("k"))
	storetest.Refused(t, other, storetest.Request("k"))
	g = storetest.Renew(t, l, g)
	require.GreaterOrEqual(t, storetest.Inspect(t, other, "k").Holders[0].ExpiresIn, time.Duration(0))
	storetest.Release(t, l, g)
	g = w.Granted(t)
	require.NoError(t, l.ForceRelease(ctx, "k", g.Owner))
	_, err := other.Renew(ctx, g)
	storetest.Lost(t, err)

	fence := etcd.NewFence(login(t, server, "alice", "a"))
	require.ErrorContains(t, fence.Put(ctx, prefix+"stock", 1, "9"), "permission denied")
	require.NoError(t, permit(ctx, login(t, server, "root", "r"), "fence/"))
	require.NoError(t, fence.Put(ctx, prefix+"stock", 1, "9"))

	before := authentications(t, server.Addr())
	c := lock.New(l, lock.WithTTL(3*time.Second))
	_, err = c.Lock(ctx, "idle")
	require.NoError(t, err)
	time.Sleep(9 * time.Second) // of ten renewals
	require.NoError(t, c.Close(ctx))
	require.LessOrEqual(t, authentications(t, server.Addr())-before, 5, "a password is checked for more than a stream of each kind, and what a busy machine repeats")

	nobody := etcd.New(cli, etcd.WithPrefix(prefix))
	defer func() { require.NoError(t, nobody.Close()) }()
	_, err = nobody.Acquire(ctx, storetest.Request("k"))
	require.ErrorContains(t, err, "set Username and Password")

	stranger := as("mallory", "m")
	for _, wait := range []bool{false, true} {
		req := storetest.Request("k")
		req.Wait = wait
		_, err := stranger.Acquire(ctx, req)
		require.ErrorContains(t, err, "permission denied")
		require.ErrorContains(t, err, prefix)
		require.NotErrorIs(t, err, lock.ErrHeld)
	}
}

// secure turns authentication on: root may do all, alice has the role locks for the keys under prefix,
// mallory has none.
func secure(t *testing.T, cli *clientv3.Client, prefix string) {
	t.Helper()
	ctx := storetest.Bounded(t)
	for _, f := range []func() error{
		func() error { _, err := cli.UserAdd(ctx, "root", "r"); return err },
		func() error { _, err := cli.UserGrantRole(ctx, "root", "root"); return err },
		func() error { _, err := cli.RoleAdd(ctx, "locks"); return err },
		func() error { return permit(ctx, cli, prefix) },
		func() error { _, err := cli.UserAdd(ctx, "alice", "a"); return err },
		func() error { _, err := cli.UserGrantRole(ctx, "alice", "locks"); return err },
		func() error { _, err := cli.UserAdd(ctx, "mallory", "m"); return err },
		func() error { _, err := cli.AuthEnable(ctx); return err },
	} {
		require.NoError(t, f())
	}
}

// permit gives the role locks the keys under prefix.
func permit(ctx context.Context, cli *clientv3.Client, prefix string) error {
	_, err := cli.RoleGrantPermission(ctx, "locks", prefix, clientv3.GetPrefixRangeEnd(prefix), clientv3.PermissionType(clientv3.PermReadWrite))
	return err
}

func login(t *testing.T, server *testserver.Server, user, password string) *clientv3.Client {
	t.Helper()
	c, err := clientv3.New(clientv3.Config{
		Endpoints: []string{server.Addr()}, Username: user, Password: password, Logger: quiet,
	})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, c.Close()) })
	return c
}

// TestReleaseWithoutTheRight: a role loses its right while a lock is held, so the release is refused,
// and so is what prunes the key. Once the right is back, the name of that key is no other's: the
// token rises, and the old grant's release ends nothing.
func TestReleaseWithoutTheRight(t *testing.T) {
	t.Parallel()
	server, prefix := testserver.Etcd(t), testserver.Prefix()
	secure(t, plain(t, server.Addr()), prefix)
	ctx, root, cli := storetest.Bounded(t), login(t, server, "root", "r"), login(t, server, "alice", "a")
	kv := &faultyKV{KV: cli.KV}
	cli.KV = kv
	l := etcd.New(cli, etcd.WithPrefix(prefix))
	t.Cleanup(func() { require.NoError(t, l.Close()) })

	g := storetest.Acquire(t, l, storetest.Request("k"))
	_, err := root.RoleRevokePermission(ctx, "locks", prefix, clientv3.GetPrefixRangeEnd(prefix))
	require.NoError(t, err)
	require.ErrorContains(t, l.Release(ctx, g), "permission denied")
	reached(t, kv.once(fate{}, deletes))
	for begun := time.Now(); l.Unpruned() > 0 && time.Since(begun) < time.Second; time.Sleep(10 * time.Millisecond) {
		continue // the answer is on its way
	}
	require.NoError(t, permit(ctx, root, prefix))
	next := storetest.Await(t, l, storetest.Request("k"))
	require.Greater(t, next.Token, g.Token)
	storetest.Lost(t, l.Release(ctx, g))
	storetest.Holds(t, l, next)
}

// authentications is how many passwords a server has checked.
func authentications(t *testing.T, addr string) (n int) {
	t.Helper()
	resp, err := http.Get("http://" + addr + "/metrics")
	require.NoError(t, err)
	defer func() { require.NoError(t, resp.Body.Close()) }()
	lines := bufio.NewScanner(resp.Body)
	for lines.Scan() {
		if name, v, ok := strings.Cut(lines.Text(), "} "); ok && strings.HasPrefix(name, "grpc_server_handled_total") && strings.Contains(name, `"Authenticate"`) {
			f, err := strconv.ParseFloat(v, 64)
			require.NoError(t, err)
			n += int(f)
		}
	}
	return n
}

func TestClientClosedFirst(t *testing.T) {
	t.Parallel()
	l, other, _ := pair(t)
	storetest.ClientClosedFirst(t, l, other, func() { require.NoError(t, l.cli.Close()) })
}

// TestLongestTTL: what is above that of WithMaxTTL is cut to it, in a grant, after a wait, and in a
// renewal by a Locker that has another.
func TestLongestTTL(t *testing.T) {
	t.Parallel()
	server, prefix := testserver.SharedEtcd(t), testserver.Prefix()
	l, brief := open(t, server, prefix), open(t, server, prefix, etcd.WithMaxTTL(20*time.Second))
	both := func(mode func(lock.Request) lock.Request) {
		req := mode(storetest.Lasting(storetest.Request("k"), lock.MaxTTL))
		g := storetest.Acquire(t, brief, req)
		require.LessOrEqual(t, g.TTL, 20*time.Second)
		w := storetest.Waits(t, brief, storetest.Lasting(storetest.Request("k"), time.Hour))
		require.LessOrEqual(t, storetest.Renew(t, brief, g).TTL, 20*time.Second)
		storetest.Release(t, brief, g)
		g = w.Granted(t)
		require.LessOrEqual(t, g.TTL, 20*time.Second)
		storetest.Release(t, brief, g)
		g = storetest.Acquire(t, l, mode(storetest.Request("k")))
		require.Greater(t, g.TTL, 20*time.Second)
		g = storetest.Renew(t, brief, g)
		require.LessOrEqual(t, g.TTL, 20*time.Second)
		storetest.Release(t, brief, g)
	}
	both(func(r lock.Request) lock.Request { return r })
	both(storetest.Shared)
}
