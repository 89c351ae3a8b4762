package zookeeper_test

import (
	"testing"
	"time"

	"github.com/go-zookeeper/zk"
	"github.com/stretchr/testify/require"

	"github.com/seed-215fdefa/lock/internal/storetest"
	"github.com/seed-215fdefa/lock/locktest/faultproxy"
	"github.com/seed-215fdefa/lock/zookeeper"
)

// TestMissingRight: the error tells which right is missing where, near and far. Far away the
// reply to the creation of the container comes after the request for the node was sent.
func TestMissingRight(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t).lasting()
	a := w.open(t)
	admin := dial(t, long, w.server.Addr())
	_, err := admin.Create(w.root+"/no", nil, 0, zk.WorldACL(zk.PermRead))
	require.NoError(t, err)
	for _, latency := range []time.Duration{0, 50 * time.Millisecond} {
		heal := a.proxy.Delay(faultproxy.All(), latency).Heal
		for _, wait := range []bool{false, true} {
			l := zookeeper.New(a.conn, zookeeper.WithRoot(w.root+"/no"), zookeeper.WithSessionTimeout(w.timeout))
			req := storetest.Request("k")
			req.Wait = wait
			_, err := l.Acquire(storetest.Bounded(t), req)
			require.ErrorIs(t, err, zk.ErrNoAuth)
			require.ErrorContains(t, err, w.root+"/no/k")
			require.ErrorContains(t, err, "create, read, write and delete")
			require.NoError(t, l.Close())
		}
		heal()
	}
}

// TestNobodyMayRead: what cannot be read is told by every call that reads.
func TestNobodyMayRead(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t).lasting()
	a := w.open(t, zookeeper.WithACL(zk.WorldACL(zk.PermCreate|zk.PermWrite|zk.PermDelete)...))
	g := storetest.Acquire(t, a, storetest.Request("k"))
	for name, call := range storetest.EveryCall(a, storetest.NoGrant, nil) {
		switch name {
		case "Inspect", "ForceRelease", "undo":
			err := call(storetest.Bounded(t))
			require.ErrorIs(t, err, zk.ErrNoAuth, name)
			require.ErrorContains(t, err, w.root+"/k", name)
		}
	}
	storetest.Release(t, a, g)
}

// TestFrontMayNotBeRead: another process gives its nodes an ACL that keeps this one from watching them. That
// ends a wait, which would be blind, and which would ask for the watch for ever.
func TestFrontMayNotBeRead(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t).lasting()
	a, b := w.open(t, zookeeper.WithACL(zk.DigestACL(zk.PermAll, "user", "password")...)), w.open(t)
	require.NoError(t, a.conn.AddAuth("digest", []byte("user:password")))
	storetest.Release(t, b, storetest.Acquire(t, b, storetest.Request("k"))) // the container is for all
	g := storetest.Acquire(t, a, storetest.Request("k"))
	waiting := storetest.Begin(t, b, storetest.Request("k")) // and is not to be told, or it would read the node
	waiting.End(t)
	require.ErrorIs(t, waiting.Err, zk.ErrNoAuth)
	require.ErrorContains(t, waiting.Err, w.root+"/k")
	storetest.Eventually(t, "its node to go", func() bool { return len(names(t, b.conn, w.root+"/k")) == 1 })
	storetest.Release(t, a, g)
}
