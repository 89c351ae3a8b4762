package storeurl

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"strconv"

	goredis "github.com/redis/go-redis/v9"

	"github.com/seed-215fdefa/lock/redis"
	"github.com/seed-215fdefa/lock/redlock"
)

func openRedis(_ context.Context, at *location) (*Store, error) {
	if len(at.hosts) > 1 {
		return nil, errors.New("has several hosts: use redis+cluster://, redis+sentinel:// or redlock://")
	}
	opts, err := at.redisOptions(at.scheme == "rediss")
	if err != nil {
		return nil, err
	}
	if at.path != "" && at.params["db"] == "" {
		if opts.DB, err = database(at.path); err != nil {
			return nil, err
		}
	}
	opts.Addrs = at.addresses("6379")
	return overRedis(goredis.NewClient(opts.Simple()), at), nil
}

func openSentinel(_ context.Context, at *location) (*Store, error) {
	if at.path == "" {
		return nil, errors.New("must end with /master, the name of the master")
	}
	opts, err := at.redisOptions(at.params["tls"] == "true")
	if err != nil {
		return nil, err
	}
	opts.Addrs, opts.MasterName = at.addresses("26379"), at.path
	return overRedis(goredis.NewFailoverClient(opts.Failover()), at), nil
}

func openCluster(_ context.Context, at *location) (*Store, error) {
	opts, err := at.redisOptions(at.params["tls"] == "true")
	if err != nil {
		return nil, err
	}
	opts.Addrs = at.addresses("6379")
	return overRedis(goredis.NewClusterClient(opts.Cluster()), at), nil
}

func overRedis(rdb goredis.UniversalClient, at *location) *Store {
	var opts []redis.Option
	if p, ok := at.params["prefix"]; ok {
		opts = append(opts, redis.WithPrefix(p))
	}
	l := redis.New(rdb, opts...)
	s := &Store{Locker: l}
	s.closes(rdb.Close)
	s.closes(l.Close)
	return s
}

func openRedlock(_ context.Context, at *location) (*Store, error) {
	opts, err := at.redisOptions(at.params["tls"] == "true")
	if err != nil {
		return nil, err
	}
	s := new(Store)
	var nodes []goredis.UniversalClient
	for _, addr := range at.addresses("6379") {
		opts.Addrs = []string{addr}
		rdb := goredis.NewClient(opts.Simple())
		nodes = append(nodes, rdb)
		s.closes(rdb.Close)
	}
	var lopts []redlock.Option
	if p, ok := at.params["prefix"]; ok {
		lopts = append(lopts, redlock.WithPrefix(p))
	}
	l := redlock.New(nodes, lopts...)
	s.Locker = l
	s.closes(l.Close)
	return s, nil
}

func (at *location) redisOptions(withTLS bool) (*goredis.UniversalOptions, error) {
	opts := &goredis.UniversalOptions{Username: at.user, Password: at.password}
	if t := at.params["tls"]; t != "" && t != "true" && t != "false" {
		return nil, fmt.Errorf("tls=%q: must be true or false", t)
	}
	if withTLS {
		opts.TLSConfig = &tls.Config{MinVersion: tls.VersionTLS12}
	}
	if db := at.params["db"]; db != "" {
		n, err := database(db)
		if err != nil {
			return nil, err
		}
		opts.DB = n
	}
	return opts, nil
}

func database(s string) (int, error) {
	n, err := strconv.Atoi(s)
	if err != nil || n < 0 {
		return 0, fmt.Errorf("database %q: must be a number", s)
	}
	return n, nil
}
