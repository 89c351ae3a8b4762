package redis_test

import (
	"context"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	goredis "github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/redis"
)

func undo(tb testing.TB, l lock.Locker, req lock.Request) {
	tb.Helper()
	release(tb, l, lock.Grant{Key: req.Key, Owner: req.Owner})
}

// TestUndoRefusesLateRequest: an undo has overtaken its own request, which must not have
// any effect then: neither a grant, nor a place in line.
func TestUndoRefusesLateRequest(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	l, other := w.open(t), w.open(t)
	ctx := bounded(t)
	both(t, func(t *testing.T, mode func(lock.Request) lock.Request) {
		free, taken := strings.ReplaceAll(t.Name(), "/", " "), "taken "+strings.ReplaceAll(t.Name(), "/", " ")
		holder := acquire(t, other, request(taken))
		for _, key := range []string{free, taken} {
			for _, wait := range []bool{false, true} {
				late := mode(request(key))
				late.Wait = wait
				undo(t, l, late)
				_, err := l.Acquire(ctx, late)
				require.ErrorIs(t, err, lock.ErrReleased)
				require.NotErrorIs(t, err, lock.ErrHeld)
				_, err = other.Acquire(ctx, late) // however it comes
				require.ErrorIs(t, err, lock.ErrReleased)
			}
			rec := inspect(t, l, key)
			require.Empty(t, rec.Waiters)
		}
		require.Empty(t, inspect(t, l, free).Holders)
		holds(t, l, holder)
		require.Greater(t, acquire(t, l, mode(request(free))).Token, lock.Token(0), "others are not refused")
	})
}

// TestUndoMarkSurvives: grants and releases of others do not take the mark away.
func TestUndoMarkSurvives(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	l := w.open(t)
	both(t, func(t *testing.T, mode func(lock.Request) lock.Request) {
		key := strings.ReplaceAll(t.Name(), "/", " ")
		late := mode(request(key))
		undo(t, l, late)
		for range 3 {
			for _, req := range []lock.Request{request(key), shared(request(key))} {
				g := acquire(t, l, req)
				next := waits(t, l, request(key))
				renew(t, l, g)
				release(t, l, g)
				release(t, l, next.granted())
			}
		}
		for _, l := range []*process{w.open(t), l} { // one that has never heard of the key
			_, err := l.Acquire(bounded(t), late)
			require.ErrorIs(t, err, lock.ErrReleased)
		}
	})
}

// TestUndoEndsItAll: a grant, a hand-over and a place in line; who is behind moves up.
func TestUndoEndsItAll(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	a, b := w.open(t), w.open(t)
	both(t, func(t *testing.T, mode func(lock.Request) lock.Request) {
		key := strings.ReplaceAll(t.Name(), "/", " ")
		g := acquire(t, a, mode(request(key)))
		first, second, third := waits(t, b, request(key)), waits(t, a, mode(request(key))), waits(t, b, request(key))
		first.undo()
		undo(t, a, lock.Request{Key: key, Owner: g.Owner})
		_, err := a.Renew(bounded(t), g)
		require.ErrorIs(t, err, lock.ErrLost)
		h := second.granted()
		third.still()
		undo(t, b, lock.Request{Key: key, Owner: h.Owner})
		release(t, b, third.granted())
		require.Empty(t, inspect(t, a, key).Holders)
	})
}

