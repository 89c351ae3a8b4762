package memory_test

import (
	"context"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/memory"
)

func TestGrantIsAsAsked(t *testing.T) {
	bubble(t, func(t *testing.T, l *memory.Locker) {
		before := time.Now()
		req := request("k")
		g := acquire(t, l, req)
		require.Equal(t, lock.Grant{
			Key: "k", Owner: req.Owner, Token: g.Token, TTL: ttl, Start: before,
		}, g)
		release(t, l, g)
		s := acquire(t, l, request("k", shared))
		require.True(t, s.Shared)
		release(t, l, s)
	})
}

func TestProcessesShareAStore(t *testing.T) {
	bubble(t, func(t *testing.T, l *memory.Locker) {
		g := acquire(t, l, request("k"))
		refused(t, l.Open(), request("k"))
		acquire(t, memory.New(), request("k"))
		// A process may release for another one: the owner decides.
		release(t, l.Open(), g)
	})
}

func TestTokensRise(t *testing.T) {
	bubble(t, func(t *testing.T, l *memory.Locker) {
		last := lock.Token(time.Now().UnixMicro() - 1)
		for _, key := range []string{"a", "b", "a", "c", "a"} {
			g := acquire(t, l, request(key))
			require.Greater(t, g.Token, last)
			last = g.Token
			release(t, l, g)
		}
		time.Sleep(time.Second)
		g := acquire(t, l, request("a"))
		require.EqualValues(t, time.Now().UnixMicro(), g.Token, "the wall clock leads")
		release(t, l, g)
	})
}

func TestTokensSurviveTheStore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := acquire(t, memory.New(), request("k"))
		time.Sleep(time.Microsecond)
		require.Greater(t, acquire(t, memory.New(), request("k")).Token, g.Token)
	})
}

func TestRenewRestartsTTL(t *testing.T) {
	bubble(t, func(t *testing.T, l *memory.Locker) {
		g := acquire(t, l, request("k"))
		for range 5 {
			time.Sleep(ttl - 1)
			r, err := l.Renew(t.Context(), g)
			require.NoError(t, err)
			want := g
			want.Start = time.Now()
			require.Equal(t, want, r)
			g = r
		}
		refused(t, l, request("k"))
		release(t, l, g)
	})
}

// What the store takes a Client takes: its drift leaves something of the shortest TTL.
func TestShortestTTLOfAClient(t *testing.T) {
	bubble(t, func(t *testing.T, l *memory.Locker) {
		c := lock.New(l, lock.WithRenewal(false))
		for _, ttl := range []time.Duration{memory.MinTTL, 2 * memory.MinTTL} {
			lease, err := c.TryLock(t.Context(), "k", lock.WithTTL(ttl))
			require.NoError(t, err, ttl)
			require.NoError(t, lease.Err())
			require.NoError(t, lease.Release(t.Context()))
		}
		require.NoError(t, c.Close(t.Context()))
	})
}

func TestRenewMayChangeTTL(t *testing.T) {
	bubble(t, func(t *testing.T, l *memory.Locker) {
		g := acquire(t, l, request("k"))
		c := start(t.Context(), l, request("k"))
		g.TTL = time.Second
		_, err := l.Renew(t.Context(), g)
		require.NoError(t, err)
		next := grantedAfter(t, time.Second, c)
		next.TTL = memory.MinTTL - 1
		_, err = l.Renew(t.Context(), next)
		require.ErrorIs(t, err, lock.ErrInvalid)
		release(t, l, next)
	})
}

func TestRenewNeverCreates(t *testing.T) {
	bubble(t, func(t *testing.T, l *memory.Locker) {
		g := acquire(t, l, request("k"))
		release(t, l, g)
		_, err := l.Renew(t.Context(), g)
		gone(t, 0, err)
		empty(t, l)

		g = acquire(t, l, request("k"))
		time.Sleep(ttl)
		_, err = l.Renew(t.Context(), g)
		gone(t, lock.ReasonExpired, err)
		empty(t, l)

		other := acquire(t, l, request("k"))
		_, err = l.Renew(t.Context(), g)
		gone(t, lock.ReasonTaken, err)
		release(t, l, other)
	})
}

func TestStaleHandleChangesNothing(t *testing.T) {
	bubble(t, func(t *testing.T, l *memory.Locker) {
		req := request("k")
		stale := acquire(t, l, req)
		time.Sleep(ttl)
		// The same owner again: the token alone tells the two grants apart.
		g := acquire(t, l, req)
		require.Greater(t, g.Token, stale.Token)
		gone(t, lock.ReasonTaken, l.Release(t.Context(), stale))
		_, err := l.Renew(t.Context(), stale)
		gone(t, lock.ReasonTaken, err)
		refused(t, l, request("k"))
		release(t, l, g)
		gone(t, 0, l.Release(t.Context(), g))
	})
}

func TestReleaseAfterExpiryIsALoss(t *testing.T) {
	bubble(t, func(t *testing.T, l *memory.Locker) {
		g := acquire(t, l, request("k", onLost(func(lock.LostReason) {
			t.Error("Lost after the holder's own Release")
		})))
		time.Sleep(ttl)
		gone(t, lock.ReasonExpired, l.Release(t.Context(), g))
		acquire(t, l, request("k", withTTL(time.Second)))
		time.Sleep(time.Second)
		_, err := l.Inspect(t.Context(), "k")
		require.NoError(t, err)
	})
}

