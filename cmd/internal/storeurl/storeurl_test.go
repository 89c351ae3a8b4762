package storeurl

import (
	"context"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/contrib/grpclock"
	"github.com/seed-215fdefa/lock/contrib/grpclock/lockv1"
	"github.com/seed-215fdefa/lock/httplock"
	"github.com/seed-215fdefa/lock/internal/testserver"
	"github.com/seed-215fdefa/lock/memory"
)

// TestStores locks on a real server by each scheme that has one.
func TestStores(t *testing.T) {
	redis := testserver.Redis(t).Addr()
	pgHost, pgPort, err := net.SplitHostPort(testserver.SharedPostgres(t).Addr())
	require.NoError(t, err)
	for _, c := range []struct{ scheme, url string }{
		{"memory", "memory:"},
		{"memory", "memory"},
		{"memory", "memory://"},
		{"http", "http://:secret@" + service(t)},
		{"grpc", "grpc://:secret@" + overGRPC(t)},
		{"redis", "redis://" + redis + "/1?prefix=mine:"},
		{"redlock", "redlock://" + redis + "," + testserver.Redis(t).Addr() + "," + testserver.Redis(t).Addr()},
		{"etcd", "etcd://" + testserver.Etcd(t).Addr()},
		{"postgres", testserver.PostgresURL(testserver.Postgres(t).Addr()) + "&schema=by_url"},
		{"postgres without a host", "postgres:///postgres?user=postgres&sslmode=disable&schema=by_param&host=" + pgHost + "&port=" + pgPort},
		{"zookeeper", "zookeeper://" + testserver.ZooKeeper(t).Addr() + "/by/url?session=6s"},
	} {
		t.Run(c.scheme, func(t *testing.T) {
			ctx := t.Context()
			s, err := Open(ctx, c.url)
			require.NoError(t, err)
			if s.Migrate != nil {
				require.NoError(t, s.Migrate(ctx))
			}
			client := lock.New(s)
			require.NoError(t, client.Do(ctx, "key", func(context.Context, *lock.Lease) error {
				for r, err := range client.List(ctx, "k") {
					assert.NoError(t, err)
					assert.Equal(t, "key", r.Key)
				}
				return nil
			}))
			require.NoError(t, client.Close(ctx))
			require.NoError(t, s.Close())
		})
	}
}

// TestCloseKeepsGrants: what is held over ZooKeeper, where a session keeps it, is held after Close.
func TestCloseKeepsGrants(t *testing.T) {
	url := "zookeeper://" + testserver.SharedZooKeeper(t).Addr() + "/kept?session=40s"
	closed, other := open(t, url), open(t, url)
	request := func(owner string) lock.Request { return lock.Request{Key: "key", Owner: owner, TTL: 20 * time.Second} }
	_, err := closed.Acquire(t.Context(), request("holder"))
	require.NoError(t, err)
	require.NoError(t, closed.Close())
	_, err = other.Acquire(t.Context(), request("other"))
	require.ErrorIs(t, err, lock.ErrHeld)
	require.NoError(t, other.Close())
}

func open(t *testing.T, url string) *Store {
	t.Helper()
	s, err := Open(t.Context(), url)
	require.NoError(t, err)
	return s
}

// service starts a lock service that wants a token, below a path.
func service(t *testing.T) string {
	store := memory.New()
	h := httplock.NewHandler(store, httplock.WithAuthorization(func(r *http.Request, _ httplock.Action, _ string) error {
		if r.Header.Get("Authorization") != "Bearer secret" {
			return httplock.ErrUnauthenticated
		}
		return nil
	}))
	s := httptest.NewServer(http.StripPrefix("/locks", h))
	t.Cleanup(func() { s.Close(); h.Close(); _ = store.Close() })
	return s.Listener.Addr().String() + "/locks"
}

