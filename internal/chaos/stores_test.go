//go:build linux

package chaos

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"slices"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"
	"github.com/go-zookeeper/zk"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	goredis "github.com/redis/go-redis/v9"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/dynamo"
	"github.com/seed-215fdefa/lock/etcd"
	"github.com/seed-215fdefa/lock/internal/testserver"
	"github.com/seed-215fdefa/lock/postgres"
	"github.com/seed-215fdefa/lock/redis"
	"github.com/seed-215fdefa/lock/redlock"
	"github.com/seed-215fdefa/lock/zookeeper"
)

const (
	place         = "chaos" // prefix, schema, table or root, by store
	redlockMaxTTL = 3 * time.Second
	etcdMaxTTL    = 4 * time.Second
	zkSession     = 3 * time.Second
	zkTick        = 200 * time.Millisecond // as testserver configures it
)

// connection is a Locker of this process, and what it stands on.
type connection struct {
	locker lock.Locker
	// The register behind the store's own fence.
	get func(ctx context.Context, key string, token lock.Token) (string, error)
	set func(ctx context.Context, key string, token lock.Token, value string) error
	// raw lists what the store keeps; nil where that is not known.
	raw   func(ctx context.Context) ([]string, error)
	close []func()
}

func (c *connection) shut() {
	for _, f := range c.close {
		f()
	}
}

type dialFunc = func(ctx context.Context, network, addr string) (net.Conn, error)

// dial goes to a server by this process's way, if it has one.
func (s spec) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	if way := s.Ways[addr]; way != "" {
		addr = way
	}
	d := net.Dialer{Timeout: 2 * time.Second}
	return d.DialContext(ctx, network, addr)
}

// open connects to the servers of s.
func open(s spec) (*connection, error) {
	c, err := map[string]func(spec) (*connection, error){
		"memory": func(s spec) (*connection, error) {
			m := &memoryClient{dial: s.dial, addr: s.Servers[0]}
			return &connection{locker: m, get: m.get, set: m.set}, nil
		},
		"redis": openRedis, "redis-sentinel": openRedis, "redis-cluster": openRedis,
		"redlock": openRedlock, "etcd": openEtcd, "postgres": openPostgres, "zookeeper": openZooKeeper, "dynamo": openDynamo,
	}[s.Store](s)
	if err != nil {
		return nil, err
	}
	if l, ok := c.locker.(io.Closer); ok {
		c.close = append([]func(){func() { _ = l.Close() }}, c.close...)
	}
	return c, nil
}

type silent struct{}

func (silent) Printf(context.Context, string, ...any) {}

func openRedis(s spec) (*connection, error) {
	goredis.SetLogger(silent{})
	var rdb goredis.UniversalClient
	switch s.Store {
	case "redis-sentinel":
		rdb = goredis.NewFailoverClient(&goredis.FailoverOptions{MasterName: s.Master, SentinelAddrs: s.Sentinels, Dialer: s.dial})
	case "redis-cluster":
		rdb = goredis.NewClusterClient(&goredis.ClusterOptions{Addrs: s.Servers, Dialer: s.dial})
	default:
		rdb = goredis.NewClient(&goredis.Options{Addr: s.Servers[0], Dialer: s.dial})
	}
	c := &connection{locker: redis.New(rdb, redis.WithPrefix(place+":")), close: []func(){func() { _ = rdb.Close() }}}
	c.raw = func(ctx context.Context) ([]string, error) { return redisKeys(ctx, rdb) }
	c.fenceByRedis(s)
	return c, nil
}

func redisKeys(ctx context.Context, rdb goredis.UniversalClient) ([]string, error) {
	cluster, ok := rdb.(*goredis.ClusterClient)
	if !ok {
		return rdb.Keys(ctx, "*").Result()
	}
	var all []string
	err := cluster.ForEachMaster(ctx, func(ctx context.Context, node *goredis.Client) error {
		names, err := node.Keys(ctx, "*").Result()
		all = append(all, names...)
		return err
	})
	return all, err
}

// fenceByRedis has the register on a Redis that keeps what it has.
func (c *connection) fenceByRedis(s spec) {
	rdb := goredis.NewClient(&goredis.Options{Addr: s.Fence, Dialer: s.dial})
	f := redis.NewFence(rdb)
	c.close = append(c.close, func() { _ = rdb.Close() })
	c.get = func(ctx context.Context, key string, token lock.Token) (string, error) {
		v, err := f.Get(ctx, key, token)
		if errors.Is(err, goredis.Nil) {
			err = nil
		}
		return v, err
	}
	c.set = func(ctx context.Context, key string, token lock.Token, value string) error {
		return f.Set(ctx, key, token, value, 0)
	}
}

