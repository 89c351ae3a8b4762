package servicetest

import (
	"context"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/internal/storetest"
	"github.com/seed-215fdefa/lock/internal/testserver"
	"github.com/seed-215fdefa/lock/locktest/faultproxy"
)

// cutter is a store that breaks a connection between what it does first and the reply to that.
type cutter struct {
	lock.Locker
	once *sync.Once
	cut  func()
}

func (c cutter) Unwrap() lock.Locker { return c.Locker }

func (c cutter) Release(ctx context.Context, g lock.Grant) error {
	defer c.once.Do(c.cut)
	return c.Locker.Release(ctx, g)
}

// LoseReleaseReply loses the reply to a release that has handed over to a waiter. The release is asked
// for again, finds the key taken, and must not take that for a loss.
func (p Protocol) LoseReleaseReply(t *testing.T) {
	for name, on := range map[string]func(testing.TB) *Store{"memory": OnMemory, "redis": OnRedis, "postgres": OnPostgres} {
		t.Run(name, func(t *testing.T) {
			if name != "memory" {
				testserver.NeedServer(t)
			}
			t.Parallel()
			var proxy *faultproxy.Proxy
			st := on(t)
			store := cutter{st.Open(), new(sync.Once), func() { proxy.Break() }}
			s := p.Start(t, func() lock.Locker { return store })
			proxy = faultproxy.New(t, s.Addr)
			holder, waiter := p.Dial(t, proxy.Addr()), p.Dial(t, s.Addr)

			g := storetest.Acquire(t, holder, storetest.Request("k"))
			w := storetest.Begin(t, waiter, storetest.Request("k"))
			storetest.Eventually(t, "the line", func() bool { return storetest.Inspect(t, waiter, "k").WaiterCount == 1 })
			require.NoError(t, holder.Release(storetest.Bounded(t), g))
			<-w.Done
			require.NoError(t, w.Err)
			storetest.Holds(t, waiter, w.Grant)
			require.ErrorIs(t, holder.Release(storetest.Bounded(t), g), lock.ErrLost, "a release that is not in doubt")
		})
	}
}

// KeepForcedReason has a grant forced before it is released, and loses the reply: that is a loss, and
// no doubt about the first release may hide it.
func (p Protocol) KeepForcedReason(t *testing.T) {
	t.Parallel()
	var proxy *faultproxy.Proxy
	store := cutter{OnMemory(t).Open(), new(sync.Once), func() { proxy.Break() }}
	s := p.Start(t, func() lock.Locker { return store })
	proxy = faultproxy.New(t, s.Addr)
	l := p.Dial(t, proxy.Addr())
	g := storetest.Acquire(t, l, storetest.Request("k"))
	require.NoError(t, l.ForceRelease(storetest.Bounded(t), "k", g.Owner))
	require.Equal(t, lock.ReasonForced, storetest.Lost(t, l.Release(storetest.Bounded(t), g)))
}
