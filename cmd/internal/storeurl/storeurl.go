// Package storeurl opens a store of locks by its URL, for commands.
//
//	memory:                                        this process only; memory and memory:// too
//	redis://user:password@host:6379/0              a single server; rediss:// with TLS
//	redis+sentinel://host:26379,host:26379/master  the master that sentinels name
//	redis+cluster://host:6379,host:6379            a Redis Cluster
//	redlock://host:6379,host:6379,host:6379        a quorum of independent servers
//	etcd://user:password@host:2379,host:2379       etcds:// with TLS
//	postgres://user:password@host:5432/database    all that pgx understands
//	zookeeper://host:2181,host:2181/root           the root node, /lock if it is left out
//	dynamodb://table                               region and credentials as the AWS SDK finds them
//	https://:token@host/path                       a lockd; the bearer token and the path may be missing
//	grpcs://:token@host:8081                       a lockd over gRPC; grpc:// without TLS
//
// Parameters, each behind "?" or "&", are those of the store: prefix for all but memory, postgres,
// zookeeper and lockd; db and tls=true for the Redis kinds; schema and table for postgres; session for
// zookeeper, such as 10s; region and endpoint for dynamodb. An unknown one is an error, and so
// is a name that appears twice.
package storeurl

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strings"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/memory"
)

// Help lists the URLs, for the usage of a command.
const Help = `Store URLs:

  memory:                                        this process only
  redis://user:password@host:6379/0              rediss:// with TLS
  redis+sentinel://host:26379,host:26379/master  ?tls=true with TLS, as the next two
  redis+cluster://host:6379,host:6379
  redlock://host:6379,host:6379,host:6379        independent servers, three or more
  etcd://user:password@host:2379,host:2379       etcds:// with TLS
  postgres://user:password@host:5432/database    with pgx' parameters, and schema=, table=
  zookeeper://host:2181,host:2181/root           session=10s; user:password for digest
  dynamodb://table                               region=, endpoint=
  https://:token@host/path                       a lockd; http:// without TLS
  grpcs://:token@host:8081                       a lockd over gRPC; grpc:// without TLS

prefix= sets what keys begin with in the store, for all but memory, postgres, zookeeper and lockd.
`

// Store is an open store.
type Store struct {
	lock.Locker

	// Migrate makes what the store needs to be there: tables, functions. It is nil where
	// nothing is needed.
	Migrate func(context.Context) error

	closers []func() error
}

// Unwrap returns the store itself, for [lock.As].
func (s *Store) Unwrap() lock.Locker { return s.Locker }

// Close closes the store and its connections, except that to ZooKeeper, which lasts as long as the
// process: grants remain until their TTL expires. It returns the first error.
func (s *Store) Close() error {
	var first error
	for _, f := range slices.Backward(s.closers) {
		if err := f(); err != nil && first == nil {
			first = err
		}
	}
	return first
}

func (s *Store) closes(f func() error) { s.closers = append(s.closers, f) }

// openers are the schemes, each with the parameters that it takes.
var openers = map[string]struct {
	open   func(context.Context, *location) (*Store, error)
	params []string
}{
	"memory":         {openMemory, nil},
	"redis":          {openRedis, []string{"prefix", "db"}},
	"rediss":         {openRedis, []string{"prefix", "db"}},
	"redis+sentinel": {openSentinel, []string{"prefix", "db", "tls"}},
	"redis+cluster":  {openCluster, []string{"prefix", "tls"}},
	"redlock":        {openRedlock, []string{"prefix", "db", "tls"}},
	"etcd":           {openEtcd, []string{"prefix"}},
	"etcds":          {openEtcd, []string{"prefix"}},
	"postgres":       {openPostgres, nil}, // pgx knows its own
	"postgresql":     {openPostgres, nil},
	"zookeeper":      {openZooKeeper, []string{"session"}},
	"dynamodb":       {openDynamo, []string{"prefix", "region", "endpoint"}},
	"http":           {openService, nil},
	"https":          {openService, nil},
	"grpc":           {openGRPC, nil},
	"grpcs":          {openGRPC, nil},
}

// location is a parsed URL. url.URL takes no list of hosts with ports.
type location struct {
	raw      string
	scheme   string
	user     string
	password string
	hosts    []string // host:port, at least one where the scheme has hosts
	path     string   // without the leading slash
	params   map[string]string
}

