package zookeeper_test

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/go-zookeeper/zk"
	"github.com/stretchr/testify/require"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/internal/storetest"
	"github.com/seed-215fdefa/lock/zookeeper"
)

// TestFrozenServer stops the server itself. Its own clock stops with it, so the next holder
// has to wait for a session timeout after the thaw, or for the undo.
func TestFrozenServer(t *testing.T) {
	t.Parallel()
	w := ownWorld(t)
	w.timeout = 12 * time.Second
	holder, rival := w.open(t), w.open(t)
	storetest.Release(t, holder, storetest.Acquire(t, holder, storetest.Request("frozen server"))) // so that one write will do
	storetest.FrozenServer(t, holder, rival, 5*time.Second, w.server.Pause, w.server.Resume)
}

// TestContainer: the server removes a lock's node when it is empty, under the feet of who
// has just used it. Tokens rise all the same.
func TestContainer(t *testing.T) {
	t.Parallel()
	w := ownWorld(t, "-Dznode.container.checkIntervalMs=50", "-Dznode.container.maxPerMinute=1000000").lasting()
	a, b := w.open(t), w.open(t)
	var last lock.Token
	for i := range 5 {
		g := storetest.Acquire(t, []*process{a, b}[i%2], storetest.Request("k"))
		require.Greater(t, g.Token, last)
		last = g.Token
		storetest.Release(t, []*process{a, b}[i%2], g)
		storetest.Eventually(t, "the container's end", func() bool { return len(names(t, a.conn, w.root)) == 0 })
	}
	// And with many at once, some of whom meet the removal.
	c := lock.New(a, lock.WithTTL(time.Minute))
	errs := make(chan error, 8)
	for range cap(errs) {
		go func() {
			var err error
			for range 50 {
				if err = c.Do(storetest.Bounded(t), "busy", func(context.Context, *lock.Lease) error { return nil }); err != nil {
					break
				}
				time.Sleep(5 * time.Millisecond)
			}
			errs <- err
		}()
	}
	for range cap(errs) {
		require.NoError(t, <-errs)
	}
}

// TestACL: only who knows the password may touch the locks.
func TestACL(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t).lasting()
	w.root += "/secret/locks"
	acl := zookeeper.WithACL(zk.DigestACL(zk.PermAll, "user", "password")...)
	a, b, stranger := w.open(t, acl), w.open(t, acl), w.open(t)
	for _, p := range []*process{a, b} {
		require.NoError(t, p.conn.AddAuth("digest", []byte("user:password")))
	}
	g := storetest.Acquire(t, a, storetest.Request("k"))
	waiting := storetest.Waits(t, b, storetest.Request("k"))
	_, err := stranger.Acquire(storetest.Bounded(t), storetest.Request("k"))
	require.ErrorIs(t, err, zk.ErrNoAuth)
	_, err = stranger.Inspect(storetest.Bounded(t), "k")
	require.ErrorIs(t, err, zk.ErrNoAuth)
	require.ErrorIs(t, stranger.ForceRelease(storetest.Bounded(t), "k", g.Owner), zk.ErrNoAuth)
	_, err = stranger.Acquire(storetest.Bounded(t), storetest.Request("another"))
	require.ErrorIs(t, err, zk.ErrNoAuth)
	a.proxy.Break() // the client logs in again
	storetest.Renew(t, a, g)
	storetest.Release(t, a, g)
	storetest.Release(t, b, waiting.Granted(t))
	for _, path := range []string{w.root, w.root + "/k"} {
		got, _, err := a.conn.GetACL(path)
		require.NoError(t, err)
		require.Equal(t, zk.DigestACL(zk.PermAll, "user", "password"), got)
	}
}

