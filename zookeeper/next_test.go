package zookeeper

import (
	"testing"
	"time"

	"github.com/go-zookeeper/zk"
	"github.com/stretchr/testify/require"
)

// Doubtful is of how many claims of l it is unknown what was done.
func (l *Locker) Doubtful() (n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, c := range l.claims {
		if c.doubtful {
			n++
		}
	}
	return n
}

// waiter is a claim that waits, as the n-th in line of key k.
func waiter(l *Locker, n int32, shared bool) *claim {
	owner := string('a' + n)
	c := &claim{
		key: "k", owner: owner, shared: shared, ttl: time.Hour, phase: waiting, session: 1,
		node: node{name: prefix(owner, shared) + "0000000000", owner: owner, shared: shared, seq: n},
		wake: make(chan struct{}, 1), handed: make(chan time.Time, 1),
	}
	l.claims[id{c.key, c.owner}], l.places[c.place()] = c, c
	return c
}

// TestNext: a release hands over to one writer that is right behind, or to readers, and to
// nobody where it is not plain who is next.
func TestNext(t *testing.T) {
	t.Parallel()
	none := func(*claim) {}
	for name, c := range map[string]struct {
		shared bool   // who releases
		behind []bool // of those who wait for it, whether they are shared
		change func(*claim)
		want   int
	}{
		"nobody":             {false, nil, none, 0},
		"a writer":           {false, []bool{false}, none, 1},
		"readers":            {false, []bool{true, true}, none, 2},
		"many readers":       {false, manyReaders(), none, maxBatch},
		"much data":          {false, []bool{true, true, true}, func(c *claim) { c.data = make([]byte, maxBytes/2-1000) }, 2},
		"from a reader":      {true, []bool{false}, none, 0},
		"two writers":        {false, []bool{false, false}, none, 0},
		"a writer, a reader": {false, []bool{false, true}, none, 0},
		"a reader, a writer": {false, []bool{true, false}, none, 0},
		"undone":             {false, []bool{false}, func(c *claim) { c.undone = true }, 0},
		"of an old session":  {false, []bool{false}, func(c *claim) { c.session++ }, 0},
		"not placed yet":     {false, []bool{false}, func(c *claim) { c.phase = creating }, 0},
		"over":               {false, []bool{false}, func(c *claim) { c.phase = ended }, 0},
	} {
		l := New(nil)
		first := waiter(l, 0, c.shared)
		first.phase = releasing
		for i, shared := range c.behind {
			f := waiter(l, int32(i+1), shared)
			l.follow(f, first.place())
			c.change(f)
		}
		require.Len(t, l.next(l.grip(first)), c.want, name)
	}
}

func manyReaders() []bool {
	shared := make([]bool, maxBatch+1)
	for i := range shared {
		shared[i] = true
	}
	return shared
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
		u, next := &unit{session: 1, start: start}, []grip{l.grip(w)}
		c.change(u, w)
		before := w.phase
		l.take(u, next)
		select {
		case at := <-w.handed:
			require.True(t, c.want, name)
			require.Equal(t, start, at)
			require.Equal(t, held, w.phase)
			require.Equal(t, start.Add(w.ttl), w.deadline)
		default:
			require.False(t, c.want, name)
			require.Equal(t, before, w.phase, name)
		}
		require.NoError(t, l.Close())
	}
}

// TestLasts: what is done in the background ends with the session, and with the connection,
// and with nothing else.
func TestLasts(t *testing.T) {
	t.Parallel()
	conn, _ := laneRoot(t)
	l := New(conn, WithSessionTimeout(time.Minute))
	session := conn.SessionID()
	failing := func(session int64, err error) (lasts bool) {
		for tries, i := (tries{}), 0; i <= 2*maxBroken; i++ {
			lasts = l.lasts(session, &tries, err)
		}
		return lasts
	}
	for _, err := range []error{zk.ErrConnectionClosed, zk.ErrNoServer} {
		require.True(t, failing(session, err), err)
		require.False(t, failing(session-1, err), err)
	}
	conn.Close()
	for conn.State() != zk.StateDisconnected {
		time.Sleep(time.Millisecond)
	}
	require.False(t, failing(session, zk.ErrConnectionClosed))
}
