package bench

import (
	"context"
	"fmt"
	"strconv"
	"testing"
	"time"

	"github.com/bsm/redislock"
	"github.com/go-redsync/redsync/v4"
	"github.com/go-redsync/redsync/v4/redis/goredis/v9"
	"github.com/redis/rueidis"
	"github.com/redis/rueidis/rueidislock"
	"github.com/stretchr/testify/require"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/internal/testserver"
)

// TestRedisPeers compares Do with the locks of other libraries, each caller on a key of its
// own. None of them has a token or a line; rueidislock renews, the others do not.
func TestRedisPeers(t *testing.T) {
	s := scales()
	rdb, c := connect(t)
	ctx := context.Background()
	ours := func(caller, _ int) {
		must(c.Do(ctx, "ours:"+strconv.Itoa(caller), func(context.Context, *lock.Lease) error { return nil }))
	}

	rl, err := rueidislock.NewLocker(rueidislock.LockerOption{
		ClientOption:   rueidis.ClientOption{InitAddress: []string{testserver.Redis(t).Addr()}},
		KeyMajority:    1,
		KeyValidity:    15 * time.Second,
		TryNextAfter:   5 * time.Second, // its limit of an acquire, which 512 callers exceed
		NoLoopTracking: true,
	})
	require.NoError(t, err)
	t.Cleanup(rl.Close)
	bsm := redislock.New(rdb)
	rs := redsync.New(goredis.NewPool(rdb))
	peers := []struct {
		name string
		pair func(caller, n int)
	}{
		{"rueidislock", func(caller, _ int) {
			_, release, err := rl.WithContext(ctx, "rueidis:"+strconv.Itoa(caller))
			must(err)
			release()
		}},
		{"redislock", func(caller, _ int) {
			l, err := bsm.Obtain(ctx, "bsm:"+strconv.Itoa(caller), 15*time.Second, nil)
			must(err)
			must(l.Release(ctx))
		}},
		{"redsync", func(caller, _ int) {
			m := rs.NewMutex("redsync:"+strconv.Itoa(caller), redsync.WithExpiry(15*time.Second))
			must(m.LockContext(ctx))
			_, err := m.UnlockContext(ctx)
			must(err)
		}},
	}
	out := table{title: "Redis, uncontended: `Do` to what other libraries serve per second", head: []string{"callers"}}
	for _, p := range peers {
		out.head = append(out.head, p.name)
	}
	for _, callers := range []int{1, 16, 128, 512} {
		row := []string{strconv.Itoa(callers)}
		for _, p := range peers {
			_, theirs, ratio := pairs(s, callers, ours, p.pair)
			row = append(row, fmt.Sprintf("%.2f (%.0f)", ratio, theirs))
		}
		out.add(row...)
	}
	out.print()
}

func must(err error) {
	if err != nil {
		panic(err)
	}
}
