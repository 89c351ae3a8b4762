package zookeeper_test

import (
	"io"
	"math"
	"net"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/internal/storetest"
	"github.com/seed-215fdefa/lock/zookeeper"
)

// TestTokenBase: with a base that is not below the newest token of another store, a fence that
// has seen that one takes what this one grants, whichever way it is granted and shown.
func TestTokenBase(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t).lasting()
	const old = lock.Token(1_800_000_000_000_000) // as of Redis
	a, b := w.open(t, zookeeper.WithTokenBase(old)), w.open(t, zookeeper.WithTokenBase(old))
	fence := zookeeper.NewFence(a.conn, zookeeper.WithRoot(w.root+"/fence"))
	_, err := fence.Multi(storetest.Bounded(t), "r", old)
	require.NoError(t, err)
	g := storetest.Acquire(t, a, storetest.Request("k"))
	require.Greater(t, g.Token, old)
	_, err = fence.Multi(storetest.Bounded(t), "r", g.Token)
	require.NoError(t, err)
	require.Equal(t, g.Token, storetest.Inspect(t, b, "k").Token)
	require.Equal(t, g.Token, storetest.Inspect(t, b, "k").Holders[0].Token)
	g = storetest.Renew(t, a, g)
	waiting := storetest.Waits(t, b, storetest.Request("k"))
	storetest.Release(t, b, g) // by the token, from elsewhere
	next := waiting.Granted(t)
	require.Greater(t, next.Token, g.Token)
	storetest.Release(t, b, next)
	require.LessOrEqual(t, next.Token, old+zxid(t, w.server.Addr()), "the base for a move to another cluster")

	// A token that the base lifts above the largest is none.
	_, err = w.open(t, zookeeper.WithTokenBase(lock.MaxToken/2+1)).Acquire(storetest.Bounded(t), storetest.Request("k"))
	require.ErrorIs(t, err, lock.ErrInvalid)
	_, err = w.open(t, zookeeper.WithTokenBase(math.MaxUint64)).Acquire(storetest.Bounded(t), storetest.Request("k"))
	require.ErrorIs(t, err, lock.ErrInvalid)
}

// zxid is the newest transaction that a server has seen.
func zxid(t *testing.T, addr string) lock.Token {
	t.Helper()
	conn, err := net.Dial("tcp", addr)
	require.NoError(t, err)
	defer func() { _ = conn.Close() }()
	_, err = io.WriteString(conn, "srvr")
	require.NoError(t, err)
	reply, err := io.ReadAll(conn)
	require.NoError(t, err)
	_, rest, _ := strings.Cut(string(reply), "Zxid: 0x")
	digits, _, _ := strings.Cut(rest, "\n")
	n, err := strconv.ParseUint(digits, 16, 64)
	require.NoError(t, err)
	return lock.Token(n)
}

// TestNotNew: what New has not made gives an error from every call, and no panic.
func TestNotNew(t *testing.T) {
	for _, l := range []*zookeeper.Locker{nil, new(zookeeper.Locker)} {
		for name, call := range storetest.EveryCall(l, storetest.NoGrant, nil) {
			err := call(storetest.Bounded(t))
			require.ErrorIs(t, err, lock.ErrInvalid, name)
			require.ErrorContains(t, err, "not made by New", name)
		}
		require.ErrorIs(t, l.Close(), lock.ErrInvalid)
		require.Zero(t, l.MaxTTL())
		require.Equal(t, "zookeeper", l.Capabilities().Store)
	}
	for _, f := range []*zookeeper.Fence{nil, new(zookeeper.Fence)} {
		_, err := f.Multi(storetest.Bounded(t), "r", 1)
		require.ErrorIs(t, err, lock.ErrInvalid)
		_, _, err = f.Get(storetest.Bounded(t), "r", 1, "/r")
		require.ErrorIs(t, err, lock.ErrInvalid)
	}
}