func openRedlock(s spec) (*connection, error) {
	goredis.SetLogger(silent{})
	c := &connection{}
	var nodes []goredis.UniversalClient
	for _, addr := range s.Servers {
		rdb := goredis.NewClient(&goredis.Options{Addr: addr, Dialer: s.dial})
		nodes = append(nodes, rdb)
		c.close = append(c.close, func() { _ = rdb.Close() })
	}
	c.locker = redlock.New(nodes, redlock.WithPrefix(place+":"), redlock.WithMaxTTL(redlockMaxTTL))
	c.raw = func(ctx context.Context) (all []string, err error) {
		for i, rdb := range nodes {
			names, err := redisKeys(ctx, rdb)
			if err != nil {
				return nil, err
			}
			for _, n := range names {
				all = append(all, fmt.Sprintf("node %d: %s", i, n))
			}
		}
		return all, nil
	}
	c.fenceByRedis(s)
	return c, nil
}

func openEtcd(s spec) (*connection, error) {
	cli, err := clientv3.New(clientv3.Config{
		Endpoints: s.Servers, DialTimeout: 5 * time.Second, Logger: zap.NewNop(),
		DialKeepAliveTime: 10 * time.Second, DialKeepAliveTimeout: 3 * time.Second,
		DialOptions: []grpc.DialOption{grpc.WithContextDialer(func(ctx context.Context, addr string) (net.Conn, error) {
			return s.dial(ctx, "tcp", addr)
		})},
	})
	if err != nil {
		return nil, err
	}
	f := etcd.NewFence(cli)
	return &connection{
		locker: etcd.New(cli, etcd.WithPrefix(place+"/"), etcd.WithMaxTTL(etcdMaxTTL)),
		get: func(ctx context.Context, key string, token lock.Token) (string, error) {
			v, _, err := f.Get(ctx, "register/"+key, token)
			return v, err
		},
		set: func(ctx context.Context, key string, token lock.Token, value string) error {
			return f.Put(ctx, "register/"+key, token, value)
		},
		raw: func(ctx context.Context) ([]string, error) {
			resp, err := cli.Get(ctx, place, clientv3.WithPrefix(), clientv3.WithKeysOnly())
			if err != nil {
				return nil, err
			}
			leases, err := cli.Leases(ctx)
			if err != nil {
				return nil, err
			}
			var all []string
			for _, kv := range resp.Kvs {
				all = append(all, string(kv.Key))
			}
			for range leases.Leases {
				all = append(all, "lease")
			}
			return all, nil
		},
		close: []func(){func() { _ = cli.Close() }},
	}, nil
}

func openPostgres(s spec) (*connection, error) {
	config, err := pgxpool.ParseConfig(testserver.PostgresURL(s.Servers[0]) + "&pool_max_conns=8")
	if err != nil {
		return nil, err
	}
	config.ConnConfig.DialFunc = s.dial
	pool, err := pgxpool.NewWithConfig(context.Background(), config)
	if err != nil {
		return nil, err
	}
	c := &connection{locker: postgres.New(pool, postgres.WithSchema(place)), close: []func(){pool.Close}}
	fenced := func(ctx context.Context, key string, token lock.Token, step func(pgx.Tx) error) error {
		return pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
			if err := postgres.Fence(ctx, tx, key, token, postgres.WithSchema(place)); err != nil {
				return err
			}
			return step(tx)
		})
	}
	c.get = func(ctx context.Context, key string, token lock.Token) (v string, err error) {
		err = fenced(ctx, key, token, func(tx pgx.Tx) error {
			return tx.QueryRow(ctx, "SELECT coalesce((SELECT value FROM register WHERE key = $1), '')", key).Scan(&v)
		})
		return v, err
	}
	c.set = func(ctx context.Context, key string, token lock.Token, value string) error {
		return fenced(ctx, key, token, func(tx pgx.Tx) error {
			_, err := tx.Exec(ctx, "INSERT INTO register VALUES ($1, $2) ON CONFLICT (key) DO UPDATE SET value = $2", key, value)
			return err
		})
	}
	c.raw = func(ctx context.Context) ([]string, error) { return postgresRows(ctx, pool) }
	return c, nil
}