// TestNothingStays: each key that a lock ever writes has a TTL at any time, so that in the
// end, which is soon, nothing is left of it.
func TestNothingStays(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	l, other := w.open(t), w.open(t)
	ctx := bounded(t)
	const longest = 10 * time.Minute // the counter's
	steps := 0
	ephemeral := func() {
		t.Helper()
		steps++
		for _, name := range names(t, w.rdb, w.prefix) {
			left, err := w.rdb.PTTL(ctx, name).Result()
			require.NoError(t, err)
			if left == -2 {
				continue // it has ended since
			}
			require.Positive(t, left, "step %d: %s stays for ever", steps, name)
			require.LessOrEqual(t, left, longest, "step %d: %s", steps, name)
		}
	}
	both(t, func(t *testing.T, mode func(lock.Request) lock.Request) {
		key := strings.ReplaceAll(t.Name(), "/", " ")
		g := acquire(t, l, mode(request(key)))
		ephemeral()
		g = renew(t, l, g)
		ephemeral()
		refused(t, other, request(key))
		near, far := waits(t, l, request(key)), waits(t, other, request(key))
		ephemeral()
		release(t, l, g)
		h := near.granted()
		ephemeral()
		require.NoError(t, other.ForceRelease(ctx, key, h.Owner))
		ephemeral()
		undo(t, l, lock.Request{Key: key, Owner: far.granted().Owner})
		ephemeral()
		undo(t, l, request(key))
		ephemeral()
	})
	acquire(t, l, request("line"))
	waits(t, l, shared(request("line")))
	waits(t, other, request("line"))
	ephemeral()
	for _, part := range []string{"line", "waiters", "writers"} {
		require.NoError(t, w.rdb.Del(ctx, keysOf(w.prefix, "line")[part]).Err())
		waits(t, other, request("line"))
		ephemeral()
	}
	require.NotEmpty(t, names(t, w.rdb, w.prefix))
	require.NotZero(t, steps)
}

// TestUndoOfLostReply: the grant has been made, the reply does not come, the caller gives
// up and undoes; then nobody holds the lock.
func TestUndoOfLostReply(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	preload(t, w.server)
	other := w.open(t)
	both(t, func(t *testing.T, mode func(lock.Request) lock.Request) {
		l := w.open(t)
		key := strings.ReplaceAll(t.Name(), "/", " ")
		inspect(t, l, key) // it is connected
		heal := l.net.set(&l.net.mute)
		ctx, cancel := context.WithCancel(context.Background())
		defer cancel()
		req := mode(request(key))
		ended := make(chan error, 1)
		go func() { _, err := l.Acquire(ctx, req); ended <- err }()
		eventually(t, "the grant", func() bool { return len(inspect(t, other, key).Holders) == 1 })
		cancel()
		require.Error(t, <-ended)
		heal()
		undo(t, l, req)
		require.Empty(t, inspect(t, other, key).Holders)
		acquire(t, other, request(key))
	})
}

// refusing is a hook that has the server refuse one command to come.
type refusing struct{ after atomic.Int32 } // so many others; negative: none

type refusal string

func (r refusal) Error() string { return string(r) }
func (r refusal) RedisError()   {}

func (r *refusing) DialHook(next goredis.DialHook) goredis.DialHook { return next }

func (r *refusing) ProcessHook(next goredis.ProcessHook) goredis.ProcessHook {
	return func(ctx context.Context, cmd goredis.Cmder) error {
		if r.after.Add(-1) == -1 {
			cmd.SetErr(refusal("ERR refused by the test"))
			return cmd.Err()
		}
		return next(ctx, cmd)
	}
}

func (r *refusing) ProcessPipelineHook(next goredis.ProcessPipelineHook) goredis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []goredis.Cmder) error {
		if r.after.Add(-int32(len(cmds))) == -1 {
			cmds[len(cmds)-1].SetErr(refusal("ERR refused by the test"))
			return cmds[len(cmds)-1].Err()
		}
		return next(ctx, cmds)
	}
}

// TestReleaseAgainAfterFailedUndo: a release has ended the grant, and failed to leave the mark
// that refuses the owner's late first request. Called again it leaves it.
func TestReleaseAgainAfterFailedUndo(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	preload(t, w.server)
	hook := new(refusing)
	hook.after.Store(-1)
	rdb := goredis.NewClient(&goredis.Options{Addr: w.server.Addr()})
	t.Cleanup(func() { _ = rdb.Close() })
	rdb.AddHook(hook)
	l := redis.New(rdb, redis.WithPrefix(w.prefix))
	t.Cleanup(func() { require.NoError(t, l.Close()) })
	req := request("k")
	g := acquire(t, l, req)
	l.Doubt(g.Owner)
	hook.after.Store(1)
	require.ErrorContains(t, l.Release(bounded(t), g), "refused by the test")
	require.Empty(t, inspect(t, l, "k").Holders)
	require.ErrorIs(t, l.Release(bounded(t), g), lock.ErrLost)
	_, err := w.open(t).Acquire(bounded(t), req)
	require.ErrorIs(t, err, lock.ErrReleased)
}