// overGRPC starts a lock service over gRPC that wants a token.
func overGRPC(t *testing.T) string {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	store := memory.New()
	locks := grpclock.NewServer(store, grpclock.WithAuthorization(func(ctx context.Context, _ grpclock.Action, _ string) error {
		if md, _ := metadata.FromIncomingContext(ctx); !slices.Equal(md.Get("authorization"), []string{"Bearer secret"}) {
			return grpclock.ErrUnauthenticated
		}
		return nil
	}))
	server := grpc.NewServer(grpclock.ServerOptions()...)
	lockv1.RegisterLockServiceServer(server, locks)
	go func() { _ = server.Serve(listener) }()
	t.Cleanup(func() { server.Stop(); locks.Close(); _ = store.Close() })
	return listener.Addr().String()
}

func TestBadURLs(t *testing.T) {
	for url, says := range map[string]string{
		"":                                     "unknown scheme",
		"localhost:6379":                       `unknown scheme "localhost"`,
		"memory:x":                             "takes no address",
		"geheim@host:6379":                     `unknown scheme "…"`,
		"memory://u:geheim@host":               "takes no address",
		"redis://u:ge/geheim@host/0":           "percent-encoded",
		"redis://u:geheim?geheim@host":         "percent-encoded",
		"redis://u:geheim#geheim@host":         "percent-encoded",
		"redis://u:a@geheim/geheim@host":       "percent-encoded",
		"postgres://u:geheim/a@host/db":        "percent-encoded",
		"postgres://u:geheim?a@host/db":        "percent-encoded",
		"postgres://u:geheim#a@host/db":        "percent-encoded",
		"postgres://u:geheim#a@host/db?x=1":    "percent-encoded",
		"grpc://geheim@host:1":                 "grpc://:token@host:port",
		"grpcs://:geheim@host:1/path":          "grpcs://:token@host:port",
		"https://geheim@host":                  "https://:token@host",
		"https://:geheim@a,b":                  "https://:token@host",
		"https://:geheim@a?x=1":                "has no parameters",
		"redis:host":                           "must be followed by //",
		"redis://":                             "empty host",
		"redis://a,b":                          "several hosts",
		"redis://u:geheim@a/x":                 `database "x"`,
		"redis://u:geheim@a?db=-1":             `database "-1"`,
		"redis://u:%zz@a":                      "percent-encoded",
		"redis://a?pool=3":                     `no parameter "pool"`,
		"redis://a?db=1&db=2":                  "appears 2 times",
		"redis+sentinel://a":                   "name of the master",
		"redis+cluster://a?tls=yes":            "true or false",
		"redlock://a,,c":                       "empty host",
		"zookeeper://a?session=often":          "must be a duration",
		"dynamodb://a,b":                       "dynamodb://table",
		"postgres://u:geheim@a:port/b?x=%zz":   "malformed",
		"postgres://u:geheim@host:notaport/db": "port",
	} {
		_, err := Open(t.Context(), url)
		if assert.ErrorContains(t, err, says, url) {
			assert.NotContains(t, err.Error(), "geheim", url)
		}
	}
}

// TestOutages: a server that is not there is no wrong URL, whatever a client asks it when it is made.
func TestOutages(t *testing.T) {
	for _, url := range []string{"etcd://u:geheim@127.0.0.1:1", "zookeeper://u:geheim@127.0.0.1:1"} {
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		_, err := Open(ctx, url)
		cancel()
		require.ErrorIs(t, err, lock.ErrUnavailable, url)
		assert.NotContains(t, err.Error(), "geheim")
	}
	s, err := Open(t.Context(), "zookeeper://no.such.host.invalid")
	require.NoError(t, err, "the name may be known later")
	assert.NoError(t, s.Close())
}

func TestAddresses(t *testing.T) {
	at, err := parse("etcd://u%40v:p%3A%2F@a,b:1,[::1],[::2]:3")
	require.NoError(t, err)
	assert.Equal(t, []string{"a:2379", "b:1", "[::1]:2379", "[::2]:3"}, at.addresses("2379"))
	assert.Equal(t, "u@v", at.user)
	assert.Equal(t, "p:/", at.password)
}

func TestMain(m *testing.M) { os.Exit(testserver.Main{M: m}.Run()) }