// postgresRows has the table of each row, whatever the store's tables are.
func postgresRows(ctx context.Context, pool *pgxpool.Pool) (all []string, err error) {
	rows, _ := pool.Query(ctx, "SELECT tablename FROM pg_tables WHERE schemaname = $1", place)
	tables, err := pgx.CollectRows(rows, pgx.RowTo[string])
	for _, t := range tables {
		rows, _ := pool.Query(ctx, "SELECT $1 FROM "+pgx.Identifier{place, t}.Sanitize(), t)
		names, err := pgx.CollectRows(rows, pgx.RowTo[string])
		if err != nil {
			return nil, err
		}
		all = append(all, names...)
	}
	return all, err
}

type silentZK struct{}

func (silentZK) Printf(string, ...any) {}

func openZooKeeper(s spec) (*connection, error) {
	d := zookeeper.NewDialer(zkSession, func(network, addr string, _ time.Duration) (net.Conn, error) {
		return s.dial(context.Background(), network, addr)
	})
	conn, _, err := zk.Connect(s.Servers, zkSession, zk.WithDialer(d.Dial), zk.WithLogger(silentZK{}), zk.WithLogInfo(false))
	if err != nil {
		return nil, err
	}
	const root = "/" + place
	f := zookeeper.NewFence(conn, zookeeper.WithRoot(root+"-marks"))
	return &connection{
		locker: zookeeper.New(conn, zookeeper.WithRoot(root), zookeeper.WithTick(zkTick), zookeeper.WithDialer(d)),
		get: func(ctx context.Context, key string, token lock.Token) (string, error) {
			data, _, err := f.Get(ctx, key, token, "/register/"+key)
			return string(data), err
		},
		set: func(ctx context.Context, key string, token lock.Token, value string) error {
			_, err := f.Multi(ctx, key, token, &zk.SetDataRequest{Path: "/register/" + key, Data: []byte(value), Version: -1})
			return err
		},
		raw:   func(context.Context) ([]string, error) { return zkNodes(conn, root) },
		close: []func(){conn.Close},
	}, nil
}

func zkNodes(conn *zk.Conn, path string) ([]string, error) {
	names, stat, err := conn.Children(path)
	if err != nil {
		return nil, err
	}
	all := []string{path}
	if stat.EphemeralOwner != 0 {
		all[0] += ", ephemeral"
	}
	for _, n := range names {
		below, err := zkNodes(conn, path+"/"+n)
		if err != nil && !errors.Is(err, zk.ErrNoNode) {
			return nil, err
		}
		all = append(all, below...)
	}
	return all, nil
}

func dynamoClient(s spec) (*dynamodb.Client, func()) {
	rt := &http.Transport{DialContext: s.dial, MaxIdleConnsPerHost: 100}
	return dynamodb.New(dynamodb.Options{
		Region:       "eu-central-1",
		BaseEndpoint: aws.String("http://" + s.Servers[0]),
		Credentials:  credentials.NewStaticCredentialsProvider("test", "test", ""),
		HTTPClient:   &http.Client{Transport: rt},
	}), rt.CloseIdleConnections
}

func openDynamo(s spec) (*connection, error) {
	db, shut := dynamoClient(s)
	f := dynamo.NewFence(db)
	item := func(key string) map[string]types.AttributeValue {
		return map[string]types.AttributeValue{"key": &types.AttributeValueMemberS{Value: key}}
	}
	return &connection{
		locker: dynamo.New(db, place),
		get: func(ctx context.Context, key string, token lock.Token) (string, error) {
			it, err := f.Get(ctx, token, "register", item(key))
			if v, ok := it["value"].(*types.AttributeValueMemberS); ok {
				return v.Value, err
			}
			return "", err
		},
		set: func(ctx context.Context, key string, token lock.Token, value string) error {
			_, err := f.Update(ctx, token, &dynamodb.UpdateItemInput{
				TableName: aws.String("register"), Key: item(key), UpdateExpression: aws.String("SET #v = :v"),
				ExpressionAttributeNames:  map[string]string{"#v": "value"},
				ExpressionAttributeValues: map[string]types.AttributeValue{":v": &types.AttributeValueMemberS{Value: value}},
			})
			return err
		},
		raw: func(ctx context.Context) ([]string, error) {
			out, err := db.Scan(ctx, &dynamodb.ScanInput{TableName: aws.String(place), ConsistentRead: aws.Bool(true)})
			if err != nil {
				return nil, err
			}
			var all []string
			for _, it := range out.Items {
				all = append(all, fmt.Sprint(slices.Sorted(maps.Keys(it))))
			}
			return all, nil
		},
		close: []func(){shut},
	}, nil
}
