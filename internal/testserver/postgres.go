package testserver

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
)

// postgresPlaces is where Debian, Red Hat's kin and Homebrew put the server's programs,
// which are on no user's PATH.
var postgresPlaces = []string{
	"/usr/lib/postgresql/*/bin", "/usr/pgsql-*/bin", "/opt/homebrew/opt/postgresql@*/bin",
}

var postgresKind = &kind{
	name:    "postgres",
	image:   "postgres:17-bookworm",
	program: "postgres",
	install: "postgresql, version 15 or newer",
	places:  postgresPlaces,
	ready:   postgresReady,
}

var pgbouncerKind = &kind{
	name:    "pgbouncer",
	image:   "edoburu/pgbouncer:v1.24.1-p1",
	program: "pgbouncer",
	install: "pgbouncer",
	ready:   postgresReady,
}

// Postgres gives the test a PostgreSQL server of its own, with fsync as the server has it
// by default. args are as on the command line of postgres, "-c", "fsync=off" say.
//
// If LOCK_TEST_POSTGRES_ADDR is set, that server is returned, and a test with args is
// skipped. It must let the user postgres in without a password.
func Postgres(tb testing.TB, args ...string) *Server {
	tb.Helper()
	if s := postgresFromEnv(tb, args); s != nil {
		return s
	}
	return postgres(tb, args...)
}

// SharedPostgres returns the one server that all tests of this process share, running and
// not frozen. A test works in a schema of its own. [Main] ends it.
func SharedPostgres(tb testing.TB) *Server {
	tb.Helper()
	if s := postgresFromEnv(tb, nil); s != nil {
		return s
	}
	return launchShared(tb, postgresKind, 1, func(ports []int) []string { return postgresCommand(ports[0], "") })
}

// PostgresURL is how a client connects to the PostgreSQL server, or PgBouncer, at addr.
func PostgresURL(addr string) string {
	return "postgres://postgres@" + addr + "/postgres?sslmode=disable&connect_timeout=10"
}

// PgBouncer gives the test a PgBouncer in transaction mode in front of server. Its server
// connections are few, so that clients take turns on them.
func PgBouncer(tb testing.TB, server *Server) *Server {
	tb.Helper()
	NeedServer(tb)
	host, port := server.hostPort()
	return launch(tb, pgbouncerKind, 1, func(ports []int) []string {
		return []string{"sh", "-c", pgbouncerScript, "pgbouncer", strconv.Itoa(ports[0]), host, port}
	})
}

// PostgresPair is a primary and a standby that follows it by streaming, asynchronously.
type PostgresPair struct {
	Primary, Standby *Server
}

// NewPostgresPair gives the test both. The standby has what the primary had, and takes over
// with [PostgresPair.Promote]. LOCK_TEST_POSTGRES_ADDR has no part in it.
func NewPostgresPair(tb testing.TB) PostgresPair {
	tb.Helper()
	NeedServer(tb)
	primary := postgres(tb)
	standby := launch(tb, postgresKind, 1, func(ports []int) []string {
		return postgresCommand(ports[0], primary.addr)
	})
	p := PostgresPair{primary, standby}
	eventually(tb, startTimeout, "the standby to stream", func() error {
		return p.Primary.postgresTrue("SELECT EXISTS (SELECT FROM pg_stat_replication WHERE state = 'streaming')")
	})
	return p
}

// Promote makes the standby a primary, and returns when it takes writes.
func (p PostgresPair) Promote() {
	p.Standby.tb.Helper()
	if err := p.Standby.postgresTrue("SELECT pg_promote(wait => false)"); err != nil {
		p.Standby.tb.Fatalf("testserver: promoting %s: %v", p.Standby.addr, err)
	}
	eventually(p.Standby.tb, startTimeout, "the new primary", func() error {
		return p.Standby.postgresTrue("SELECT NOT pg_is_in_recovery()")
	})
}

// CatchUp returns when the standby has all that the primary had written at the call.
func (p PostgresPair) CatchUp() {
	p.Primary.tb.Helper()
	var position string
	eventually(p.Primary.tb, startTimeout, "the primary's position", func() (err error) {
		position, err = p.Primary.postgresQuery("SELECT pg_current_wal_flush_lsn()")
		return err
	})
	eventually(p.Primary.tb, startTimeout, "the standby to catch up", func() error {
		return p.Standby.postgresTrue("SELECT pg_last_wal_replay_lsn() >= '" + position + "'")
	})
}

// postgres is Postgres without regard to LOCK_TEST_POSTGRES_ADDR.
func postgres(tb testing.TB, args ...string) *Server {
	tb.Helper()
	return launch(tb, postgresKind, 1, func(ports []int) []string { return postgresCommand(ports[0], "", args...) })
}

