package storeurl

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/go-zookeeper/zk"
	"github.com/jackc/pgx/v5/pgxpool"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/contrib/grpclock"
	"github.com/seed-215fdefa/lock/dynamo"
	"github.com/seed-215fdefa/lock/etcd"
	"github.com/seed-215fdefa/lock/httplock"
	"github.com/seed-215fdefa/lock/postgres"
	"github.com/seed-215fdefa/lock/zookeeper"
)

func openEtcd(ctx context.Context, at *location) (*Store, error) {
	life, end := context.WithCancel(context.Background())
	cfg := clientv3.Config{
		Context: life, DialTimeout: lock.Patience, // with a password New asks the server, and waits for it
		Username: at.user, Password: at.password,
		DialKeepAliveTime: 10 * time.Second, DialKeepAliveTimeout: 3 * time.Second,
		Logger: zap.NewNop(), // the errors are returned too
	}
	scheme := "http://"
	if at.scheme == "etcds" {
		cfg.TLS, scheme = &tls.Config{MinVersion: tls.VersionTLS12}, "https://"
	}
	for _, a := range at.addresses("2379") {
		cfg.Endpoints = append(cfg.Endpoints, scheme+a)
	}
	stop := context.AfterFunc(ctx, end)
	cli, err := clientv3.New(cfg)
	stop()
	if err != nil {
		end()
		if at.user != "" && !errors.Is(err, rpctypes.ErrAuthFailed) {
			err = fmt.Errorf("%w: %w", lock.ErrUnavailable, err)
		}
		return nil, err
	}
	var opts []etcd.Option
	if p, ok := at.params["prefix"]; ok {
		opts = append(opts, etcd.WithPrefix(p))
	}
	l := etcd.New(cli, opts...)
	s := &Store{Locker: l}
	s.closes(cli.Close)
	s.closes(l.Close)
	return s, nil
}

func openPostgres(ctx context.Context, at *location) (*Store, error) {
	opts, rest, err := postgresOptions(at.raw)
	if err != nil {
		return nil, err
	}
	cfg, err := pgxpool.ParseConfig(rest)
	if err != nil {
		return nil, err // pgx leaves the password out
	}
	pool, err := pgxpool.NewWithConfig(ctx, cfg)
	if err != nil {
		return nil, err
	}
	l := postgres.New(pool, opts...)
	s := &Store{Locker: l, Migrate: func(ctx context.Context) error { return postgres.Migrate(ctx, pool, opts...) }}
	s.closes(func() error { pool.Close(); return nil })
	s.closes(l.Close)
	return s, nil
}

// postgresOptions takes our parameters out of a URL, and leaves pgx its own.
func postgresOptions(raw string) (opts []postgres.Option, rest string, err error) {
	before, query, _ := strings.Cut(raw, "?")
	values, err := url.ParseQuery(query)
	if err != nil {
		return nil, "", fmt.Errorf("malformed parameters")
	}
	for name, option := range map[string]func(string) postgres.Option{
		"schema": postgres.WithSchema, "table": postgres.WithTable,
	} {
		if values.Has(name) {
			opts = append(opts, option(values.Get(name)))
			values.Del(name)
		}
	}
	if len(values) == 0 {
		return opts, before, nil
	}
	return opts, before + "?" + values.Encode(), nil
}

func openZooKeeper(_ context.Context, at *location) (*Store, error) {
	session := 10 * time.Second
	if v := at.params["session"]; v != "" {
		d, err := time.ParseDuration(v)
		if err != nil || d <= 0 {
			return nil, fmt.Errorf("session=%q: must be a duration such as 10s", v)
		}
		session = d
	}
	dialer := zookeeper.NewDialer(session, nil)
	conn, _, err := zk.Connect(at.addresses("2181"), session, zk.WithLogInfo(false), zk.WithLogger(silent{}), zk.WithDialer(dialer.Dial), zk.WithHostProvider(new(names)))
	if err != nil {
		return nil, err
	}
	if at.user != "" {
		if err := conn.AddAuth("digest", []byte(at.user+":"+at.password)); err != nil {
			conn.Close()
			return nil, fmt.Errorf("%w: %w", lock.ErrUnavailable, err)
		}
	}
	opts := []zookeeper.Option{zookeeper.WithDialer(dialer)}
	if at.path != "" {
		opts = append(opts, zookeeper.WithRoot("/"+at.path))
	}
	l := zookeeper.New(conn, opts...)
	s := &Store{Locker: l}
	// The connection stays: Close of zk.Conn ends the session, and the server then deletes at once what
	// holders count on, such as those of a lockd that stops. When the process has ended, the session
	// expires, which is later than any TTL.
	s.closes(l.Close)
	return s, nil
}

