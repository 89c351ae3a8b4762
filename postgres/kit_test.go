package postgres_test

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/internal/storetest"
	"github.com/seed-215fdefa/lock/internal/testserver"
	"github.com/seed-215fdefa/lock/locktest/faultproxy"
	"github.com/seed-215fdefa/lock/postgres"
)

// world is a set of locks on a server, and how to get at it.
type world struct {
	server  *testserver.Server
	pair    *testserver.PostgresPair // if it is to fail over
	bouncer *testserver.Server       // if statements go through it
	listens bool                     // past it
	schema  string
	options []postgres.Option
	admin   *pgxpool.Pool // beside all Lockers
	oneWay  time.Duration // from a process to its servers
}

// sharedWorld is a clean set on the server that the tests share.
func sharedWorld(tb testing.TB) world {
	testserver.NeedServer(tb)
	// Nobody here freezes or kills it, so to ask for it once is enough.
	shared.once.Do(func() { shared.server = testserver.SharedPostgres(tb) })
	require.NotNil(tb, shared.server)
	return newWorld(tb, shared.server)
}

var shared struct {
	once   sync.Once
	server *testserver.Server
}

// ownWorld is a server of the test's own, to break.
func ownWorld(tb testing.TB, args ...string) world {
	return newWorld(tb, testserver.Postgres(tb, args...))
}

// pairWorld has a standby that can take over.
func pairWorld(tb testing.TB) world {
	pair := testserver.NewPostgresPair(tb)
	w := newWorld(tb, pair.Primary)
	w.pair = &pair
	return w
}

func newWorld(tb testing.TB, server *testserver.Server) world {
	tb.Helper()
	w := world{server: server, schema: strings.TrimSuffix(testserver.Prefix(), ":")}
	w.options = []postgres.Option{postgres.WithSchema(w.schema)}
	w.admin = pool(tb, testserver.PostgresURL(server.Addr())+"&pool_max_conns=4")
	require.NoError(tb, postgres.Migrate(storetest.Bounded(tb), w.admin, w.options...))
	return w
}

// reused gives t's cases the sets that fresh makes, one case after the other: to make a schema is more
// work than what most of them do in it. A case that fails keeps its own.
func reused(t *testing.T, fresh func(testing.TB) world) func(testing.TB) world {
	var mu sync.Mutex
	var free []world
	return func(tb testing.TB) world {
		tb.Helper()
		mu.Lock()
		var w world
		if n := len(free); n > 0 {
			w, free = free[n-1], free[:n-1]
		}
		mu.Unlock()
		if w.admin == nil {
			w = fresh(t)
		}
		tb.Cleanup(func() {
			if !tb.Failed() && w.emptied(tb) {
				mu.Lock()
				defer mu.Unlock()
				free = append(free, w)
			}
		})
		return w
	}
}

// emptied deletes all rows once nothing more can come of the processes in w. It reports false if that
// takes too long.
func (w world) emptied(tb testing.TB) bool {
	// A backend whose client has gone first does what it has still got of it. A pooler's are idle then.
	busy := "SELECT count(*) FROM pg_stat_activity WHERE application_name = $1"
	if w.bouncer != nil {
		busy += " AND state <> 'idle'"
	}
	for begin := time.Now(); time.Since(begin) < 5*time.Second; time.Sleep(5 * time.Millisecond) {
		if value[int](tb, w, busy, w.schema) > 0 {
			continue
		}
		w.exec(tb, "TRUNCATE "+strings.Join([]string{
			w.table(""), w.table("_readers"), w.table("_waiters"), w.table("_tombstones"), w.table("_marks"),
		}, ", "))
		return true
	}
	return false
}

func pool(tb testing.TB, url string) *pgxpool.Pool {
	tb.Helper()
	p, err := pgxpool.New(context.Background(), url)
	require.NoError(tb, err)
	tb.Cleanup(p.Close)
	return p
}

// exec runs a statement beside all Lockers.
func (w world) exec(tb testing.TB, sql string, args ...any) {
	tb.Helper()
	_, err := w.admin.Exec(storetest.Bounded(tb), sql, args...)
	require.NoError(tb, err)
}

// value reads one value beside all Lockers.
func value[T any](tb testing.TB, w world, sql string, args ...any) T {
	tb.Helper()
	var v T
	require.NoError(tb, w.admin.QueryRow(storetest.Bounded(tb), sql, args...).Scan(&v))
	return v
}

// age makes rows that nobody holds two seconds older than they are: old enough to be pruned.
func (w world) age(tb testing.TB) {
	tb.Helper()
	w.exec(tb, "UPDATE "+w.table("")+" SET token = greatest(token - 2000000, 0) WHERE owner IS NULL OR expires <= now()")
}

