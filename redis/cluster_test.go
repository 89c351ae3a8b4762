package redis_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	goredis "github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/internal/testserver"
	"github.com/seed-215fdefa/lock/locktest"
	"github.com/seed-215fdefa/lock/redis"
)

// openCluster starts a process that knows all nodes.
func openCluster(tb testing.TB, c *testserver.Cluster, opts ...redis.Option) *process {
	tb.Helper()
	n := &network{conns: make(map[*wire]struct{})}
	rdb := goredis.NewClusterClient(&goredis.ClusterOptions{Addrs: c.Addrs(), Dialer: n.dial})
	p := &process{Locker: redis.New(rdb, opts...), rdb: rdb, net: n}
	tb.Cleanup(func() {
		_ = p.Close()
		_ = rdb.Close()
	})
	return p
}

// TestSuiteCluster runs all cases on one Cluster, side by side, with the faults that
// concern one process only.
func TestSuiteCluster(t *testing.T) {
	t.Parallel()
	cluster := testserver.RedisCluster(t)
	for _, node := range cluster.Nodes {
		preload(t, node)
	}
	all := faults()
	locktest.Run(t, locktest.Harness{
		New: func(tb testing.TB) func() lock.Locker {
			prefix := redis.WithPrefix(testserver.Prefix())
			return func() lock.Locker { return openCluster(tb, cluster, prefix) }
		},
		Around: func(t *testing.T, f func(*testing.T)) {
			t.Parallel()
			f(t)
		},
		Faults: map[locktest.Fault]func(testing.TB, lock.Locker) func(){
			locktest.Sever: all[locktest.Sever], locktest.LoseReply: all[locktest.LoseReply],
			locktest.LoseWakeup: all[locktest.LoseWakeup],
		},
	})
}

// TestReplacedNodes: the lanes of nodes that have been replaced do not stay.
func TestReplacedNodes(t *testing.T) {
	t.Parallel()
	var n atomic.Int32
	rdb := goredis.NewClusterClient(&goredis.ClusterOptions{
		ClusterSlots: func(context.Context) ([]goredis.ClusterSlot, error) { // two masters
			a, b := fmt.Sprintf("a%d:1", n.Load()), fmt.Sprintf("b%d:1", n.Load()/2)
			return []goredis.ClusterSlot{
				{Start: 0, End: 8191, Nodes: []goredis.ClusterNode{{Addr: a}}},
				{Start: 8192, End: 16383, Nodes: []goredis.ClusterNode{{Addr: b}}},
			}, nil
		},
	})
	defer func() { require.NoError(t, rdb.Close()) }()
	l := redis.New(rdb)
	keys := make([]string, 64)
	for i := range keys {
		keys[i] = fmt.Sprint(i)
	}
	for range 20 {
		n.Add(1)
		require.NoError(t, rdb.ForEachMaster(t.Context(), func(context.Context, *goredis.Client) error { return nil }))
		require.Equal(t, 2, l.Lanes(keys))
	}
}

// keyOn returns a lock's key that node serves.
func keyOn(c *testserver.Cluster, prefix string, node *testserver.Server) string {
	for i := 0; ; i++ {
		key := fmt.Sprintf("key-%d", i)
		if c.Owner(c.Slot(prefix+"{"+key+"}")) == node {
			return key
		}
	}
}

// TestCluster has what is special to a Cluster, on one.
func TestCluster(t *testing.T) {
	t.Parallel()
	cluster := testserver.RedisCluster(t)
	t.Run("Slots", func(t *testing.T) { clusterSlots(t, cluster) })
	t.Run("List", func(t *testing.T) { clusterList(t, cluster) })
	t.Run("Fence", func(t *testing.T) { fenceOnCluster(t, cluster) })
	t.Run("Rights", func(t *testing.T) { rightsOnCluster(t, cluster) })
	t.Run("Resharding", func(t *testing.T) {
		for _, stage := range []string{"begun", "half moved", "moved", "finished"} {
			t.Run(stage, func(t *testing.T) { resharding(t, cluster, stage) })
		}
	})
	t.Run("FrozenMaster", func(t *testing.T) { frozenMaster(t, cluster) }) // last: it stays frozen for a while
}