func postgresFromEnv(tb testing.TB, args []string) *Server {
	tb.Helper()
	NeedServer(tb)
	addr := os.Getenv("LOCK_TEST_POSTGRES_ADDR")
	switch {
	case addr == "":
		return nil
	case len(args) > 0:
		tb.Skipf("needs a PostgreSQL with %v, but LOCK_TEST_POSTGRES_ADDR names one", args)
	}
	if err := postgresReady(context.Background(), addr); err != nil {
		tb.Fatalf("testserver: LOCK_TEST_POSTGRES_ADDR=%s: %v", addr, err)
	}
	return &Server{tb: tb, addr: addr}
}

// postgresScript makes a database, or a copy of the primary at $2, in the working folder
// when there is none, and becomes the server on port $1. Both refuse to run as root, and a
// change of user clears the signal that ends the server with the test, so setpriv sets it
// again. A server that is killed leaves a segment of System V memory, of which a machine
// has few: where that can be done it gets a namespace of its own.
const postgresScript = `set -e
port=$1 primary=$2
shift 2
as= apart=
if [ "$(id -u)" = 0 ]; then
	chown postgres .
	as="setpriv --reuid=postgres --regid=postgres --clear-groups --pdeathsig KILL"
	if unshare --ipc true 2>/dev/null; then apart="unshare --ipc"; fi
fi
if [ -n "$primary" ] && [ ! -s data/PG_VERSION ]; then
	rm -rf data
	$as pg_basebackup --pgdata data --dbname "host=${primary%:*} port=${primary#*:} user=postgres" \
		--checkpoint fast --wal-method stream --write-recovery-conf
elif [ ! -s data/PG_VERSION ]; then
	$as initdb --pgdata data --username postgres --auth trust --encoding UTF8 --locale C.UTF-8 --no-sync >/dev/null
fi
exec $apart $as postgres -D data -p "$port" -c listen_addresses=127.0.0.1 -c unix_socket_directories= "$@"
`

// postgresCommand has room for many clients, and takes what the tests' faults leave
// unfinished for lost sooner than a network would want. After a crash of its own the server
// wants all its files on disk: one at a time that takes half a minute on a busy machine.
func postgresCommand(port int, primary string, args ...string) []string {
	return append([]string{
		"sh", "-c", postgresScript, "postgres", strconv.Itoa(port), primary,
		"-c", "max_connections=400",
		"-c", "recovery_init_sync_method=syncfs",
		"-c", "wal_receiver_timeout=5s",
		"-c", "wal_retrieve_retry_interval=200ms",
		"-c", "log_min_messages=fatal", "-c", "log_min_error_statement=panic",
	}, args...)
}

// pgbouncerScript listens on port $1 in front of the server at $2:$3. auth_type any takes
// every client for the user that the database line names.
const pgbouncerScript = `set -e
dir=$PWD
[ -w . ] || dir=$(mktemp -d) # in a container
cat >"$dir/pgbouncer.ini" <<END
[databases]
* = host=$2 port=$3 user=postgres
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = $1
unix_socket_dir =
auth_type = any
pool_mode = transaction
default_pool_size = 4
max_client_conn = 400
ignore_startup_parameters = extra_float_digits
END
as=
if [ "$(id -u)" = 0 ]; then
	chown -R postgres "$dir"
	as="setpriv --reuid=postgres --regid=postgres --clear-groups --pdeathsig KILL"
fi
exec $as pgbouncer "$dir/pgbouncer.ini"
`

func postgresReady(ctx context.Context, addr string) error {
	_, err := postgresQuery(ctx, addr, "SELECT 1")
	return err
}

// postgresQuery returns the first value of the last statement's result.
func postgresQuery(ctx context.Context, addr, sql string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	conn, err := pgconn.Connect(ctx, PostgresURL(addr))
	if err != nil {
		return "", err
	}
	defer func() { _ = conn.Close(ctx) }()
	results, err := conn.Exec(ctx, sql).ReadAll()
	if err != nil {
		return "", err
	}
	if len(results) == 0 || len(results[len(results)-1].Rows) == 0 {
		return "", fmt.Errorf("%s: no row", sql)
	}
	return string(results[len(results)-1].Rows[0][0]), nil
}

func (s *Server) postgresQuery(sql string) (string, error) {
	return postgresQuery(context.Background(), s.addr, sql)
}

func (s *Server) postgresTrue(sql string) error {
	value, err := s.postgresQuery(sql)
	if err != nil {
		return err
	}
	if !strings.HasPrefix(value, "t") {
		return fmt.Errorf("%s is %q", sql, value)
	}
	return nil
}