// keepPlaces has each place in line outlive its heartbeats by an hour: those of a busy machine may
// be late, and who has lost a place is served later.
func (w world) keepPlaces(tb testing.TB) {
	tb.Helper()
	w.exec(tb, fmt.Sprintf(`CREATE FUNCTION %[1]s() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
			NEW.deadline := NEW.deadline + interval '1 h';
			RETURN NEW;
		END $$;
		CREATE TRIGGER keep BEFORE INSERT OR UPDATE ON %[2]s FOR EACH ROW EXECUTE FUNCTION %[1]s()`,
		w.table("_keep"), w.table("_waiters")))
}

func (w world) url() string { return testserver.PostgresURL(w.server.Addr()) }

// function is the quoted name of a function.
func (w world) function(name string) string { return postgres.FunctionName(w.schema, "locks", name) }

// table is the quoted name of a table.
func (w world) table(suffix string) string {
	return pgx.Identifier{w.schema, "locks" + suffix}.Sanitize()
}

// process is a Locker with a pool and a way to the server of its own.
type process struct {
	*postgres.Locker
	world world
	pool  *pgxpool.Pool
	net   network
}

// open starts one more process. params are of its pool's URL.
func (w world) open(tb testing.TB, params ...string) *process {
	tb.Helper()
	p := &process{world: w}
	options := w.options
	link := func(s *testserver.Server) string {
		proxy := faultproxy.New(tb, s.Addr())
		proxy.Delay(faultproxy.All(), w.oneWay)
		p.net = append(p.net, proxy)
		return proxy.Addr()
	}
	addrs := []string{link(w.server)}
	switch {
	case w.pair != nil:
		addrs = append(addrs, link(w.pair.Standby))
		params = append(params, "target_session_attrs=read-write")
	case w.bouncer != nil:
		if direct := listenConfig(tb, addrs[0]); w.listens {
			options = append(options[:len(options):len(options)], postgres.WithListenConfig(direct))
		}
		addrs = []string{link(w.bouncer)}
		params = append(params, "default_query_exec_mode=exec")
	}
	if strings.Contains(tb.Name(), "Late") || strings.Contains(tb.Name(), "LostReply") {
		params = append(params, "default_query_exec_mode=exec")
	}
	params = append(params, "pool_max_conns=6", "application_name="+w.schema)
	config, err := pgxpool.ParseConfig(testserver.PostgresURL(strings.Join(addrs, ",")) + "&" + strings.Join(params, "&"))
	require.NoError(tb, err)
	p.pool, err = pgxpool.NewWithConfig(context.Background(), config)
	require.NoError(tb, err)
	tb.Cleanup(p.pool.Close)
	p.Locker = postgres.New(p.pool, options...)
	tb.Cleanup(func() { require.NoError(tb, p.Close()) })
	return p
}

func listenConfig(tb testing.TB, addr string) *pgx.ConnConfig {
	tb.Helper()
	config, err := pgx.ParseConfig(testserver.PostgresURL(addr))
	require.NoError(tb, err)
	return config
}

// proxy is the way of all that p sends, if it has one server.
func (p *process) proxy() *faultproxy.Proxy { return p.net[len(p.net)-1] }

// loseReplies lets requests through, and nothing back.
func (p *process) loseReplies(tb testing.TB) (heal func()) {
	tb.Helper()
	p.warm(tb)
	return p.net.holdReplies()
}

// warm makes connections, that which listens too. Those of the pool can do without replies
// from then on if their mode is exec: it prepares nothing.
func (p *process) warm(tb testing.TB) {
	tb.Helper()
	req := storetest.Request("warm up")
	req.Lost = func(lock.LostReason) {}
	storetest.Release(tb, p, storetest.Acquire(tb, p, req))
	var conns []*pgxpool.Conn
	for range 4 {
		c, err := p.pool.Acquire(storetest.Bounded(tb))
		require.NoError(tb, err)
		conns = append(conns, c)
	}
	for _, c := range conns {
		c.Release()
	}
}

// network is all of a process' ways to servers.
type network []*faultproxy.Proxy

func (n network) all(fault func(*faultproxy.Proxy) func()) func() {
	var heals []func()
	for _, p := range n {
		heals = append(heals, fault(p))
	}
	return func() {
		for _, heal := range heals {
			heal()
		}
	}
}

func (n network) cut() func()         { return n.all((*faultproxy.Proxy).Cut) }
func (n network) freeze() func()      { return n.all((*faultproxy.Proxy).Freeze) }
func (n network) holdReplies() func() { return n.all((*faultproxy.Proxy).HoldReplies) }

// deafen drops notifications, which are messages of type A.
func (n network) deafen() func() {
	return n.all(func(p *faultproxy.Proxy) func() {
		return p.Drop(faultproxy.Replies().Matching(func(chunk []byte) bool { return chunk[0] == 'A' })).Heal
	})
}

func (n network) sever() {
	for _, p := range n {
		p.Break()
	}
}

// escape is for values of parameters.
func escape(s string) string { return url.PathEscape(s) }

// stateOf is the SQLSTATE of an error of the server, else "".
func stateOf(err error) string {
	var e *pgconn.PgError
	if errors.As(err, &e) {
		return e.Code
	}
	return ""
}

func isStale(err error) bool { return errors.Is(err, lock.ErrStale) }
