package etcd_test

import (
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/seed-215fdefa/lock/etcd"
	"github.com/seed-215fdefa/lock/internal/storetest"
	"github.com/seed-215fdefa/lock/internal/testserver"
	"github.com/seed-215fdefa/lock/locktest/faultproxy"
)

// TestWatchIsQuiet: a Watch of a key that nobody holds costs no request.
func TestWatchIsQuiet(t *testing.T) {
	testserver.NeedServer(t)
	t.Parallel()
	server, prefix := testserver.SharedEtcd(t), testserver.Prefix()
	a, b := open(t, server, prefix, etcd.Stable), open(t, server, prefix, etcd.Stable)
	var sent atomic.Int64
	a.proxy.Drop(faultproxy.Requests().Matching(func(m []byte) bool {
		if ping := len(m) == 17 && m[3] == 6; !ping { // a frame of HTTP/2 that tries the connection
			sent.Add(1)
		}
		return false
	}))
	storetest.WatchIsQuiet(t, a, b, sent.Load)
	require.NotZero(t, sent.Load())
}
