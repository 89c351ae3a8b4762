package zookeeper_test

import (
	"context"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/internal/storetest"
	"github.com/seed-215fdefa/lock/zookeeper"
)

// metered is a connection that counts what comes.
type metered struct {
	net.Conn
	read *atomic.Int64
}

func (c metered) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	c.read.Add(int64(n))
	return n, err
}

// TestLineUpCost: who stands in line behind many of its own process reads as little as behind
// few, though it is told of the line. What it is told is true.
func TestLineUpCost(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t).lasting()
	watched, read := new(gate), new(atomic.Int64)
	conn := dialBy(t, func(network, addr string, timeout time.Duration) (net.Conn, error) {
		c, err := watched.dial(network, addr, timeout)
		return metered{c, read}, err
	}, w.timeout, w.server.Addr())
	a := zookeeper.New(conn, zookeeper.WithRoot(w.root), zookeeper.WithTick(tick), zookeeper.WithSessionTimeout(w.timeout))
	t.Cleanup(func() { require.NoError(t, a.Close()) })
	req := storetest.Request("k")
	req.Metadata = map[string]string{"who": "the holder"}
	g := storetest.Acquire(t, a, req)
	var line []*storetest.Waiting
	joins := func(n int) {
		for range n {
			line = append(line, storetest.Waits(t, a, storetest.Request("k")))
		}
	}
	// cost is the least of some, since a recheck or a ping may come between.
	cost := func() int64 {
		least := int64(1 << 60)
		for range 5 {
			before := read.Load()
			joins(1)
			least = min(least, read.Load()-before)
		}
		return least
	}
	joins(10)
	few := cost()
	line[3].Cancel() // a gap in the line
	line[3].End(t)
	line = append(line[:3], line[4:]...)
	joins(300)
	require.Less(t, cost(), 2*few)

	told := make(chan lock.Record, 1)
	last := storetest.Request("k")
	last.Waiting = func(r lock.Record) { told <- r }
	last.Wait = true
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	ended := make(chan error, 1)
	go func() { _, err := a.Acquire(ctx, last); ended <- err }()
	rec := storetest.Receive(t, told)
	require.Equal(t, 1, rec.HolderCount)
	require.Equal(t, len(line), rec.WaiterCount)
	require.Equal(t, g.Owner, rec.Holders[0].Owner)
	require.Equal(t, g.Token, rec.Holders[0].Token)
	require.Equal(t, req.Metadata, rec.Holders[0].Metadata)
	require.Len(t, rec.Waiters, lock.MaxRecord)
	shown := storetest.Inspect(t, a, "k")
	for i, w := range rec.Waiters {
		require.Equal(t, shown.Waiters[i].Owner, w.Owner, i)
	}
	cancel()
	var held *lock.HeldError
	require.ErrorAs(t, storetest.Receive(t, ended), &held)
	require.Equal(t, len(line), held.Record.WaiterCount)
	for _, w := range line {
		w.Cancel()
	}
	for _, w := range line {
		w.End(t)
	}
	storetest.Release(t, a, g)
}
