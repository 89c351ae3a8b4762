package redlock_test

import (
	"context"
	"testing"
	"time"

	goredis "github.com/redis/go-redis/v9"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/internal/storetest"
	"github.com/seed-215fdefa/lock/redlock"
)

// openHolder opens what a process of its own has, which is killed or stopped: args are the
// prefix and the nodes' addresses.
func openHolder(args []string) (lock.Locker, storetest.Resource, error) {
	var nodes []goredis.UniversalClient
	for _, addr := range args[1:] {
		nodes = append(nodes, goredis.NewClient(&goredis.Options{Addr: addr}))
	}
	return redlock.New(nodes, redlock.WithPrefix(args[0]), redlock.WithTimeout(5*time.Second)), resource(nodes[0], args[0]), nil
}

// resource is on a server that happens to be a node.
func resource(rdb goredis.UniversalClient, prefix string) storetest.Resource {
	fence, key := redlock.NewFence(rdb), prefix+"stock"
	return storetest.Resource{
		Read: func(ctx context.Context, token lock.Token) (string, error) { return fence.Get(ctx, key, token) },
		Write: func(ctx context.Context, token lock.Token, value string) error {
			return fence.Set(ctx, key, token, value, 0)
		},
	}
}

// holderArgs are those of a process in w.
func (w world) holderArgs() []string {
	args := []string{w.prefix}
	for _, s := range w.servers {
		args = append(args, s.Addr())
	}
	return args
}

// TestKilledHolder: a first try gets what a killed process held.
func TestKilledHolder(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	storetest.KilledHolder(t, w.open(t), 5*time.Second, w.holderArgs()...)
}

// TestStoppedHolder: the write of a process that was stopped for longer than its lease.
func TestStoppedHolder(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	storetest.StoppedHolder(t, w.open(t), resource(w.plain[0], w.prefix), 5*time.Second, w.holderArgs()...)
}

// TestBrokenConnections: no call fails since a connection did.
func TestBrokenConnections(t *testing.T) {
	t.Parallel()
	p := sharedWorld(t).open(t)
	storetest.BrokenConnections(t, p, func() {
		for _, n := range p.nets {
			n.sever()
			n.heal()
		}
	})
}
