package bench

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/go-zookeeper/zk"
	"github.com/stretchr/testify/require"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/internal/testserver"
	"github.com/seed-215fdefa/lock/zookeeper"
)

type zkSilent struct{}

func (zkSilent) Printf(string, ...any) {}

// zkSession opens a session on a server with default settings, and returns when it is there:
// requests before that fail, if many connect at once.
func zkSession(t *testing.T, addr string) *zk.Conn {
	t.Helper()
	conn, _, err := zk.Connect([]string{addr}, 30*time.Second, zk.WithLogger(zkSilent{}), zk.WithLogInfo(false))
	require.NoError(t, err)
	t.Cleanup(conn.Close)
	require.Eventually(t, func() bool { return conn.State() == zk.StateHasSession }, 30*time.Second, time.Millisecond)
	return conn
}

// zkPeers are zk.Lock on one shared session, as our Client has one, and on a session for each
// caller.
func zkPeers(t *testing.T, addr string, callers int) map[string]func(caller int, key string) {
	t.Helper()
	shared := zkSession(t, addr)
	own := make([]*zk.Conn, callers)
	for i := range own {
		own[i] = zkSession(t, addr)
	}
	run := func(conn *zk.Conn, key string) {
		l := zk.NewLock(conn, key, zk.WorldACL(zk.PermAll))
		err := l.Lock()
		if err == nil {
			err = l.Unlock()
		}
		if err != nil {
			panic(err)
		}
	}
	return map[string]func(int, string){
		"one session":        func(_ int, key string) { run(shared, key) },
		"a session for each": func(caller int, key string) { run(own[caller], key) },
	}
}

func zkClient(t *testing.T, addr string) *lock.Client {
	t.Helper()
	l := zookeeper.New(zkSession(t, addr), zookeeper.WithSessionTimeout(30*time.Second))
	c := lock.New(l)
	t.Cleanup(func() {
		require.NoError(t, c.Close(context.Background()))
		require.NoError(t, l.Close())
	})
	return c
}

func zkServer(t *testing.T) string {
	return testserver.ZooKeeper(t, "tickTime=2000", "-XX:TieredStopAtLevel=4", "-Xmx1g").Addr()
}

// TestZooKeeperUncontended compares Do with zk.Lock, each caller on a key of its own.
func TestZooKeeperUncontended(t *testing.T) {
	const most = 64
	s, addr := scales(), zkServer(t)
	c, peers := zkClient(t, addr), zkPeers(t, addr, most)
	ours := func(caller, _ int) {
		if err := c.Do(context.Background(), "ours:"+strconv.Itoa(caller), nothing); err != nil {
			panic(err)
		}
	}
	out := table{
		title: "ZooKeeper, uncontended: acquire and release per second",
		head:  []string{"callers", "`zk.Lock` has", "`Do`", "`zk.Lock`", "ratio"},
	}
	for _, callers := range []int{1, 16, most} {
		for _, name := range []string{"one session", "a session for each"} {
			theirs := func(caller, _ int) { peers[name](caller, fmt.Sprintf("/peers/%d", caller)) }
			a, b, ratio := pairs(s, callers, ours, theirs)
			out.add(strconv.Itoa(callers), name, fmt.Sprintf("%.0f", a), fmt.Sprintf("%.0f", b), fmt.Sprintf("%.2f", ratio))
		}
	}
	out.print()
}

// TestZooKeeperContended lets 64 callers fight for one key.
func TestZooKeeperContended(t *testing.T) {
	const callers = 64
	s, addr := scales(), zkServer(t)
	c, peers := zkClient(t, addr), zkPeers(t, addr, callers)
	s.slice, s.rounds = 5*s.slice, max(1, s.rounds/2) // less of each is the beginning and the end
	served := make([]int, callers)
	ours := func(caller, _ int) {
		l, err := c.Lock(context.Background(), "one")
		if err == nil {
			served[caller]++
			err = l.Release(context.Background())
		}
		if err != nil {
			panic(err)
		}
	}
	out := table{
		title: "ZooKeeper, 64 callers on one key: hand-overs per second",
		head:  []string{"`zk.Lock` has", "ours", "`zk.Lock`", "ratio"},
	}
	for _, name := range []string{"one session", "a session for each"} {
		theirs := func(caller, _ int) { peers[name](caller, "/one") }
		a, b, ratio := pairs(s, callers, ours, theirs)
		out.add(name, fmt.Sprintf("%.0f", a), fmt.Sprintf("%.0f", b), fmt.Sprintf("%.2f", ratio))
	}
	out.print()
	fmt.Printf("\nleast and most served: %d, %d\n", slices.Min(served), slices.Max(served))
}
