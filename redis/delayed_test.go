package redis_test

import (
	"bytes"
	"context"
	"testing"
	"time"

	goredis "github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/internal/storekit"
	"github.com/seed-215fdefa/lock/internal/storetest"
	"github.com/seed-215fdefa/lock/locktest/faultproxy"
	"github.com/seed-215fdefa/lock/redis"
)

// far starts a process behind a proxy.
func (w world) far(tb testing.TB) (*redis.Locker, *faultproxy.Proxy) {
	tb.Helper()
	preload(tb, w.server)
	proxy := faultproxy.New(tb, w.server.Addr())
	rdb := goredis.NewClient(&goredis.Options{Addr: proxy.Addr()})
	l := redis.New(rdb, redis.WithPrefix(w.prefix))
	tb.Cleanup(func() {
		_ = l.Close()
		_ = rdb.Close()
	})
	return l, proxy
}

// TestStartIsBeforeSending has all replies come late: by that much, at least, a Start must
// lie before the grant is known.
func TestStartIsBeforeSending(t *testing.T) {
	t.Parallel()
	const late = 200 * time.Millisecond
	both(t, func(t *testing.T, mode func(lock.Request) lock.Request) {
		t.Parallel()
		w := sharedWorld(t)
		l, proxy := w.far(t)
		other := w.open(t)
		early := func(g lock.Grant) lock.Grant {
			require.GreaterOrEqual(t, time.Since(g.Start), late)
			return g
		}
		release(t, l, acquire(t, l, mode(request("warm"))))
		defer proxy.Delay(faultproxy.Replies(), late).Heal()

		g := early(acquire(t, l, mode(request("k"))))
		g = early(renew(t, l, g))
		release(t, l, g)

		h := acquire(t, other, request("contended"))
		refused(t, l, mode(request("contended")))
		release(t, other, h)
		release(t, l, early(acquire(t, l, mode(request("contended")))))

		first := acquire(t, l, request("handed over"))
		next := waits(t, l, mode(request("handed over")))
		release(t, l, first)
		release(t, l, early(next.granted()))
	})
}

// TestStaleReleaseOfContendedKey: a process that knows that others want the key sends its
// release by the script that hands over.
func TestStaleReleaseOfContendedKey(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	l, other := w.open(t), w.open(t)
	req := request("k")
	req.TTL = 50 * time.Millisecond
	g := acquire(t, l, req)
	var h lock.Grant
	eventually(t, "the key to pass", func() (ok bool) {
		var err error
		h, err = other.Acquire(bounded(t), request("k"))
		return err == nil
	})
	refused(t, l, request("k"))
	require.ErrorIs(t, l.Release(bounded(t), g), lock.ErrLost)
	holds(t, other, h)
}

// TestLateTake: a server that has answered fast does not answer in time. The same Acquire asks again
// by another connection, and has one grant. What comes late, when that is over, has no effect.
func TestLateTake(t *testing.T) {
	t.Parallel()
	w := ownWorld(t)
	other := w.open(t)
	for key, first := range map[string]faultproxy.Messages{
		"late request": faultproxy.Requests().Nth(1), "late reply": faultproxy.Replies().Nth(1),
	} {
		l, proxy := w.far(t)
		inspect(t, l, "warm")
		l.Hasten()
		late := proxy.Hold(first)
		g := acquire(t, l, request(key))
		storetest.Receive(t, late.Hit())
		require.Len(t, inspect(t, other, key).Holders, 1)
		holds(t, other, g)
		release(t, l, g)
		release(t, other, acquire(t, other, request(key)))
		before := calls(t, w.rdb, "evalsha")
		late.Heal()
		if key == "late request" {
			eventually(t, "its execution", func() bool { return calls(t, w.rdb, "evalsha") == before+1 })
		}
		require.Empty(t, inspect(t, other, key).Holders)
	}
}

// TestLateTakeOfHeldKey: a try is sent twice, and its second copy is refused. The first comes when the
// key is free, and has no effect: nobody would give back what it got.
func TestLateTakeOfHeldKey(t *testing.T) {
	t.Parallel()
	both(t, func(t *testing.T, mode func(lock.Request) lock.Request) {
		t.Parallel()
		w := ownWorld(t)
		other := w.open(t)
		l, proxy := w.far(t)
		holder := acquire(t, other, request("k"))
		inspect(t, l, "warm")
		l.Hasten()
		late := proxy.Hold(faultproxy.Requests().Nth(1))
		refused(t, l, mode(request("k")))
		storetest.Receive(t, late.Hit())
		release(t, other, holder)
		before := calls(t, w.rdb, "evalsha")
		late.Heal()
		eventually(t, "its execution", func() bool { return calls(t, w.rdb, "evalsha") == before+1 })
		require.Empty(t, inspect(t, other, "k").Holders)
	})
}