// Open opens the store at rawURL. It asks no server, so one that cannot be reached is told by the
// first call, except that etcd and ZooKeeper check a password: then Open waits for them, [lock.Patience]
// or until ctx ends, and fails with lock.ErrUnavailable. Any other error names what is wrong with the
// URL. None shows a password.
func Open(ctx context.Context, rawURL string) (*Store, error) {
	at, err := parse(rawURL)
	if err != nil {
		return nil, err
	}
	s, err := openers[at.scheme].open(ctx, at)
	if err != nil {
		return nil, fmt.Errorf("store %s: %w", at, err)
	}
	return s, nil
}

func parse(raw string) (*location, error) {
	scheme, rest, ok := strings.Cut(raw, ":")
	kind, known := openers[scheme]
	if !known || !ok && scheme != "memory" {
		if strings.ContainsFunc(scheme, func(r rune) bool { return r != '+' && (r < 'a' || r > 'z') }) {
			scheme = "…" // it may be part of a password
		}
		return nil, fmt.Errorf("store URL: unknown scheme %q: want one of %s", scheme, strings.Join(slices.Sorted(maps.Keys(openers)), ", "))
	}
	at := &location{raw: raw, scheme: scheme, params: map[string]string{}}
	if scheme == "memory" {
		if rest != "" && rest != "//" {
			return nil, errors.New("store URL: memory: takes no address")
		}
		return at, nil
	}
	rest, ok = strings.CutPrefix(rest, "//")
	if !ok {
		return nil, fmt.Errorf("store URL: %s: must be followed by //", scheme)
	}
	if i := strings.IndexAny(rest, "/?#"); i >= 0 && strings.ContainsAny(rest[i:], "@#") {
		// Whoever has these in a password would find the rest of it in errors that name hosts.
		return nil, fmt.Errorf("store URL: %s: behind the hosts @ and # must be percent-encoded, and in a password / and ? too", scheme)
	}
	rest, query, _ := strings.Cut(rest, "?")
	authority, path, _ := strings.Cut(rest, "/")
	at.path = path
	if i := strings.LastIndexByte(authority, '@'); i >= 0 {
		if err := at.login(authority[:i]); err != nil {
			return nil, err
		}
		authority = authority[i+1:]
	}
	at.hosts = strings.Split(authority, ",")
	if slices.Contains(at.hosts, "") && !strings.HasPrefix(scheme, "postgres") { // which may have them as parameters
		return nil, fmt.Errorf("store URL: %s has an empty host", at)
	}
	return at, at.query(query, kind.params)
}

func (at *location) login(s string) error {
	user, password, _ := strings.Cut(s, ":")
	var err error
	if at.user, err = url.PathUnescape(user); err == nil {
		at.password, err = url.PathUnescape(password)
	}
	if err != nil {
		return fmt.Errorf("store URL: %s: user or password is not percent-encoded", at.scheme)
	}
	return nil
}

func (at *location) query(query string, known []string) error {
	values, err := url.ParseQuery(query)
	if err != nil {
		return fmt.Errorf("store URL: %s has malformed parameters", at)
	}
	if strings.HasPrefix(at.scheme, "postgres") {
		return nil
	}
	for name, v := range values {
		switch {
		case len(known) == 0:
			return fmt.Errorf("store URL: %s has no parameters", at.scheme)
		case !slices.Contains(known, name):
			return fmt.Errorf("store URL: %s has no parameter %q: want one of %s", at.scheme, name, strings.Join(known, ", "))
		case len(v) > 1:
			return fmt.Errorf("store URL: parameter %q appears %d times", name, len(v))
		}
		at.params[name] = v[0]
	}
	return nil
}

// String is the URL without password and parameters.
func (at *location) String() string {
	return at.scheme + "://" + strings.Join(at.hosts, ",")
}

// addresses are the hosts, with port where they have none.
func (at *location) addresses(port string) []string {
	out := make([]string, len(at.hosts))
	for i, h := range at.hosts {
		if out[i] = h; strings.LastIndexByte(h, ':') <= strings.LastIndexByte(h, ']') {
			out[i] = h + ":" + port
		}
	}
	return out
}

func openMemory(context.Context, *location) (*Store, error) {
	l := memory.New()
	s := &Store{Locker: l}
	s.closes(l.Close)
	return s, nil
}