// TestOneWrite counts transactions: a key in use costs one to acquire, and one to release;
// readings cost none.
func TestOneWrite(t *testing.T) {
	t.Parallel()
	w := ownWorld(t).lasting()
	a := w.open(t)
	first := storetest.Acquire(t, a, storetest.Request("k"))
	storetest.Release(t, a, first)
	second := storetest.Acquire(t, a, storetest.Request("k"))
	require.Equal(t, first.Token+2, second.Token)
	for range 3 {
		storetest.Inspect(t, a, "k")
		storetest.Renew(t, a, second)
	}
	storetest.Release(t, a, second)
	third := storetest.Acquire(t, a, storetest.Request("k"))
	require.Equal(t, second.Token+5, third.Token)

	// A hand-over within the process: the waiter's place, and the release.
	waiting := storetest.Waits(t, a, storetest.Request("k"))
	storetest.Release(t, a, third)
	next := waiting.Granted(t)
	storetest.Release(t, a, next)
	require.Equal(t, third.Token+1, next.Token)
	fourth := storetest.Acquire(t, a, storetest.Request("k"))
	require.Equal(t, third.Token+4, fourth.Token)

	// To another process: who waits there verifies its node before it has the lock.
	waiting = storetest.Waits(t, w.open(t), storetest.Request("k"))
	storetest.Release(t, a, fourth)
	next = waiting.Granted(t)
	storetest.Release(t, a, next)
	require.Equal(t, next.Token+4, storetest.Acquire(t, a, storetest.Request("k")).Token)
}

// TestHandOverInProcess: a release hands over to those who are next, and to nobody beside
// whom others hold still.
func TestHandOverInProcess(t *testing.T) {
	t.Parallel()
	a := sharedWorld(t).lasting().open(t)
	shared := func() lock.Request { return storetest.Shared(storetest.Request("k")) }
	one, two := storetest.Acquire(t, a, shared()), storetest.Acquire(t, a, shared())
	writer := storetest.Waits(t, a, storetest.Request("k"))
	readers := []*storetest.Waiting{storetest.Waits(t, a, shared()), storetest.Waits(t, a, shared())}
	last := storetest.Waits(t, a, storetest.Request("k"))
	still := func(ws ...*storetest.Waiting) {
		for _, w := range ws {
			select {
			case <-w.Done:
				require.FailNow(t, "it waits no more", "%v %v", w.Grant, w.Err)
			case <-time.After(50 * time.Millisecond):
			}
		}
	}
	storetest.Release(t, a, two) // right in front of the writer, and not alone
	still(writer)
	storetest.Release(t, a, one)
	g := writer.Granted(t)
	still(append(readers, last)...)
	storetest.Release(t, a, g)
	for _, r := range readers {
		r.Granted(t)
	}
	still(last)
	for _, r := range readers {
		storetest.Release(t, a, r.Grant)
	}
	storetest.Release(t, a, last.Granted(t))
	require.Zero(t, a.Claims())
}

// TestBatchOfSome: writes of many callers share transactions. What one of them is refused is
// no matter to the others.
func TestBatchOfSome(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t).lasting()
	a := w.open(t)
	admin := dial(t, long, w.server.Addr())
	const n = 24
	grants := make([]lock.Grant, n)
	for i := range grants {
		grants[i] = storetest.Acquire(t, a, storetest.Request(fmt.Sprint("k", i)))
		if i%3 == 0 {
			key := w.root + "/" + grants[i].Key
			require.NoError(t, admin.Delete(key+"/"+names(t, admin, key)[0], -1))
		}
	}
	errs := make([]error, n)
	for _, call := range []func(g lock.Grant) error{
		func(g lock.Grant) error { _, err := a.Renew(storetest.Bounded(t), g); return err },
		func(g lock.Grant) error { return a.Release(storetest.Bounded(t), g) },
	} {
		var all sync.WaitGroup
		for i, g := range grants {
			all.Go(func() { errs[i] = call(g) })
		}
		all.Wait()
		for i, err := range errs {
			if i%3 == 0 {
				storetest.Lost(t, err)
			} else {
				require.NoError(t, err, i)
			}
		}
	}
	require.Zero(t, a.Claims())
}