func TestOneOwnerOneGrant(t *testing.T) {
	bubble(t, func(t *testing.T, l *memory.Locker) {
		req := request("k")
		g := acquire(t, l, req)
		time.Sleep(ttl - 1)
		again := acquire(t, l, req)
		require.Equal(t, g.Token, again.Token)
		require.Equal(t, time.Now(), again.Start)
		time.Sleep(ttl - 1)
		rec := refused(t, l, request("k"))
		require.Len(t, rec.Holders, 1)

		shared(&req)
		_, err := l.Acquire(t.Context(), req)
		require.ErrorIs(t, err, lock.ErrInvalid)
		release(t, l, again)
	})
}

func TestUndo(t *testing.T) {
	bubble(t, func(t *testing.T, l *memory.Locker) {
		require.NoError(t, l.Release(t.Context(), lock.Grant{Key: "k", Owner: "nobody"}))
		g := acquire(t, l, request("k"))
		require.NoError(t, l.Release(t.Context(), lock.Grant{Key: "k", Owner: "nobody"}))
		refused(t, l, request("k"))
		require.NoError(t, l.Release(t.Context(), lock.Grant{Key: "k", Owner: g.Owner}))
		empty(t, l)
	})
}

func TestClose(t *testing.T) {
	bubble(t, func(t *testing.T, l *memory.Locker) {
		p := l.Open()
		g := acquire(t, p, request("k"))
		c := start(t.Context(), p, request("k"))
		other := start(t.Context(), l, request("k"))
		require.NoError(t, p.Close())
		require.NoError(t, p.Close())
		o := <-c
		require.ErrorIs(t, o.err, lock.ErrClosed)
		require.ErrorIs(t, o.err, lock.ErrHeld)

		_, err := p.Acquire(t.Context(), request("free"))
		require.ErrorIs(t, err, lock.ErrClosed)
		_, err = p.Renew(t.Context(), g)
		require.ErrorIs(t, err, lock.ErrClosed)
		require.ErrorIs(t, p.Release(t.Context(), g), lock.ErrClosed)
		_, err = p.Inspect(t.Context(), "k")
		require.ErrorIs(t, err, lock.ErrClosed)
		require.ErrorIs(t, p.ForceRelease(t.Context(), "k", g.Owner), lock.ErrClosed)
		for _, err := range p.List(t.Context(), "") {
			require.ErrorIs(t, err, lock.ErrClosed)
		}

		pending(t, other)
		time.Sleep(ttl)
		release(t, l, granted(t, other))
	})
}

func TestEndedContext(t *testing.T) {
	bubble(t, func(t *testing.T, l *memory.Locker) {
		g := acquire(t, l, request("k"))
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		_, err := l.Acquire(ctx, request("free"))
		require.ErrorIs(t, err, context.Canceled)
		_, err = l.Acquire(ctx, request("k", waiting))
		require.ErrorIs(t, err, context.Canceled)
		_, err = l.Renew(ctx, g)
		require.ErrorIs(t, err, context.Canceled)
		require.ErrorIs(t, l.Release(ctx, g), context.Canceled)
		_, err = l.Inspect(ctx, "k")
		require.ErrorIs(t, err, context.Canceled)
		require.ErrorIs(t, l.ForceRelease(ctx, "k", g.Owner), context.Canceled)
		n := 0
		for _, err := range l.List(ctx, "") {
			require.ErrorIs(t, err, context.Canceled)
			n++
		}
		require.Equal(t, 1, n, "the error ends the list")
		release(t, l, g)
	})
}

func TestInvalidRequests(t *testing.T) {
	bubble(t, func(t *testing.T, l *memory.Locker) {
		for name, req := range map[string]lock.Request{
			"empty key":     request(""),
			"long key":      request(strings.Repeat("k", lock.MaxKeyLen+1)),
			"key not UTF-8": request("\xff"),
			"no owner":      {Key: "k", TTL: ttl},
			"no TTL":        request("k", withTTL(0)),
			"short TTL":     request("k", withTTL(memory.MinTTL-1)),
		} {
			_, err := l.Acquire(t.Context(), req)
			require.ErrorIs(t, err, lock.ErrInvalid, name)
		}
		_, err := l.Inspect(t.Context(), "")
		require.ErrorIs(t, err, lock.ErrInvalid)
		require.ErrorIs(t, l.ForceRelease(t.Context(), "", "o"), lock.ErrInvalid)
	})
}

func TestLongestTTL(t *testing.T) {
	bubble(t, func(t *testing.T, l *memory.Locker) {
		time.Sleep(time.Hour)
		g := acquire(t, l, request("k", withTTL(lock.MaxTTL)))
		time.Sleep(lock.MaxTTL - time.Nanosecond)
		refused(t, l, request("k"))
		c := start(t.Context(), l, request("k"))
		release(t, l, g)
		release(t, l, granted(t, c))
	})
}

func TestKeysAreOpaque(t *testing.T) {
	bubble(t, func(t *testing.T, l *memory.Locker) {
		keys := []string{
			"/", "//", "{}", "}", "}{", "..", "../k", "\x00", "\x00k", "k", "K", "k ", " k", "*", "%00",
			"\n", "é", "e\u0301", strings.Repeat("x", lock.MaxKeyLen), strings.Repeat("x", lock.MaxKeyLen-1),
		}
		var grants []lock.Grant
		for _, k := range keys {
			grants = append(grants, acquire(t, l, request(k)))
		}
		for i, k := range keys {
			rec := refused(t, l, request(k))
			require.Equal(t, k, rec.Key)
			require.Equal(t, grants[i].Owner, rec.Holders[0].Owner)
			release(t, l, grants[i])
		}
	})
}
