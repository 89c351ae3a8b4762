package zookeeper_test

import (
	"context"
	"encoding/binary"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/internal/storetest"
	"github.com/seed-215fdefa/lock/zookeeper"
)

// listing is a connection that counts how often it asks for the names of a node's children.
type listing struct {
	net.Conn
	asked *atomic.Int64
}

func (c listing) Write(b []byte) (int, error) {
	const opGetChildren2 = 12
	if len(b) >= 12 && binary.BigEndian.Uint32(b[8:]) == opGetChildren2 && b[len(b)-1] == 0 { // without a watch
		c.asked.Add(1)
	}
	return c.Conn.Write(b)
}

// TestLineUpCost: who stands in line behind others of its own process does not read the line,
// though it is told of it. What it is told is true.
func TestLineUpCost(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	w.timeout = 4 * long // so many wait
	watched, asked := new(gate), new(atomic.Int64)
	conn := dialBy(t, func(network, addr string, timeout time.Duration) (net.Conn, error) {
		c, err := watched.dial(network, addr, timeout)
		return listing{c, asked}, err
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
	joins(20)
	line[3].Cancel() // a gap in the line
	line[3].End(t)
	line = append(line[:3], line[4:]...)
	storetest.Eventually(t, "the gap", func() bool { return len(names(t, conn, w.root+"/k")) == 1+len(line) })
	before := asked.Load()
	joins(200)
	require.Less(t, asked.Load()-before, int64(20), "who follows the gap looks, and who is slow to come in")

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

// TestCrowd: a thousand of one process wait for one key.
func TestCrowd(t *testing.T) {
	storetest.Crowd(t, sharedWorld(t).lasting().open(t), 1000)
}