// TestTryIsNoWaiter: a try stands in line until it knows that it is not first. It is not shown as one
// who waits, and neither is it counted.
func TestTryIsNoWaiter(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t).lasting()
	a, other := w.open(t), dial(t, long, w.server.Addr())
	g := storetest.Acquire(t, a, storetest.Request("k"))
	_, err := other.Create(w.root+"/k/Xtry.", nil, zk.FlagEphemeralSequential, zk.WorldACL(zk.PermAll))
	require.NoError(t, err)
	waiting := storetest.Waits(t, w.open(t), storetest.Request("k"))
	for _, rec := range []lock.Record{storetest.Inspect(t, a, "k"), storetest.Refused(t, a, storetest.Request("k"))} {
		require.Equal(t, 1, rec.HolderCount)
		require.Equal(t, 1, rec.WaiterCount)
		require.Len(t, rec.Waiters, 1)
		require.Equal(t, waiting.Owner, rec.Waiters[0].Owner)
	}
	storetest.Release(t, a, g)
	rec := storetest.Inspect(t, a, "k") // it is first now, and so it holds the lock
	require.Equal(t, "try", rec.Holders[0].Owner)
}

// TestBadInput: an error from every call, and no panic.
func TestBadInput(t *testing.T) {
	conn, _, err := zk.Connect([]string{"127.0.0.1:1"}, time.Second, zk.WithLogger(silent{}), zk.WithLogInfo(false))
	require.NoError(t, err)
	defer conn.Close()
	good := zookeeper.WithSessionTimeout(10 * time.Second)
	for want, l := range map[string]*zookeeper.Locker{
		"connection is nil":          zookeeper.New(nil, good),
		"option is nil":              zookeeper.New(conn, good, nil),
		"WithSessionTimeout":         zookeeper.New(conn),
		"session timeout -1ns":       zookeeper.New(conn, zookeeper.WithSessionTimeout(-1)),
		"leaves no TTL":              zookeeper.New(conn, zookeeper.WithSessionTimeout(3*time.Second)),
		"dialer is nil":              zookeeper.New(conn, zookeeper.WithDialer(nil)),
		"session timeout 0s":         zookeeper.New(conn, zookeeper.WithDialer(zookeeper.NewDialer(0, nil))),
		"tick 0s":                    zookeeper.New(conn, good, zookeeper.WithTick(0)),
		`root ""`:                    zookeeper.New(conn, good, zookeeper.WithRoot("")),
		`root "/"`:                   zookeeper.New(conn, good, zookeeper.WithRoot("/")),
		`root "lock"`:                zookeeper.New(conn, good, zookeeper.WithRoot("lock")),
		`root "/a//b"`:               zookeeper.New(conn, good, zookeeper.WithRoot("/a//b")),
		`root "/a/"`:                 zookeeper.New(conn, good, zookeeper.WithRoot("/a/")),
		`root "/.."`:                 zookeeper.New(conn, good, zookeeper.WithRoot("/..")),
		`root "/a\x00"`:              zookeeper.New(conn, good, zookeeper.WithRoot("/a\x00")),
		"ACL is empty":               zookeeper.New(conn, good, zookeeper.WithACL()),
		`root "/lock/é"`:             zookeeper.New(conn, good, zookeeper.WithRoot("/lock/é")),
		"two thirds of it":           zookeeper.New(conn, zookeeper.WithSessionTimeout(time.Second), zookeeper.WithTick(time.Second)),
		"must be more than a tick":   zookeeper.New(conn, zookeeper.WithTick(time.Minute), good),
		"zookeeper: session timeout": zookeeper.New(conn, zookeeper.WithSessionTimeout(0)),
	} {
		ctx := storetest.Bounded(t)
		_, err := l.Acquire(ctx, storetest.Request("k"))
		check := func(err error) {
			require.ErrorIs(t, err, lock.ErrInvalid)
			require.ErrorContains(t, err, want)
		}
		check(err)
		g := lock.Grant{Key: "k", Owner: "o", Token: 1, TTL: time.Second}
		_, err = l.Renew(ctx, g)
		check(err)
		check(l.Release(ctx, g))
		_, err = l.Inspect(ctx, "k")
		check(err)
		check(l.ForceRelease(ctx, "k", "o"))
		for _, err := range l.List(ctx, "") {
			check(err)
		}
		require.NoError(t, l.Close())
	}
	l := zookeeper.New(conn, good)
	defer func() { require.NoError(t, l.Close()) }()
	ctx := storetest.Bounded(t)
	_, err = l.Renew(ctx, lock.Grant{Key: "k", Owner: "o", Token: 1})
	require.ErrorIs(t, err, lock.ErrInvalid)
	require.ErrorIs(t, l.Release(ctx, lock.Grant{Key: "k"}), lock.ErrInvalid)
	require.ErrorIs(t, l.Release(ctx, lock.Grant{Owner: "o"}), lock.ErrInvalid)
}