// TestLateTakeBeforeAWait: whoever has sent such a try stands in line as the same owner, as the lock
// service does. The first copy comes when that is over, and has no effect.
func TestLateTakeBeforeAWait(t *testing.T) {
	t.Parallel()
	both(t, func(t *testing.T, mode func(lock.Request) lock.Request) {
		t.Parallel()
		w := ownWorld(t)
		other := w.open(t)
		l, proxy := w.far(t)
		holder := acquire(t, other, request("k"))
		inspect(t, l, "warm")
		l.Hasten()
		late := proxy.Hold(faultproxy.Requests().Nth(1))
		req := mode(request("k"))
		_, err := l.Acquire(storekit.ReuseOwner(bounded(t)), req)
		require.ErrorIs(t, err, lock.ErrHeld)
		storetest.Receive(t, late.Hit())
		next := waits(t, l, req)
		release(t, other, holder)
		release(t, l, next.granted())
		before := calls(t, w.rdb, "evalsha")
		late.Heal()
		eventually(t, "its execution", func() bool { return calls(t, w.rdb, "evalsha") == before+1 })
		require.Empty(t, inspect(t, other, "k").Holders)
	})
}

// TestLateTakeNotUndone: the second copy of a try is refused, and no mark can be left that would refuse
// the first. Then the error does not say that nothing is left to undo.
func TestLateTakeNotUndone(t *testing.T) {
	t.Parallel()
	w := ownWorld(t)
	acquire(t, w.open(t), request("k"))
	for _, cut := range []bool{false, true} {
		l, proxy := w.far(t)
		inspect(t, l, "warm")
		l.Hasten()
		defer proxy.Hold(faultproxy.Requests().Nth(1)).Heal()
		undo := faultproxy.Requests().Matching(func(m []byte) bool { return bytes.Contains(m, []byte(redis.UndoSHA)) })
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		if cut {
			lost := proxy.Lose(undo)
			_, err := l.Acquire(ctx, request("k"))
			require.Error(t, err)
			require.NotErrorIs(t, err, lock.ErrHeld)
			require.NotZero(t, lost.Hits())
			continue
		}
		held := proxy.Hold(undo)
		defer held.Heal() // go-redis cannot close a connection that waits for a reply
		go func() { <-held.Hit(); cancel() }()
		_, err := l.Acquire(ctx, request("k"))
		require.ErrorIs(t, err, lock.ErrHeld)
		require.ErrorIs(t, err, context.Canceled)
	}
}

// TestReaderBehindReaderAndWriter: the key is free, and reserved for a reader who has not
// heard of it. Whoever comes now is behind the writer that follows him.
func TestReaderBehindReaderAndWriter(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	l, deaf, other := w.open(t), w.open(t), w.open(t)
	g := acquire(t, l, request("k"))
	reader := waits(t, deaf, shared(request("k")))
	writer := waits(t, other, request("k"))
	defer deaf.net.set(&deaf.net.deaf)()
	release(t, l, g)
	refused(t, l, shared(request("k")))
	release(t, deaf, reader.granted())
	release(t, other, writer.granted())
}

// TestForcedNoticeAfterRelease: the message that a grant was forced comes when its holder
// has released it.
func TestForcedNoticeAfterRelease(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	l, proxy := w.far(t)
	other := w.open(t)
	told := make(chan string, 2)
	hold := func(key string) lock.Grant {
		req := request(key)
		req.Lost = func(lock.LostReason) { told <- key }
		return acquire(t, l, req)
	}
	first, second := hold("first"), hold("second")
	notices := proxy.Hold(faultproxy.Replies().Matching(func(m []byte) bool { return bytes.Contains(m, []byte("forced ")) }))
	force := func(g lock.Grant) { require.NoError(t, other.ForceRelease(bounded(t), g.Key, g.Owner)) }
	force(first)
	select {
	case <-notices.Hit():
	case <-time.After(patience):
		require.FailNow(t, "no message of a forced release")
	}
	require.ErrorIs(t, l.Release(bounded(t), first), lock.ErrLost)
	force(second)
	notices.Heal()
	select {
	case key := <-told:
		require.Equal(t, "second", key, "the first was released before it was told")
	case <-time.After(patience):
		require.FailNow(t, "no loss is told")
	}
}

// TestResentRequest: the reply is lost, and the request sent again finds its own grant. A copy that
// comes after the release is refused.
func TestResentRequest(t *testing.T) {
	t.Parallel()
	both(t, func(t *testing.T, mode func(lock.Request) lock.Request) {
		t.Parallel()
		w := sharedWorld(t)
		l, proxy := w.far(t)
		other := w.open(t)
		release(t, l, acquire(t, l, mode(request("warm"))))
		proxy.Lose(faultproxy.Replies().Nth(1))
		again := proxy.Hold(faultproxy.Requests().Nth(2))
		req, granted := mode(request("k")), make(chan lock.Grant, 1)
		go func() {
			g, err := l.Acquire(bounded(t), req)
			assert.NoError(t, err)
			granted <- g
		}()
		<-again.Hit()
		made := inspect(t, other, "k").Holders
		require.Len(t, made, 1)
		again.Heal()
		g := <-granted
		require.Equal(t, made[0].Token, g.Token)
		holds(t, other, g)
		release(t, l, g)
		_, err := other.Acquire(bounded(t), req)
		require.ErrorIs(t, err, lock.ErrReleased)
		acquire(t, other, request("k"))
	})
}
