package zookeeper

import (
	"context"
	"testing"
	"time"

	"github.com/go-zookeeper/zk"
	"github.com/stretchr/testify/require"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/internal/storekit"
)

// waiter is a claim that waits, as the n-th in line of key k.
func waiter(l *Locker, n int32, shared bool) *claim {
	owner := string('a' + n)
	c := &claim{
		key: "k", owner: owner, shared: shared, token: 7, ttl: time.Hour, phase: waiting, session: 1,
		node: node{name: prefix(owner, shared, false) + "0000000000", owner: owner, shared: shared, seq: n},
		box:  storekit.NewMailbox(),
	}
	l.claims[id{c.key, c.owner}], l.places[c.place()] = c, c
	return c
}

// TestNext: a release hands over to the only one right behind it, and to nobody where it is not
// plain who is next.
func TestNext(t *testing.T) {
	t.Parallel()
	none := func(*claim) {}
	for name, c := range map[string]struct {
		shared bool   // who releases
		behind []bool // of those who wait for it, whether they are shared
		change func(*claim)
		want   bool
	}{
		"nobody":             {false, nil, none, false},
		"a writer":           {false, []bool{false}, none, true},
		"a reader":           {false, []bool{true}, none, true},
		"readers":            {false, []bool{true, true}, none, false},
		"from a reader":      {true, []bool{false}, none, false},
		"two writers":        {false, []bool{false, false}, none, false},
		"a writer, a reader": {false, []bool{false, true}, none, false},
		"undone":             {false, []bool{false}, func(c *claim) { c.undone = true }, false},
		"of an old session":  {false, []bool{false}, func(c *claim) { c.session++ }, false},
		"not placed yet":     {false, []bool{false}, func(c *claim) { c.phase = creating }, false},
		"over":               {false, []bool{false}, func(c *claim) { c.phase = ended }, false},
	} {
		l := New(nil)
		first := waiter(l, 0, c.shared)
		first.phase = releasing
		for i, shared := range c.behind {
			f := waiter(l, int32(i+1), shared)
			l.follow(f, first.place())
			c.change(f)
		}
		_, found := l.next(l.snapshot(first))
		require.Equal(t, c.want, found, name)
	}
}

// TestAfterOurs: who comes right behind a claim of its own Locker waits for that, unless it is first in line:
// then the release of that claim was done, and its reply was lost.
func TestAfterOurs(t *testing.T) {
	t.Parallel()
	for count, want := range []bool{false, true} {
		l := New(nil)
		before, c := waiter(l, 0, false), waiter(l, 1, false)
		before.phase, l.heads["k"] = releasing, before
		a := &acquisition{l: l, c: c, req: lock.Request{Wait: true}, count: count}
		require.Equal(t, want, a.afterOurs(), count)
	}
}

// TestTake: what a release has verified is held if it still waits, by the node and in the
// session of that.
func TestTake(t *testing.T) {
	t.Parallel()
	conn, root := laneRoot(t)
	start := time.Now()
	for name, c := range map[string]struct {
		change func(*unit, *claim)
		want   bool
	}{
		"as it was":       {func(*unit, *claim) {}, true},
		"another session": {func(u *unit, _ *claim) { u.session++ }, false},
		"unknown session": {func(u *unit, _ *claim) { u.session = 0 }, false},
		"undone":          {func(_ *unit, c *claim) { c.undone = true }, false},
		"another node":    {func(_ *unit, c *claim) { c.node.name += "1" }, false},
		"held already":    {func(_ *unit, c *claim) { c.phase = held }, false},
		"displaced":       {func(_ *unit, c *claim) { c.phase = creating }, false},
		"over":            {func(_ *unit, c *claim) { c.phase = ended }, false},
	} {
		l := New(conn, WithRoot(root), WithSessionTimeout(time.Minute))
		w := waiter(l, 0, false)
		u, next := &unit{session: 1, start: start}, l.snapshot(w)
		c.change(u, w)
		before := w.phase
		l.take(u, next)
		if !c.want {
			require.Equal(t, before, w.phase, name)
			require.NoError(t, l.Close())
			continue
		}
		require.Equal(t, held, w.phase)
		require.Equal(t, start.Add(w.ttl), w.deadline)
		handed := storekit.Wait{ // which takes it from the mailbox
			Request: lock.Request{TTL: time.Hour}, Mailbox: w.box, Closed: l.done, Classify: classify, Recheck: l.recheck,
			Claim: func(context.Context, bool) (lock.Grant, *storekit.Refusal, error) {
				return lock.Grant{}, &storekit.Refusal{}, nil
			},
		}
		g, err := handed.Run(t.Context())
		require.NoError(t, err, name)
		require.Equal(t, start, g.Start)
		require.Equal(t, w.token, g.Token)
		require.NoError(t, l.Close())
	}
}

// TestHold: what its owner has undone, or released, is not granted any more. What was handed over and is
// over is.
func TestHold(t *testing.T) {
	t.Parallel()
	conn, root := laneRoot(t)
	for name, c := range map[string]struct {
		change func(*claim)
		want   bool
	}{
		"as it was":   {func(*claim) {}, true},
		"handed over": {func(c *claim) { c.phase = held }, true},
		"undone":      {func(c *claim) { c.undone = true }, false},
		"released":    {func(c *claim) { c.phase = releasing }, false},
		"displaced":   {func(c *claim) { c.phase = creating }, false},
		"over":        {func(c *claim) { c.phase = ended }, true},
		"undone too":  {func(c *claim) { c.phase, c.undone = ended, true }, false},
	} {
		l := New(conn, WithRoot(root), WithSessionTimeout(time.Minute))
		w := waiter(l, 0, false)
		c.change(w)
		_, err := l.hold(w, time.Now())
		require.Equal(t, c.want, err == nil, name)
		require.NoError(t, l.Close())
	}
}

// TestEnded: a grant that was handed over ends before its waiter sees it, which is looking. Nobody has undone the
// wait, so it does not fail, nor stand in line anew: it is granted what has ended, whose loss was told.
func TestEnded(t *testing.T) {
	t.Parallel()
	l := New(nil)
	w := waiter(l, 0, false)
	a := &acquisition{l: l, c: w}
	w.phase = held
	require.False(t, l.displace(w))
	l.end(w)
	require.ErrorIs(t, a.current(), errGone)
	require.False(t, l.displace(w))
	w.undone = true
	require.ErrorIs(t, a.current(), storekit.ErrUndone)
}

// TestPersist: what is done in the background ends when it is done, with the session, and with the
// connection, and with nothing else.
func TestPersist(t *testing.T) {
	t.Parallel()
	conn, _ := laneRoot(t)
	l := New(conn, WithSessionTimeout(time.Minute))
	persist := func(err func(n int) error) (n int) {
		l.persist(func(context.Context) error { n++; return err(n) })
		return n
	}
	for _, passing := range []error{zk.ErrConnectionClosed, zk.ErrNoServer} {
		require.Equal(t, 2*maxClosed, persist(func(n int) error {
			if n == 2*maxClosed {
				return nil
			}
			return passing
		}))
	}
	require.Equal(t, 1, persist(func(int) error { return zk.ErrNoAuth }))
	conn.Close()
	for conn.State() != zk.StateDisconnected {
		time.Sleep(time.Millisecond)
	}
	require.Equal(t, maxClosed, persist(func(int) error { return zk.ErrConnectionClosed }))
}
