//go:build linux

package chaos

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/go-zookeeper/zk"
	"github.com/jackc/pgx/v5/pgxpool"
	goredis "github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/dynamo"
	"github.com/seed-215fdefa/lock/internal/testserver"
	"github.com/seed-215fdefa/lock/memory"
	"github.com/seed-215fdefa/lock/postgres"
)

// world is a store's servers, and what can be done to them.
type world struct {
	spec   spec // what a process is told, with no detours
	direct func() (*connection, error)
	faults []fault
}

// fault is something that a nemesis does. do brings it about, waits for about d, and mends
// it. Its choices come from rng.
type fault struct {
	name     string
	weight   int
	do       func(d time.Duration, rng *rand.Rand)
	survives lock.Survival // what a store must declare for its grants to outlive it; 0: they always must
	takes    string        // what it may undo without breaking a promise: "grants" or "releases"
}

var worlds = map[string]func(t *testing.T) *world{
	"memory": memoryWorld, "redis": redisWorld, "redis-sentinel": sentinelWorld, "redis-cluster": clusterWorld,
	"redlock": redlockWorld, "etcd": etcdWorld, "postgres": postgresWorld, "zookeeper": zookeeperWorld, "dynamo": dynamoWorld,
}

// newWorld skips the test if it may not break one of the servers: their faults come while other
// goroutines are at work.
func newWorld(t *testing.T, store string, servers ...*testserver.Server) *world {
	for _, s := range servers {
		if !s.Controlled() {
			t.Skipf("needs to break the server, but %s is run by somebody else", s.Addr())
		}
	}
	w := &world{spec: spec{Store: store, TTL: [2]time.Duration{500 * time.Millisecond, 2 * time.Second}}}
	for _, s := range servers {
		w.spec.Servers = append(w.spec.Servers, s.Addr())
	}
	w.direct = func() (*connection, error) { return open(w.spec) }
	return w
}

// picker chooses servers.
type picker func(rng *rand.Rand) []*testserver.Server

func the(s func() *testserver.Server) picker {
	return func(*rand.Rand) []*testserver.Server { return []*testserver.Server{s()} }
}

func some(n int, all []*testserver.Server) picker {
	return func(rng *rand.Rand) (picked []*testserver.Server) {
		for _, i := range rng.Perm(len(all))[:n] {
			picked = append(picked, all[i])
		}
		return picked
	}
}

func pause(what string, weight int, pick picker) fault {
	return fault{name: "pause " + what, weight: weight, do: func(d time.Duration, rng *rand.Rand) {
		for _, s := range pick(rng) {
			s.Pause()
			defer s.Resume()
		}
		time.Sleep(d)
	}}
}

func kill(what string, weight int, pick picker) fault {
	return fault{name: "kill " + what, weight: weight, survives: lock.SurvivesRestart, do: func(d time.Duration, rng *rand.Rand) {
		all := pick(rng)
		for _, s := range all {
			s.Kill()
		}
		time.Sleep(d)
		var wg sync.WaitGroup
		for _, s := range all { // side by side: none may be ready before there is a quorum
			wg.Go(s.Start)
		}
		wg.Wait()
	}}
}

func (f fault) then(settle func()) fault {
	do := f.do
	f.do = func(d time.Duration, rng *rand.Rand) {
		do(d, rng)
		settle()
	}
	return f
}

func memoryWorld(t *testing.T) *world {
	store := &memoryStore{locks: memory.New()}
	w := newWorld(t, "memory")
	w.spec.Servers = []string{store.serve(t)}
	w.direct = func() (*connection, error) { return &connection{locker: store.locks}, nil }
	return w
}

func redisWorld(t *testing.T) *world {
	s := testserver.Redis(t)
	w := newWorld(t, "redis", s)
	w.spec.Fence = testserver.Redis(t).Addr()
	rdb := goredis.NewClient(&goredis.Options{Addr: s.Addr()})
	t.Cleanup(func() { _ = rdb.Close() })
	only := some(1, []*testserver.Server{s})
	w.faults = []fault{
		pause("server", 4, only),
		kill("server", 1, only),
		{name: "flush all", weight: 1, survives: lock.SurvivesRecordLoss, do: func(time.Duration, *rand.Rand) {
			_ = rdb.FlushAll(context.Background()).Err()
		}},
		{name: "flush scripts", weight: 2, do: func(time.Duration, *rand.Rand) {
			_ = rdb.ScriptFlush(context.Background()).Err()
		}},
	}
	return w
}

