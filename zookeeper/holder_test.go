package zookeeper_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/go-zookeeper/zk"
	"github.com/stretchr/testify/require"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/internal/storetest"
	"github.com/seed-215fdefa/lock/zookeeper"
)

const holderTimeout = 10 * time.Second

// openHolder opens what a process of its own has, which is killed or stopped: args are the
// address and the root.
func openHolder(args []string) (lock.Locker, storetest.Resource, error) {
	conn, _, err := zk.Connect(args[:1], holderTimeout, zk.WithLogger(silent{}), zk.WithLogInfo(false))
	if err != nil {
		return nil, storetest.Resource{}, err
	}
	l := zookeeper.New(conn, zookeeper.WithRoot(args[1]), zookeeper.WithTick(tick), zookeeper.WithSessionTimeout(holderTimeout))
	return l, resource(conn, args[1]), nil
}

func resource(conn *zk.Conn, root string) storetest.Resource {
	fence, stock := zookeeper.NewFence(conn, zookeeper.WithRoot(root+"/marks")), root+"/stock"
	return storetest.Resource{
		Read: func(ctx context.Context, token lock.Token) (string, error) {
			data, _, err := fence.Get(ctx, "stock", token, stock)
			return string(data), err
		},
		Write: func(ctx context.Context, token lock.Token, value string) error {
			for { // it may be done twice, so it is repeated where its outcome is unknown
				_, err := fence.Multi(ctx, "stock", token, &zk.SetDataRequest{Path: stock, Data: []byte(value), Version: -1})
				if !errors.Is(err, zk.ErrConnectionClosed) {
					return err
				}
			}
		},
	}
}

// TestKilledHolder kills a process with its session.
func TestKilledHolder(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	w.timeout = holderTimeout
	storetest.KilledHolder(t, w.open(t), 6*time.Second, w.server.Addr(), w.root)
}

// TestStoppedHolder: the write of a process that was stopped for longer than its session
// timeout comes by way of its next session.
func TestStoppedHolder(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	rival := w.lasting().open(t)
	_, err := rival.conn.Create(w.root+"/stock", nil, 0, zk.WorldACL(zk.PermAll))
	require.NoError(t, err)
	storetest.StoppedHolder(t, rival, resource(rival.conn, w.root), 6*time.Second, w.server.Addr(), w.root)
}
