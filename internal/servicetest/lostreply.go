package servicetest

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/internal/storekit"
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

// lossy is a store of which the first Acquire meets a broken connection, and each later one may be refused.
type lossy struct {
	lock.Locker
	once    *sync.Once
	first   func(acquire func() (lock.Grant, error)) (lock.Grant, error)
	refusal func(owner string) error // of the others; nil: they are granted if they can be
}

func (l lossy) Acquire(ctx context.Context, req lock.Request) (lock.Grant, error) {
	acquire := func() (lock.Grant, error) { return l.Locker.Acquire(context.WithoutCancel(ctx), req) }
	first := false
	l.once.Do(func() { first = true })
	switch {
	case first:
		return l.first(acquire)
	case l.refusal != nil:
		return lock.Grant{}, l.refusal(req.Owner)
	}
	return acquire()
}

// LoseAcquireReply loses the reply to what was granted, by a store that refuses the owner then: one says
// that the key is held, another that an owner may ask once. The caller does not have the lock, and nor has
// anybody else.
func (p Protocol) LoseAcquireReply(t *testing.T) {
	t.Parallel()
	invalid := func(string) error { return lock.ErrInvalid }
	for name, c := range map[string]struct {
		refusal func(owner string) error
		acquire func(*lock.Client, context.Context, string, ...lock.Option) (*lock.Lease, error)
		isHeld  bool
	}{
		"held":               {func(string) error { return &lock.HeldError{} }, (*lock.Client).TryLock, true},
		"held by itself":     {heldBy, (*lock.Client).TryLock, false},
		"invalid":            {invalid, (*lock.Client).TryLock, false},
		"invalid for a wait": {invalid, (*lock.Client).Lock, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var proxy *faultproxy.Proxy
			store := OnMemory(t).Open()
			s := p.Start(t, func() lock.Locker {
				return lossy{store, new(sync.Once), func(acquire func() (lock.Grant, error)) (lock.Grant, error) {
					defer proxy.Break()
					return acquire()
				}, c.refusal}
			})
			proxy = faultproxy.New(t, s.Addr)
			l := lock.New(p.Dial(t, proxy.Addr()))
			_, err := c.acquire(l, storetest.Bounded(t), "k", lock.WithTTL(time.Hour))
			require.Error(t, err)
			require.NotErrorIs(t, err, lock.ErrInvalid)
			require.Equal(t, c.isHeld, errors.Is(err, lock.ErrHeld), "%v", err)
			storetest.Eventually(t, "the undo", func() bool { return storetest.Inspect(t, store, "k").HolderCount == 0 })
			require.NoError(t, l.Close(storetest.Bounded(t)))
		})
	}
}

func heldBy(owner string) error {
	return &lock.HeldError{Record: lock.Record{Key: "k", Holders: []lock.Holder{{Owner: owner, Held: -1, ExpiresIn: -1}}, HolderCount: 1}}
}

// doubting is a store that hears of no try the first time, and whose tombstones refuse an owner.
type doubting struct {
	lock.Locker
	doubts *storekit.Doubts
	undone *sync.Map
}

func (d doubting) Acquire(ctx context.Context, req lock.Request) (lock.Grant, error) {
	if _, undone := d.undone.Load(req.Owner); undone {
		return lock.Grant{}, errors.New("this owner's acquisition has been undone")
	}
	g, err := d.Locker.Acquire(ctx, req)
	if req.Wait {
		return g, err
	}
	return g, d.doubts.Tried(ctx, req, err, true, func(_ context.Context, g lock.Grant) error {
		d.undone.Store(g.Owner, true)
		return nil
	})
}

// DoubtBeforeAWait has the service try for a client before it lets it stand in line, and the store is not
// sure of the try. That must not refuse the client. Who asks for no more than a try is undone.
func (p Protocol) DoubtBeforeAWait(t *testing.T) {
	t.Parallel()
	store := doubting{OnMemory(t).Open(), new(storekit.Doubts), new(sync.Map)}
	s := p.Start(t, func() lock.Locker { return store })
	l := p.Dial(t, s.Addr)
	g := storetest.Acquire(t, store.Locker, storetest.Request("k"))
	w := storetest.Begin(t, l, storetest.Request("k"))
	storetest.Eventually(t, "the line", func() bool { return storetest.Inspect(t, store, "k").WaiterCount == 1 })
	req := storetest.Request("k")
	storetest.Refused(t, l, req)
	_, undone := store.undone.Load(req.Owner)
	require.True(t, undone)
	storetest.Release(t, store, g)
	<-w.Done
	require.NoError(t, w.Err)
	require.True(t, store.doubts.Take(w.Owner), "its release leaves a tombstone")
}

// forgetful is a store that does not grant again what an owner has: it says who holds the key.
type forgetful struct {
	lock.Locker
	once *sync.Once
	lose func()
}

func (f forgetful) Acquire(ctx context.Context, req lock.Request) (lock.Grant, error) {
	rec, err := f.Inspect(ctx, req.Key)
	if err == nil && rec.HolderCount > 0 && rec.Holders[0].Owner == req.Owner {
		if req.Wait { // for itself
			<-ctx.Done()
		}
		return lock.Grant{}, &lock.HeldError{Record: rec}
	}
	defer f.once.Do(f.lose)
	return f.Locker.Acquire(ctx, req)
}

// LoseGrant loses the reply to a grant, and the client asks again, ready to wait. It has the grant: it
// does not wait for itself.
func (p Protocol) LoseGrant(t *testing.T) {
	t.Parallel()
	var proxy *faultproxy.Proxy
	store := forgetful{OnMemory(t).Open(), new(sync.Once), func() { proxy.Break() }}
	s := p.Start(t, func() lock.Locker { return store })
	proxy = faultproxy.New(t, s.Addr)
	l := p.Dial(t, proxy.Addr())
	req := storetest.Request("k")
	req.Wait = true
	g := storetest.Acquire(t, l, req)
	require.Equal(t, req.TTL, g.TTL)
	storetest.Holds(t, store, g)
	storetest.Release(t, l, g)
}

// LateTryOfHeldKey executes a try late, whose copy was refused meanwhile: it is granted to nobody.
func (p Protocol) LateTryOfHeldKey(t *testing.T) {
	t.Parallel()
	var proxy *faultproxy.Proxy
	store, gate, done := OnMemory(t).Open(), make(chan struct{}), make(chan struct{})
	s := p.Start(t, func() lock.Locker {
		return lossy{store, new(sync.Once), func(acquire func() (lock.Grant, error)) (lock.Grant, error) {
			proxy.Break()
			<-gate
			defer close(done)
			return acquire()
		}, nil}
	})
	open := sync.OnceFunc(func() { close(gate) })
	defer open()
	proxy = faultproxy.New(t, s.Addr)
	g := storetest.Acquire(t, store, storetest.Request("k"))
	_, err := p.Dial(t, proxy.Addr()).Acquire(storetest.Bounded(t), storetest.Request("k"))
	require.ErrorIs(t, err, lock.ErrHeld)
	storetest.Release(t, store, g)
	open()
	storetest.Receive(t, done)
	storetest.Eventually(t, "the end of the late grant", func() bool { return storetest.Inspect(t, store, "k").HolderCount == 0 })
}