func sentinelWorld(t *testing.T) *world {
	s := testserver.RedisSentinel(t)
	w := newWorld(t, "redis-sentinel", s.Master(), s.Replica())
	w.spec.Fence, w.spec.Master, w.spec.Sentinels = testserver.Redis(t).Addr(), s.MasterName, s.Addrs()
	failover := func(what string, weight int, do func(d time.Duration, old, next *testserver.Server)) fault {
		f := fault{name: "failover, " + what, weight: weight, survives: lock.SurvivesFailover}
		f.do = func(d time.Duration, _ *rand.Rand) { do(d, s.Master(), s.Replica()) }
		return f.then(s.AwaitReplica)
	}
	w.faults = []fault{
		pause("master", 4, the(s.Master)),
		pause("replica", 2, the(s.Replica)),
		failover("both alive", 1, func(time.Duration, *testserver.Server, *testserver.Server) { s.Failover() }),
		failover("master killed", 1, func(_ time.Duration, old, _ *testserver.Server) {
			old.Kill()
			s.AwaitFailover(old)
			old.Start()
		}),
		failover("master frozen", 1, func(_ time.Duration, old, _ *testserver.Server) {
			old.Pause()
			s.AwaitFailover(old)
			old.Resume()
		}),
		failover("replica behind", 1, func(d time.Duration, old, next *testserver.Server) {
			next.Pause() // it misses what the master acknowledges meanwhile
			time.Sleep(d / 2)
			old.Kill()
			next.Resume()
			s.AwaitFailover(old)
			old.Start()
		}),
	}
	return w
}

func clusterWorld(t *testing.T) *world {
	c := testserver.RedisCluster(t, testserver.WithReplicas())
	w := newWorld(t, "redis-cluster", c.Nodes...)
	w.spec.Fence = testserver.Redis(t).Addr()
	takeOver := kill("1 of 6, until the cluster is sound", 2, some(1, c.Nodes)).then(c.AwaitOK)
	takeOver.survives = lock.SurvivesFailover
	long := takeOver
	long.name = "failover, a master killed for 4 s"
	do := long.do
	long.do = func(_ time.Duration, rng *rand.Rand) { do(4*time.Second, rng) }
	w.faults = []fault{pause("1 of 6", 3, some(1, c.Nodes)), pause("6 of 6", 2, some(6, c.Nodes)), takeOver, long}
	return w
}

func redlockWorld(t *testing.T) *world {
	nodes := testserver.Redlock(t)
	w := newWorld(t, "redlock", nodes...)
	w.spec.Fence = testserver.Redis(t).Addr()
	// A node that has lost its data abstains for MaxTTL, and no more than a minority may at
	// once: that is what the store asks of operators.
	// A grant of no more nodes than a quorum is lost with one of them, to nobody else.
	lose := func(what string, n int) fault {
		f := kill(what, 2, some(n, nodes)).then(func() { time.Sleep(redlockMaxTTL + time.Second) })
		f.takes = "grants"
		return f
	}
	w.faults = []fault{
		pause("1 of 5", 3, some(1, nodes)), pause("2 of 5", 3, some(2, nodes)),
		pause("3 of 5", 2, some(3, nodes)), pause("5 of 5", 1, some(5, nodes)),
		lose("1 of 5, data lost", 1), lose("2 of 5, data lost", 2),
	}
	return w
}

