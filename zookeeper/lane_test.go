package zookeeper

import (
	"context"
	"errors"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-zookeeper/zk"
	"github.com/stretchr/testify/require"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/internal/storekit"
	"github.com/seed-215fdefa/lock/internal/testserver"
)

// laneRoot opens a session and creates a root.
func laneRoot(tb testing.TB) (conn *zk.Conn, root string) {
	tb.Helper()
	server := testserver.SharedZooKeeper(tb)
	conn, events, err := zk.Connect([]string{server.Addr()}, 30*time.Second, zk.WithLogInfo(false))
	require.NoError(tb, err)
	tb.Cleanup(conn.Close)
	for e := range events {
		if e.State == zk.StateHasSession {
			break
		}
	}
	root = "/" + strings.TrimSuffix(testserver.Prefix(), ":")
	_, err = conn.Create(root, nil, 0, zk.WorldACL(zk.PermAll))
	require.NoError(tb, err)
	return conn, root
}

// hold queues u, for which nobody waits.
func (l *lane) hold(u *unit) {
	u.done, u.failed, u.alone = make(chan struct{}), -1, true
	l.queue = append(l.queue, u)
}

// TestLaneRefused: whichever units of a transaction the server refuses, each gets the outcome
// of its own operations, once, and nobody else's.
func TestLaneRefused(t *testing.T) {
	t.Parallel()
	conn, root := laneRoot(t)
	l := &lane{conn: conn, hurry: make(chan struct{}, 1)}
	const n = 5
	for refused := range 1 << n {
		began := time.Now()
		var late [n]atomic.Int32
		units := make([]*unit, n)
		l.busy = true // nothing is sent yet
		for i := range units {
			name := root + "/" + strconv.Itoa(i) + "."
			u := &unit{ops: []any{&zk.SetDataRequest{Path: root, Version: -1}}, late: func(*unit) { late[i].Add(1) }}
			for range i { // so that each takes a number of its own
				u.ops = append(u.ops, &zk.CheckVersionRequest{Path: root, Version: -1})
			}
			u.ops = append(u.ops, &zk.CreateRequest{Path: name, Acl: zk.WorldACL(zk.PermAll), Flags: zk.FlagEphemeralSequential})
			if refused>>i&1 == 1 {
				u.ops = append(u.ops, &zk.DeleteRequest{Path: name, Version: -1})
			}
			units[i] = u
			l.hold(u)
		}
		l.run()
		require.False(t, l.busy)
		require.False(t, l.answered.Before(began), "a refusal is an answer too")
		require.Empty(t, l.queue)
		for i, u := range units {
			select {
			case <-u.done:
			default:
				require.FailNow(t, "it is not done", "%d of %b", i, refused)
			}
			require.EqualValues(t, 1, late[i].Load())
			require.Equal(t, conn.SessionID(), u.session)
			require.False(t, u.start.Before(began))
			if refused>>i&1 == 1 {
				require.ErrorIs(t, u.err, zk.ErrNoNode)
				require.Equal(t, len(u.ops)-1, u.failed, "%d of %b", i, refused)
				continue
			}
			require.NoError(t, u.err, "%d of %b", i, refused)
			require.Equal(t, -1, u.failed)
			require.Len(t, u.replies, len(u.ops))
			path := u.replies[len(u.ops)-1].String
			require.Contains(t, path, "/"+strconv.Itoa(i)+".")
			require.NoError(t, conn.Delete(path, -1))
		}
		left, _, err := conn.Children(root)
		require.NoError(t, err)
		require.Empty(t, left, "what was refused leaves nothing")
	}
}