// TestNoServer: a try says so, and a wait ends with its ctx.
func TestNoServer(t *testing.T) {
	t.Parallel()
	conn, _, err := zk.Connect([]string{"127.0.0.1:1"}, time.Second, zk.WithLogger(silent{}), zk.WithLogInfo(false))
	require.NoError(t, err)
	l := zookeeper.New(conn, zookeeper.WithSessionTimeout(10*time.Second))
	_, err = l.Acquire(storetest.Bounded(t), storetest.Request("k"))
	require.ErrorIs(t, err, zk.ErrNoServer)
	ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
	defer cancel()
	req := storetest.Request("k")
	req.Wait = true
	_, err = l.Acquire(ctx, req)
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.NotErrorIs(t, err, lock.ErrHeld)
	require.NoError(t, l.Close())
	conn.Close()
}

// TestFirstRequestFails: who is not in line yet is told that there is no server, also if it asked
// to wait.
func TestFirstRequestFails(t *testing.T) {
	t.Parallel()
	conn, _, err := zk.Connect([]string{"127.0.0.1:1"}, time.Second, zk.WithLogger(silent{}), zk.WithLogInfo(false))
	require.NoError(t, err)
	defer conn.Close()
	l := zookeeper.New(conn, zookeeper.WithSessionTimeout(10*time.Second))
	defer func() { require.NoError(t, l.Close()) }()
	req := storetest.Request("k")
	req.Wait = true
	_, err = l.Acquire(storetest.Bounded(t), req)
	require.ErrorIs(t, err, zk.ErrNoServer)
}

// TestNoAnswer: a server that answers nothing is given lock.Patience by every call, whatever ctx
// allows.
func TestNoAnswer(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t).lasting()
	a := w.open(t)
	g := storetest.Acquire(t, a, storetest.Request("k"))
	heal := a.proxy.Freeze()
	ctx, cancel := context.WithTimeout(context.Background(), 4*lock.Patience)
	defer cancel()
	calls := storetest.EveryCall(a, g, nil)
	delete(calls, "Renew Shared") // of the same grant
	delete(calls, "Release Shared")
	delete(calls, "Release")
	errs := make(map[string]chan error)
	for name, call := range calls {
		errs[name] = make(chan error, 1)
		go func(told chan<- error) { told <- call(ctx) }(errs[name])
	}
	for name := range calls {
		err := <-errs[name]
		require.ErrorIs(t, err, lock.ErrUnavailable, name)
		require.NotErrorIs(t, err, context.DeadlineExceeded, name)
	}
	heal()
	storetest.Release(t, w.open(t), storetest.Await(t, w.open(t), storetest.Request("free"))) // nothing is left there
}

// TestOwnerTwice: an owner is for one try.
func TestOwnerTwice(t *testing.T) {
	t.Parallel()
	a := sharedWorld(t).lasting().open(t)
	req := storetest.Request("k")
	g := storetest.Acquire(t, a, req)
	_, err := a.Acquire(storetest.Bounded(t), req)
	require.ErrorIs(t, err, lock.ErrInvalid)
	storetest.Release(t, a, g)
}

// TestOtherProcess: a grant may be released from anywhere, but be renewed only where its
// session is.
func TestOtherProcess(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t).lasting()
	a, b := w.open(t), w.open(t)
	g := storetest.Acquire(t, a, storetest.Request("k"))
	_, err := b.Renew(storetest.Bounded(t), g)
	require.ErrorIs(t, err, lock.ErrUnsupported)
	require.NotErrorIs(t, err, lock.ErrLost)
	stale := g
	stale.Token--
	require.Equal(t, lock.ReasonTaken, storetest.Lost(t, b.Release(storetest.Bounded(t), stale)))
	storetest.Holds(t, b, g)
	storetest.Release(t, b, g)
	storetest.Lost(t, a.Release(storetest.Bounded(t), g))
}
