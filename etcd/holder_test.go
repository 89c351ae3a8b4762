package etcd_test

import (
	"context"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/etcd"
	"github.com/seed-215fdefa/lock/internal/storetest"
	"github.com/seed-215fdefa/lock/internal/testserver"
)

// openHolder opens what a process of its own has, which is killed or stopped: args are the
// prefix and the members' addresses.
func openHolder(args []string) (lock.Locker, storetest.Resource, error) {
	cli, err := connect(args[1:]...)
	if err != nil {
		return nil, storetest.Resource{}, err
	}
	return etcd.New(cli, etcd.WithPrefix(args[0])), resource(cli, args[0]), nil
}

func resource(cli *clientv3.Client, prefix string) storetest.Resource {
	fence, key := etcd.NewFence(cli), prefix+"stock"
	return storetest.Resource{
		Read: func(ctx context.Context, token lock.Token) (string, error) {
			v, _, err := fence.Get(ctx, key, token)
			return v, err
		},
		Write: func(ctx context.Context, token lock.Token, value string) error {
			return fence.Put(ctx, key, token, value)
		},
	}
}

// TestKilledHolder: see storetest.
func TestKilledHolder(t *testing.T) {
	t.Parallel()
	server, prefix := testserver.SharedEtcd(t), testserver.Prefix()
	storetest.KilledHolder(t, open(t, server, prefix, etcd.Stable), 6*time.Second, prefix, server.Addr())
}

// TestStoppedHolder: the write of a process that was stopped for longer than its lease.
func TestStoppedHolder(t *testing.T) {
	t.Parallel()
	server, prefix := testserver.SharedEtcd(t), testserver.Prefix()
	r := resource(plain(t, server.Addr()), prefix)
	storetest.StoppedHolder(t, open(t, server, prefix), r, 6*time.Second, prefix, server.Addr())
}