// clusterSlots: all keys of a lock are in one slot, whatever its name.
func clusterSlots(t *testing.T, cluster *testserver.Cluster) {
	p := openCluster(t, cluster, redis.WithPrefix("p:"))
	rdb := p.rdb.(*goredis.ClusterClient)
	ctx := bounded(t)
	for _, key := range []string{
		"a", "{}", "{", "}", "}{", "{a}", "{a}b", "a{b}c", "{}a", "{{}}", "a}b{c", "%7B", "%", "\x00", "ключ", "}}", " ",
	} {
		tag := strings.NewReplacer("%", "%25", "{", "%7B", "}", "%7D").Replace(key)
		g := acquire(t, p, request(key))
		other := shared(request(key))
		other.Wait = true
		w := asks(t, p, other)
		eventually(t, "the waiter", func() bool { return len(inspect(t, p, key).Waiters) == 1 })
		release(t, p, lock.Grant{Key: key, Owner: "somebody"})
		found := 0
		slot := -1
		for _, node := range cluster.Nodes {
			for _, name := range names(t, client(t, node), "p:{"+globbed(tag)+"}") {
				found++
				s := cluster.Slot(name)
				require.True(t, slot < 0 || slot == s, "%q is in slot %d, others in %d", name, s, slot)
				slot = s
			}
		}
		require.GreaterOrEqual(t, found, 4, "record, counter, line, waiters, undo mark of %q", key)
		require.EqualValues(t, slot, rdb.ClusterKeySlot(ctx, "{"+tag+"}").Val())
		w.undo()
		release(t, p, g)
	}
}

