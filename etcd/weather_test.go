package etcd_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/etcd"
	"github.com/seed-215fdefa/lock/internal/storetest"
	"github.com/seed-215fdefa/lock/internal/testserver"
)

// beliefs are what holders of one key believe, who must not contradict each other.
type beliefs struct {
	mu      sync.Mutex // guards the rest
	live    map[*belief]struct{}
	any     lock.Token // the greatest that was granted
	alone   lock.Token // the greatest that was granted to one alone
	granted int
	errs    []error
}

// belief is a grant as its holder sees it: it ends with the call of Release, with news of its
// loss, or with its TTL, by the holder's clock.
type belief struct{ g lock.Grant }

func (b *belief) until() time.Time { return b.g.Start.Add(b.g.TTL) }

// hold takes up a grant, new or renewed, unless it is over on arrival.
func (bs *beliefs) hold(b *belief, g lock.Grant) {
	bs.mu.Lock()
	defer bs.mu.Unlock()
	renewed := b.g.Token != 0
	b.g = g
	now := time.Now()
	if !now.Before(b.until()) {
		return
	}
	for x := range bs.live {
		if x != b && now.Before(x.until()) && (!x.g.Shared || !g.Shared) {
			bs.errs = append(bs.errs, fmt.Errorf("%+v (renewed: %v) beside %+v", g, renewed, x.g))
		}
	}
	if !renewed && (g.Token <= bs.alone || !g.Shared && g.Token <= bs.any) {
		bs.errs = append(bs.errs, fmt.Errorf("%+v after tokens %d, and %d of one alone", g, bs.any, bs.alone))
	}
	bs.any = max(bs.any, g.Token)
	if !g.Shared {
		bs.alone = max(bs.alone, g.Token)
	}
	if bs.live[b] = struct{}{}; !renewed {
		bs.granted++
	}
}

func (bs *beliefs) end(b *belief) {
	bs.mu.Lock()
	defer bs.mu.Unlock()
	delete(bs.live, b)
}

// lost notes a loss that was reported. Here only expiry may cause one.
func (bs *beliefs) lost(b *belief, why lock.LostReason) {
	bs.mu.Lock()
	defer bs.mu.Unlock()
	if now := time.Now(); now.Before(b.until()) {
		bs.errs = append(bs.errs, fmt.Errorf("%+v is lost, %v before its end: %v", b.g, b.until().Sub(now), why))
	}
	delete(bs.live, b)
}

// user acquires, holds, and releases, with all the impatience and forgetfulness of a user.
type user struct {
	l   *process
	bs  *beliefs
	key string
	rng *rand.Rand
}

func (u *user) oneIn(n int) bool { return u.rng.IntN(n) == 0 }

func (u *user) upTo(d time.Duration) time.Duration { return time.Duration(u.rng.Int64N(int64(d))) }

func (u *user) turn() {
	b := &belief{}
	req := storetest.Lasting(storetest.Request(u.key), time.Duration(2+u.rng.IntN(2))*time.Second)
	req.Shared, req.Wait = u.oneIn(3), !u.oneIn(4)
	var told sync.Once
	if !u.oneIn(3) {
		req.Lost = func(why lock.LostReason) { told.Do(func() { u.bs.lost(b, why) }) }
	}
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond+u.upTo(3*time.Second))
	g, err := u.l.Acquire(ctx, req)
	cancel()
	switch {
	case err == nil:
		u.bs.hold(b, g)
		u.work(b)
	case req.Wait || !errors.Is(err, lock.ErrHeld) || errors.Is(err, context.DeadlineExceeded):
		_ = u.bounded(func(ctx context.Context) error {
			return u.l.Release(ctx, lock.Grant{Key: req.Key, Owner: req.Owner})
		})
	}
}

func (u *user) bounded(call func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond+u.upTo(time.Second))
	defer cancel()
	return call(ctx)
}