func etcdWorld(t *testing.T) *world {
	c := testserver.NewEtcdCluster(t)
	w := newWorld(t, "etcd", c.Members...)
	w.spec.TTL = [2]time.Duration{time.Second, 3 * time.Second}
	follower := func(rng *rand.Rand) []*testserver.Server { return some(1, c.Followers())(rng) }
	w.faults = []fault{
		pause("leader", 2, the(c.Leader)), pause("follower", 2, follower),
		pause("2 of 3", 1, some(2, c.Members)), pause("3 of 3", 1, some(3, c.Members)),
		kill("leader", 3, the(c.Leader)), kill("follower", 2, follower),
		kill("2 of 3", 1, some(2, c.Members)), kill("3 of 3", 1, some(3, c.Members)),
	}
	for i := range w.faults[:4] { // a leader that comes back ends etcd leases that are alive
		w.faults[i].takes = "grants"
	}
	return w
}

func postgresWorld(t *testing.T) *world {
	s := testserver.Postgres(t)
	w := newWorld(t, "postgres", s)
	ctx := context.Background()
	pool, err := pgxpool.New(ctx, testserver.PostgresURL(s.Addr())+"&pool_max_conns=2")
	require.NoError(t, err)
	t.Cleanup(pool.Close)
	require.NoError(t, postgres.Migrate(ctx, pool, postgres.WithSchema(place)))
	_, err = pool.Exec(ctx, "CREATE TABLE register (key text PRIMARY KEY, value text)")
	require.NoError(t, err)
	only := some(1, []*testserver.Server{s})
	crash := kill("server", 3, only)
	crash.takes = "releases" // they do not wait for the disk
	w.faults = []fault{
		pause("server", 3, only),
		crash,
		{name: "terminate backends", weight: 1, do: func(time.Duration, *rand.Rand) {
			_, _ = pool.Exec(ctx, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "+
				"WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()")
		}},
		{name: "prune", weight: 1, do: func(time.Duration, *rand.Rand) {
			l := postgres.New(pool, postgres.WithSchema(place))
			_, _ = l.Prune(ctx, time.Second)
			_ = l.Close()
		}},
	}
	return w
}

func zookeeperWorld(t *testing.T) *world {
	e := testserver.NewZooKeeperEnsemble(t, "-Dzookeeper.leader.maxTimeToWaitForEpoch=2000", "-Dznode.container.checkIntervalMs=1000")
	w := newWorld(t, "zookeeper", e.Members...)
	conn, _, err := zk.Connect(e.Addrs(), 10*time.Second, zk.WithLogger(silentZK{}), zk.WithLogInfo(false))
	require.NoError(t, err)
	defer conn.Close()
	for _, path := range append([]string{"/register"}, registerPaths()...) {
		_, err = conn.Create(path, nil, 0, zk.WorldACL(zk.PermAll))
		require.NoError(t, err)
	}
	follower := func(rng *rand.Rand) []*testserver.Server { return some(1, e.Followers())(rng) }
	w.faults = []fault{
		pause("leader", 2, the(e.Leader)), pause("follower", 2, follower),
		pause("2 of 3", 1, some(2, e.Members)), pause("3 of 3", 1, some(3, e.Members)),
		kill("leader", 2, the(e.Leader)), kill("follower", 2, follower), kill("3 of 3", 1, some(3, e.Members)),
		{name: "cut off a follower", weight: 2, do: func(d time.Duration, rng *rand.Rand) {
			heal := e.CutOff(follower(rng)[0])
			time.Sleep(2 * d)
			heal()
		}},
	}
	for i := range w.faults {
		w.faults[i] = w.faults[i].then(e.AwaitQuorum)
	}
	return w
}

func registerPaths() (all []string) {
	for i := range shortKeys + longKeys {
		all = append(all, fmt.Sprintf("/register/%s", keyName(i)))
	}
	return all
}

func dynamoWorld(t *testing.T) *world {
	s := testserver.Dynamo(t)
	w := newWorld(t, "dynamo", s)
	db, shut := dynamoClient(w.spec)
	defer shut()
	require.NoError(t, dynamo.CreateTable(context.Background(), db, place))
	require.NoError(t, dynamo.CreateTable(context.Background(), db, "register"))
	only := some(1, []*testserver.Server{s})
	w.faults = []fault{pause("server", 4, only), kill("server", 2, only)}
	return w
}