func globbed(s string) string {
	return strings.NewReplacer(`\`, `\\`, "*", `\*`, "?", `\?`, "[", `\[`).Replace(s)
}

// clusterList: the keys of all masters.
func clusterList(t *testing.T, cluster *testserver.Cluster) {
	prefix := testserver.Prefix()
	p := openCluster(t, cluster, redis.WithPrefix(prefix))
	want := map[string]bool{}
	for _, node := range cluster.Nodes {
		key := keyOn(cluster, prefix, node)
		acquire(t, p, request(key))
		want[key] = true
	}
	require.Len(t, want, 3)
	for rec, err := range p.List(bounded(t), "key-") {
		require.NoError(t, err)
		require.True(t, want[rec.Key], rec.Key)
		delete(want, rec.Key)
	}
	require.Empty(t, want)
	require.ErrorIs(t, p.Preflight(bounded(t)), redis.ErrUnfit, "all three have no persistence")
}

// resharding moves the slot of a held and waited-for lock to another master, up to a stage,
// and uses it in all ways there. Redis refuses scripts with several keys (TRYAGAIN) while
// some keys are here and some there, and some of a lock's keys never exist. So most calls
// have to wait for the slot's move to end. A renewal has one key and works all the time;
// and nothing may be lost.
func resharding(t *testing.T, cluster *testserver.Cluster, stage string) {
	prefix := testserver.Prefix()
	a, b := openCluster(t, cluster, redis.WithPrefix(prefix)), openCluster(t, cluster, redis.WithPrefix(prefix))
	from, to := cluster.Nodes[0], cluster.Nodes[1]
	key := keyOn(cluster, prefix, from)
	g := acquire(t, a, request(key))
	first, second := waits(t, b, request(key)), waits(t, a, request(key))

	k := keysOf(prefix, key)
	slot := cluster.Slot(k["record"])
	m := cluster.BeginMigrate(slot, from, to)
	finish := sync.OnceFunc(m.Finish)
	defer finish() // else the next stage would meet it
	switch stage {
	case "half moved":
		m.MoveKeys(k["record"], k["line"])
	case "moved":
		m.MoveKeys()
	case "finished":
		finish()
	}
	require.NoError(t, useDuringResharding(a, b, g))
	if stage == "half moved" { // long enough for the waiters to look again, and be refused
		for until := time.Now().Add(2500 * time.Millisecond); time.Now().Before(until); {
			require.NoError(t, useDuringResharding(a, b, g))
		}
	}
	first.still()
	second.still()
	finish()
	eventually(t, "both to be in line again", func() bool { return len(inspect(t, a, key).Waiters) == 2 })
	require.NoError(t, useDuringResharding(a, b, g))

	for _, w := range []*waiter{first, second} {
		release(t, a, g)
		next := w.granted()
		require.Greater(t, next.Token, g.Token)
		holds(t, b, next)
		g = next
	}
	release(t, b, g)
	cluster.BeginMigrate(slot, to, from).Finish()
	require.Greater(t, acquire(t, b, request(key)).Token, g.Token)
}

// useDuringResharding returns an error for a wrong answer; a refusal for now is none.
func useDuringResharding(a, b lock.Locker, g lock.Grant) error {
	for range 3 {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		_, err := a.Renew(ctx, g)
		cancel()
		if err != nil {
			return fmt.Errorf("renew: %w", err)
		}
		ctx, cancel = context.WithTimeout(context.Background(), 150*time.Millisecond)
		_, err = b.Acquire(ctx, request(g.Key))
		if err == nil || !errors.Is(err, lock.ErrHeld) && !notYet(err) {
			cancel()
			return fmt.Errorf("another's try: %w", err)
		}
		rec, err := b.Inspect(ctx, g.Key)
		cancel()
		switch {
		case err != nil && !notYet(err):
			return fmt.Errorf("inspect: %w", err)
		case err == nil && (len(rec.Holders) != 1 || rec.Holders[0].Owner != g.Owner || len(rec.Waiters) > 2):
			return fmt.Errorf("inspect: %+v", rec)
		}
	}
	return nil
}

func notYet(err error) bool {
	return errors.Is(err, context.DeadlineExceeded) ||
		strings.Contains(err.Error(), "TRYAGAIN") || strings.Contains(err.Error(), "CLUSTERDOWN")
}

// frozenMaster: one master hangs. Its leases are lost, and only those; calls to the others
// go on.
func frozenMaster(t *testing.T, cluster *testserver.Cluster) {
	const ttl = 4 * time.Second // less than the cluster needs to give a node up
	prefix := testserver.Prefix()
	p := openCluster(t, cluster, redis.WithPrefix(prefix))
	ctx := bounded(t)
	c := lock.New(p, lock.WithTTL(ttl))
	defer func() { _ = c.Close(ctx) }()
	var leases []*lock.Lease
	for _, node := range cluster.Nodes {
		lease, err := c.TryLock(ctx, keyOn(cluster, prefix, node))
		require.NoError(t, err)
		leases = append(leases, lease)
	}
	frozen := cluster.Nodes[2]
	free := make([]string, 2)
	for i, node := range cluster.Nodes[:2] {
		for n := 0; free[i] == "" || cluster.Owner(cluster.Slot(prefix+"{"+free[i]+"}")) != node; n++ {
			free[i] = fmt.Sprintf("free-%d", n)
		}
	}
	frozen.Pause()
	defer frozen.Resume()
	for n := 0; leases[2].Err() == nil; n++ {
		g := acquire(t, p, request(free[n%2]))
		renew(t, p, g)
		release(t, p, g)
	}
	lostBecause(t, lock.ReasonUnreachable, leases[2].Err())
	for _, lease := range leases[:2] {
		require.NoError(t, lease.Err())
		require.NoError(t, lease.Renew(ctx))
	}
}