// TestLaneTake: no transaction has too many units or bytes, none creates two nodes of one key, whose tokens
// would be equal, or asks for a node that it has deleted, and nothing that is put off is forgotten.
func TestLaneTake(t *testing.T) {
	t.Parallel()
	large := unit{ops: []any{&zk.CreateRequest{Path: "/k"}, &zk.SetDataRequest{Data: make([]byte, maxBytes/2)}}}
	deletes := func(path string) unit { return unit{ops: []any{&zk.DeleteRequest{Path: path}}} }
	checks := func(path string) unit { return unit{ops: []any{&zk.CheckVersionRequest{Path: path}}} }
	handsOver := unit{ops: []any{&zk.DeleteRequest{Path: "/j"}, &zk.SetDataRequest{Path: "/k"}}}
	for name, c := range map[string]struct {
		units []unit
		want  []int // sizes of the batches
	}{
		"few":      {make([]unit, 3), []int{3}},
		"many":     {make([]unit, 2*maxUnits+1), []int{maxUnits, maxUnits, 1}},
		"large":    {[]unit{large, large, {}, large, {}}, []int{2, 3}},
		"one key":  {[]unit{{key: "k"}, {key: "k"}, {}, {key: "k"}, {key: "j"}}, []int{3, 1, 1}},
		"two keys": {[]unit{{key: "k"}, {key: "j"}, {key: "k"}, {key: "j"}}, []int{2, 2}},
		"nothing":  {nil, nil},

		"gone twice":      {[]unit{deletes("/k"), deletes("/k"), checks("/k"), deletes("/j"), checks("/i")}, []int{3, 1, 1}},
		"gone at the end": {[]unit{checks("/k"), deletes("/k")}, []int{2}},
		"to one who goes": {[]unit{deletes("/k"), handsOver, checks("/j")}, []int{2, 1}},
	} {
		l := &lane{busy: true}
		for i := range c.units {
			l.hold(&c.units[i])
		}
		var sizes []int
		seen := make(map[*unit]bool)
		for batch := l.take(); len(batch) > 0; batch = l.take() {
			sizes = append(sizes, len(batch))
			for _, u := range batch {
				require.False(t, seen[u], name)
				seen[u] = true
			}
		}
		require.Equal(t, c.want, sizes, name)
		require.False(t, l.busy, name)
	}
}

// TestLaneGathers: what is in no hurry waits for what is, but not for long.
func TestLaneGathers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := &lane{busy: true, hurry: make(chan struct{}, 1)}
		gathers := func() (waited time.Duration) {
			began := time.Now()
			l.gather()
			require.NotEmpty(t, l.take())
			l.busy = true
			return time.Since(began)
		}
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		come := func(u *unit) {
			go func() { _ = l.do(ctx, u) }()
			synctest.Wait()
		}
		come(&unit{})
		require.Zero(t, gathers())
		come(&unit{slow: true})
		require.Equal(t, patience, gathers())
		come(&unit{slow: true})
		come(&unit{})
		require.Zero(t, gathers())
		come(&unit{slow: true})
		go func() {
			time.Sleep(patience / 2)
			_ = l.do(ctx, &unit{})
		}()
		require.Equal(t, patience/2, gathers())
	})
}

// TestLaneMoves: a write that waits while others are sent and answered is no sign of trouble, and one that
// was sent not long ago is none either. One that the server leaves unanswered is.
func TestLaneMoves(t *testing.T) {
	const never = 1000 * time.Hour
	for _, c := range []struct {
		answered time.Duration // ago
		sent     bool
		moves    bool
	}{
		{0, false, true},
		{lock.Patience * 3 / 4, false, true},
		{lock.Patience, false, false},
		{never, false, false},
		{0, true, true},
		{lock.Patience / 4, true, true},
		{lock.Patience / 2, true, false},
		{never, true, false},
	} {
		synctest.Test(t, func(t *testing.T) {
			l := &lane{busy: true, hurry: make(chan struct{}, 1), answered: time.Now().Add(-c.answered)}
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			told := make(chan error)
			go func() { told <- l.do(ctx, new(unit)) }()
			synctest.Wait()
			if c.sent {
				require.Len(t, l.take(), 1)
			}
			cancel()
			err := <-told
			require.ErrorIs(t, err, context.Canceled)
			require.Equal(t, c.moves, errors.Is(err, storekit.ErrQueued), c)
			require.Equal(t, c.moves && !c.sent, strings.Contains(err.Error(), "not sent"), c)
			require.Empty(t, l.queue)
		})
	}
}

// TestLaneGivenUp: the ctx of a call ends as its outcome comes. Either the call returns that,
// or it is passed to late, so that whatever was done is undone by one of the two.
func TestLaneGivenUp(t *testing.T) {
	t.Parallel()
	var returned, late int
	for range 2000 {
		l := &lane{busy: true, hurry: make(chan struct{}, 1)} // nothing is sent: the test says when it is done
		ctx, cancel := context.WithCancel(context.Background())
		passed := false
		u := &unit{late: func(*unit) { passed = true }}
		var all sync.WaitGroup
		var err error
		all.Go(func() { err = l.do(ctx, u) })
		for queued := 0; queued == 0; runtime.Gosched() {
			l.mu.Lock()
			queued = len(l.queue)
			l.mu.Unlock()
		}
		require.Len(t, l.take(), 1)
		l.mu.Lock() // both come to it, in either order
		all.Go(cancel)
		all.Go(func() { l.finish(u) })
		time.Sleep(10 * time.Microsecond)
		l.mu.Unlock()
		all.Wait()
		require.Equal(t, err != nil, passed, "%v", err)
		if passed {
			late++
		} else {
			returned++
		}
	}
	t.Log(returned, "returned,", late, "late")
}
