package bench

import (
	"context"
	"fmt"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-redsync/redsync/v4"
	redsyncredis "github.com/go-redsync/redsync/v4/redis"
	redsyncpool "github.com/go-redsync/redsync/v4/redis/goredis/v9"
	goredis "github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/internal/testserver"
	"github.com/seed-215fdefa/lock/redlock"
)

// redlockOn returns a Client and a redsync on the same five servers, each with connections
// of its own.
func redlockOn(t *testing.T) (*lock.Client, *redsync.Redsync) {
	t.Helper()
	var ours []goredis.UniversalClient
	var theirs []redsyncredis.Pool
	for _, s := range testserver.Redlock(t) {
		options := &goredis.Options{Addr: s.Addr(), PoolSize: 600}
		a, b := goredis.NewClient(options), goredis.NewClient(options)
		t.Cleanup(func() {
			require.NoError(t, a.Close())
			require.NoError(t, b.Close())
		})
		ours, theirs = append(ours, a), append(theirs, redsyncpool.NewPool(b))
	}
	l := redlock.New(ours, redlock.WithTimeout(5*time.Second)) // a machine that measures is busy
	c := lock.New(l)
	t.Cleanup(func() {
		require.NoError(t, c.Close(context.Background()))
		require.NoError(t, l.Close())
	})
	require.NoError(t, c.Err())
	if *full { // tokens take a second round trip in the first two seconds of new servers
		rate(1, 2*time.Second, func(int, int) {
			require.NoError(t, c.Do(context.Background(), "new", func(context.Context, *lock.Lease) error { return nil }))
		})
	}
	return c, redsync.New(theirs...)
}

// TestRedlockUncontended compares Do with redsync, each caller on a key of its own.
func TestRedlockUncontended(t *testing.T) {
	s := scales()
	c, rs := redlockOn(t)
	ctx := context.Background()
	ours := func(caller, _ int) {
		err := c.Do(ctx, "ours:"+strconv.Itoa(caller), func(context.Context, *lock.Lease) error { return nil })
		if err != nil {
			panic(err)
		}
	}
	theirs := func(caller, _ int) {
		m := rs.NewMutex("theirs:"+strconv.Itoa(caller), redsync.WithExpiry(15*time.Second))
		if err := m.LockContext(ctx); err != nil {
			panic(err)
		}
		if ok, err := m.UnlockContext(ctx); err != nil || !ok {
			panic(fmt.Sprint(ok, err))
		}
	}
	out := table{title: "Redlock on five servers, uncontended: acquire and release per second", head: []string{"callers", "`Do`", "redsync", "ratio"}}
	for _, callers := range []int{1, 16, 64} {
		a, b, ratio := pairs(s, callers, ours, theirs)
		out.add(strconv.Itoa(callers), fmt.Sprintf("%.0f", a), fmt.Sprintf("%.0f", b), fmt.Sprintf("%.2f", ratio))
	}
	out.print()
}

// passes counts grants, and those of them that are hand-overs: to another caller than had
// the lock before.
type passes struct {
	grants, handovers atomic.Int64
	last              atomic.Int64 // who had the lock last, plus one
	served            [64]atomic.Int64
}

// granted is called while the lock is held.
func (p *passes) granted(caller int) {
	p.grants.Add(1)
	p.served[caller].Add(1)
	if p.last.Swap(int64(caller)+1) != int64(caller)+1 {
		p.handovers.Add(1)
	}
}

func (p *passes) leastAndMost() string {
	least, most := p.served[0].Load(), int64(0)
	for i := range p.served {
		least, most = min(least, p.served[i].Load()), max(most, p.served[i].Load())
	}
	return fmt.Sprintf("%d, %d", least, most)
}

// TestRedlockContended lets 64 callers fight for one key, by turns with ours and with
// redsync. redsync gives up after some tries, so it is told to go on. Most of its grants are
// one caller's who takes the lock again while the others sleep: so hand-overs are counted
// apart.
func TestRedlockContended(t *testing.T) {
	s := scales()
	c, rs := redlockOn(t)
	var ours, theirs passes
	const rounds = 5
	for range rounds {
		redlockContended(c, &ours, s.contended/rounds)
		redsyncContended(rs, &theirs, s.contended/rounds)
	}
	out := table{title: "Redlock on five servers, 64 callers on one key: per second", head: []string{"what", "`Lock`", "redsync", "ratio"}}
	add := func(what string, a, b *atomic.Int64) {
		x, y := float64(a.Load())/s.contended.Seconds(), float64(b.Load())/s.contended.Seconds()
		out.add(what, fmt.Sprintf("%.0f", x), fmt.Sprintf("%.0f", y), fmt.Sprintf("%.2f", x/y))
	}
	add("grants", &ours.grants, &theirs.grants)
	add("hand-overs to another caller", &ours.handovers, &theirs.handovers)
	out.add("least and most served", ours.leastAndMost(), theirs.leastAndMost(), "")
	out.print()
}

func redlockContended(c *lock.Client, p *passes, d time.Duration) {
	ctx, cancel := context.WithTimeout(context.Background(), d)
	defer cancel()
	rate(len(p.served), d, func(caller, _ int) {
		l, err := c.Lock(ctx, "one")
		if err != nil {
			return // time is over
		}
		p.granted(caller)
		if err := l.Release(context.Background()); err != nil {
			panic(err)
		}
	})
}

func redsyncContended(rs *redsync.Redsync, p *passes, d time.Duration) {
	ctx, cancel := context.WithTimeout(context.Background(), d)
	defer cancel()
	rate(len(p.served), d, func(caller, _ int) {
		m := rs.NewMutex("theirs", redsync.WithExpiry(15*time.Second), redsync.WithTries(1<<30))
		if m.LockContext(ctx) != nil {
			return // time is over
		}
		p.granted(caller)
		if _, err := m.UnlockContext(context.Background()); err != nil {
			panic(err)
		}
	})
}