func (u *user) work(b *belief) {
	time.Sleep(u.upTo(30 * time.Millisecond))
	for u.oneIn(2) {
		err := u.bounded(func(ctx context.Context) error {
			g, err := u.l.Renew(ctx, b.g)
			if err == nil {
				u.bs.hold(b, g)
			}
			return err
		})
		if errors.Is(err, lock.ErrLost) {
			u.bs.lost(b, 0)
		}
	}
	g := b.g
	if u.oneIn(40) {
		return // it is left to expire
	}
	u.bs.end(b)
	if u.oneIn(8) { // by an undo
		g = lock.Grant{Key: g.Key, Owner: g.Owner}
	}
	_ = u.bounded(func(ctx context.Context) error { return u.l.Release(ctx, g) })
}

// weather makes faults until stop: requests that are late, replies that are lost, watches that
// are behind, connections that break, etcd leases that are replaced.
func weather(ls []*process, stop <-chan struct{}, rng *rand.Rand) {
	for _, l := range ls {
		rng := rand.New(rand.NewPCG(rng.Uint64(), 2))
		l.kv.set(func(txn) fate { // under a mutex of l's
			f := fate{silent: rng.IntN(2) == 0}
			switch rng.IntN(60) {
			case 0:
				f.late = true
			case 1:
				f.mute = true
			case 2, 3, 4:
				gate := make(chan struct{})
				time.AfterFunc(time.Duration(rng.Int64N(int64(100*time.Millisecond))), func() { close(gate) })
				f.gate = gate
			}
			return f
		})
	}
	dice := rand.New(rand.NewPCG(rng.Uint64(), 1))
	for {
		l := ls[dice.IntN(len(ls))]
		heal := func() {}
		switch dice.IntN(6) {
		case 0:
			heal = l.deaf.delay()
		case 1:
			l.deaf.set(true)
			heal = func() { l.deaf.set(false) }
		case 2:
			l.ForgetLeases()
		case 3:
			l.proxy.Break()
		default:
			l.kv.some()
		}
		select {
		case <-time.After(time.Duration(dice.Int64N(int64(100 * time.Millisecond)))):
			heal()
		case <-stop:
			heal()
			return
		}
	}
}

// TestWeather: whatever gets lost or comes late, holders do not contradict each other, tokens
// rise, no loss is told before its time, and in the end nothing is left.
func TestWeather(t *testing.T) {
	t.Parallel()
	const turns, users = 30, 2
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	server, prefix := testserver.SharedEtcd(t), testserver.Prefix()
	var ls []*process
	keys := make(map[string]*beliefs)
	for range 3 {
		ls = append(ls, open(t, server, prefix, etcd.Stable))
	}
	for _, key := range []string{"a", "b", "c", "d", "e", "f", "g", "h"} {
		keys[key] = &beliefs{live: make(map[*belief]struct{})}
	}
	var wg sync.WaitGroup
	stop, over := make(chan struct{}), make(chan struct{})
	go func() { weather(ls, stop, rand.New(rand.NewPCG(seed, 0))); close(over) }()
	n := uint64(0)
	for _, l := range ls {
		for key, bs := range keys {
			for range users {
				n++
				u := &user{l, bs, key, rand.New(rand.NewPCG(seed, n))}
				wg.Go(func() {
					for range turns {
						u.turn()
					}
				})
			}
		}
	}
	wg.Wait()
	close(stop)
	<-over
	for _, l := range ls {
		l.kv.set(nil)
		l.kv.some()
	}
	for key, bs := range keys {
		require.Empty(t, bs.errs)
		t.Logf("%s: %d grants of %d", key, bs.granted, turns*users*len(ls))
		require.Positive(t, bs.granted)
	}
	cli := plain(t, server.Addr())
	storetest.Eventually(t, "all entries to be gone", func() bool {
		resp, err := cli.Get(storetest.Bounded(t), prefix, clientv3.WithPrefix())
		require.NoError(t, err)
		for _, kv := range resp.Kvs {
			if len(kv.Value) > 0 { // and not a tombstone
				return false
			}
		}
		return true
	})
}

// TestBrokenConnections: no call fails since a connection did.
func TestBrokenConnections(t *testing.T) {
	t.Parallel()
	server := testserver.SharedEtcd(t)
	p := open(t, server, testserver.Prefix())
	storetest.BrokenConnections(t, p, p.proxy.Break)
}
