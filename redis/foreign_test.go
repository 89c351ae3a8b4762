package redis_test

import (
	"context"
	"errors"
	"testing"
	"time"

	goredis "github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/seed-215fdefa/lock"
)

// strangers are what another program may keep under a lock's keys: a value of each type.
var strangers = map[string]func(ctx context.Context, rdb *goredis.Client, key string) error{
	"string": func(ctx context.Context, rdb *goredis.Client, key string) error {
		return rdb.Set(ctx, key, "not: a: lock", 0).Err()
	},
	"list": func(ctx context.Context, rdb *goredis.Client, key string) error {
		return rdb.RPush(ctx, key, "element").Err()
	},
	"hash": func(ctx context.Context, rdb *goredis.Client, key string) error {
		return rdb.HSet(ctx, key, "field", "value").Err()
	},
	"set": func(ctx context.Context, rdb *goredis.Client, key string) error {
		return rdb.SAdd(ctx, key, "member").Err()
	},
	"zset": func(ctx context.Context, rdb *goredis.Client, key string) error {
		return rdb.ZAdd(ctx, key, goredis.Z{Score: 1e300, Member: "member"}).Err()
	},
	"stream": func(ctx context.Context, rdb *goredis.Client, key string) error {
		return rdb.XAdd(ctx, &goredis.XAddArgs{Stream: key, Values: []string{"f", "v"}}).Err()
	},
}

// own is the type of each of a lock's keys.
var own = map[string]string{
	"record": "", "counter": "", // both are strings, of which foreign ones are told apart
	"readers": "zset", "info": "hash", "line": "zset", "waiters": "hash", "writers": "zset", "undone": "zset",
}

// TestForeignValues: a key of the lock holds what somebody else has put there. It stays,
// whatever is called; what cannot work says which lock's keys are concerned.
func TestForeignValues(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	l := w.open(t)
	ctx := bounded(t)
	for part, mine := range own {
		for kind, put := range strangers {
			if kind == mine {
				continue
			}
			t.Run(part+" is a "+kind, func(t *testing.T) {
				key := part + " " + kind
				name := keysOf(w.prefix, key)[part]
				require.NoError(t, put(ctx, w.rdb, name))
				before := w.rdb.Dump(ctx, name).Val()
				tellsOrWorks(t, l, w, key)
				require.Equal(t, before, w.rdb.Dump(ctx, name).Val(), "it was overwritten")
				require.EqualValues(t, -1, w.rdb.PTTL(ctx, name).Val(), "it was given an end")
			})
		}
	}
}

// tellsOrWorks calls everything on a lock of which some key is a stranger's.
func tellsOrWorks(t *testing.T, l *process, w world, key string) {
	t.Helper()
	name := w.prefix + "{" + key + "}"
	both(t, func(t *testing.T, mode func(lock.Request) lock.Request) {
		tells := func(what string, err error) {
			t.Helper()
			if err != nil {
				require.ErrorContains(t, err, name, what)
				require.NotErrorIs(t, err, lock.ErrHeld, what)
			}
		}
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		req := mode(request(key))
		g, err := l.Acquire(ctx, req)
		tells("Acquire", err)
		if err == nil {
			_, err = l.Renew(ctx, g)
			tells("Renew", err)
			tells("Release", l.Release(ctx, g))
		}
		tells("undo", l.Release(ctx, lock.Grant{Key: key, Owner: req.Owner}))
		wait := mode(request(key))
		wait.Wait, wait.TTL = true, time.Second
		g, err = l.Acquire(ctx, wait)
		tells("Acquire Wait", err)
		if err == nil {
			if err := l.Release(ctx, g); !errors.Is(err, lock.ErrLost) { // on a starved machine its second is over
				tells("Release", err)
			}
		}
		tells("undo", l.Release(ctx, lock.Grant{Key: key, Owner: wait.Owner}))
		_, err = l.Inspect(ctx, key)
		tells("Inspect", err)
		err = l.ForceRelease(ctx, key, "o")
		if !errors.Is(err, lock.ErrLost) { // nil is possible: on a busy machine it may be sent twice
			tells("ForceRelease", err)
		}
	})
}
