package etcd_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/etcd"
	"github.com/seed-215fdefa/lock/internal/storetest"
	"github.com/seed-215fdefa/lock/internal/testserver"
)

// TestRefused: a caller that begins to wait while etcd is down gets that error, before ctx ends.
func TestRefused(t *testing.T) {
	t.Parallel()
	l := etcd.New(nowhere(t))
	defer func() { require.NoError(t, l.Close()) }()
	req := storetest.Request("k")
	req.Wait = true
	_, err := l.Acquire(storetest.Bounded(t), req)
	require.ErrorContains(t, err, "connection refused")
	require.NotErrorIs(t, err, context.DeadlineExceeded)
}

// TestWaitWithoutServer: etcd is killed, or frozen, while somebody waits. The wait ends by itself, and
// says what is wrong.
func TestWaitWithoutServer(t *testing.T) {
	t.Parallel()
	for says, stop := range map[string]func(*testserver.Server){
		"connection refused": (*testserver.Server).Kill,
		"no answer":          (*testserver.Server).Pause,
	} {
		t.Run(says, func(t *testing.T) {
			t.Parallel()
			server, prefix := testserver.Etcd(t), testserver.Prefix()
			l := openOn(t, prefix, []string{server.Addr()})
			storetest.Acquire(t, l, storetest.Lasting(storetest.Request("k"), time.Minute))
			w := storetest.Waits(t, l, storetest.Request("k"))
			stop(server)
			select {
			case <-w.Done:
			case <-time.After(lock.Patience + 2*storetest.Patience):
				require.FailNow(t, "it waits on")
			}
			require.ErrorIs(t, w.Err, lock.ErrUnavailable)
			require.ErrorContains(t, w.Err, says)
		})
	}
}

// TestNotMadeByNew: a zero Locker and a nil one say so.
func TestNotMadeByNew(t *testing.T) {
	t.Parallel()
	for _, l := range []*etcd.Locker{nil, {}} {
		for method, call := range everyCall(l) {
			require.ErrorIs(t, call(context.Background()), lock.ErrInvalid, method)
		}
		require.ErrorIs(t, l.Close(), lock.ErrInvalid)
		require.Equal(t, "etcd", l.Capabilities().Store)
	}
}

// TestTokenBase: tokens go on where another store's have ended, and fences let them pass.
func TestTokenBase(t *testing.T) {
	t.Parallel()
	const newest = lock.Token(1_800_000_000_000_000)
	l, other, cli := pair(t, etcd.WithTokenBase(newest))
	fence := etcd.NewFence(cli)
	require.NoError(t, fence.Put(storetest.Bounded(t), l.prefix+"stock", newest, "1"))
	g := storetest.Acquire(t, l, storetest.Request("k"))
	require.Greater(t, g.Token, newest)
	require.NoError(t, fence.Put(storetest.Bounded(t), l.prefix+"stock", g.Token, "2"))
	storetest.Holds(t, other, g)
	g = storetest.Renew(t, other, storetest.Renew(t, l, g))
	storetest.Release(t, l, g)
	next := storetest.Acquire(t, other, storetest.Request("k"))
	require.Greater(t, next.Token, g.Token)
	status, err := cli.Status(storetest.Bounded(t), cli.Endpoints()[0])
	require.NoError(t, err)
	require.LessOrEqual(t, next.Token, newest+lock.Token(status.Header.Revision), "the base for a move to another cluster")
	bad := etcd.New(cli, etcd.WithTokenBase(lock.MaxToken))
	_, err = bad.Acquire(storetest.Bounded(t), storetest.Request("k"))
	require.ErrorIs(t, err, lock.ErrInvalid)
}

// TestFullServer: one that takes no more writes lets go of what is held.
func TestFullServer(t *testing.T) {
	t.Parallel()
	server := testserver.Etcd(t, "--quota-backend-bytes", fmt.Sprint(16<<20))
	l, cli := openOn(t, testserver.Prefix(), []string{server.Addr()}), plain(t, server.Addr())
	g := storetest.Acquire(t, l, storetest.Request("k"))
	w := storetest.Waits(t, l, storetest.Request("k"))
	hit := l.kv.once(fate{late: true}, entersLine(l, "doubt")) // a copy of that may yet come
	doubt := storetest.Acquire(t, l, storetest.Request("doubt"))
	reached(t, hit)
	big := string(make([]byte, 1<<20))
	for err := error(nil); err == nil; {
		_, err = cli.Put(storetest.Bounded(t), "big", big)
	}
	w.Cancel()
	w.End(t)
	storetest.Release(t, l, lock.Grant{Key: "k", Owner: w.Owner})
	storetest.Release(t, l, g)
	storetest.Release(t, l, doubt)
	resp, err := cli.Get(storetest.Bounded(t), l.prefix, clientv3.WithPrefix())
	require.NoError(t, err)
	require.Empty(t, resp.Kvs)
	_, err = l.Acquire(storetest.Bounded(t), storetest.Request("k"))
	require.ErrorContains(t, err, "compact and defragment")
}

// TestIdleCost: a lock that is held and watched has no goroutine, and less than a kilobyte.
func TestIdleCost(t *testing.T) {
	l := openOn(t, testserver.Prefix(), []string{testserver.Etcd(t).Addr()}, longest)
	storetest.IdleCost(t, l, 1000, func(int) { time.Sleep(3 * etcd.WatchDelay) })
}