// names are ZooKeeper servers whose names each dial looks up: zk's own provider does so once, and
// knows no server that has moved. It is a zk.HostProvider.
type names struct {
	mu       sync.Mutex // guards the rest
	servers  []string
	at, last int // the current one, and the last that was connected
}

func (n *names) Init(servers []string) error {
	n.servers = slices.Clone(servers)
	rand.Shuffle(len(servers), func(i, j int) { n.servers[i], n.servers[j] = n.servers[j], n.servers[i] })
	n.at, n.last = -1, -1
	return nil
}

func (n *names) Len() int { return len(n.servers) }

func (n *names) Next() (server string, around bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.at = (n.at + 1) % len(n.servers)
	around = n.at == n.last
	n.last = max(n.last, 0)
	return n.servers[n.at], around
}

func (n *names) Connected() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.last = n.at
}

// silent is a zk.Logger for commands, whose calls return the errors.
type silent struct{}

func (silent) Printf(string, ...any) {}

func openDynamo(ctx context.Context, at *location) (*Store, error) {
	if at.path != "" || len(at.hosts) != 1 {
		return nil, fmt.Errorf("must be dynamodb://table")
	}
	var load []func(*config.LoadOptions) error
	if r := at.params["region"]; r != "" {
		load = append(load, config.WithRegion(r))
	}
	cfg, err := config.LoadDefaultConfig(ctx, load...)
	if err != nil {
		return nil, err
	}
	client := dynamodb.NewFromConfig(cfg, func(o *dynamodb.Options) {
		if e := at.params["endpoint"]; e != "" {
			o.BaseEndpoint = aws.String(e)
		}
	})
	var opts []dynamo.Option
	if p, ok := at.params["prefix"]; ok {
		opts = append(opts, dynamo.WithPrefix(p))
	}
	l := dynamo.New(client, at.hosts[0], opts...)
	s := &Store{Locker: l, Migrate: func(ctx context.Context) error { return dynamo.CreateTable(ctx, client, at.hosts[0]) }}
	s.closes(l.Close)
	return s, nil
}

func openService(_ context.Context, at *location) (*Store, error) {
	if len(at.hosts) > 1 || at.user != "" {
		return nil, fmt.Errorf("must be %s://host or %s://:token@host", at.scheme, at.scheme)
	}
	var opts []httplock.Option
	if at.password != "" {
		opts = append(opts, httplock.WithBearerToken(at.password))
	}
	l := httplock.New(at.String()+"/"+at.path, opts...)
	s := &Store{Locker: l}
	s.closes(l.Close)
	return s, nil
}

func openGRPC(_ context.Context, at *location) (*Store, error) {
	if len(at.hosts) > 1 || at.user != "" || at.path != "" {
		return nil, fmt.Errorf("must be %s://host:port or %s://:token@host:port", at.scheme, at.scheme)
	}
	creds := insecure.NewCredentials()
	if at.scheme == "grpcs" {
		creds = credentials.NewTLS(&tls.Config{MinVersion: tls.VersionTLS12})
	}
	conn, err := grpc.NewClient("dns:///"+at.addresses("8081")[0], append(grpclock.DialOptions(), grpc.WithTransportCredentials(creds))...)
	if err != nil {
		return nil, err
	}
	var opts []grpclock.Option
	if at.password != "" {
		opts = append(opts, grpclock.WithBearerToken(at.password))
	}
	l := grpclock.New(conn, opts...)
	s := &Store{Locker: l}
	s.closes(conn.Close)
	s.closes(l.Close)
	return s, nil
}
