package rediskit

import (
	"context"
	"net"
	"syscall"
	"testing"
	"time"

	goredis "github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/seed-215fdefa/lock/internal/storetest"
	"github.com/seed-215fdefa/lock/internal/testserver"
	"github.com/seed-215fdefa/lock/locktest/faultproxy"
)

func TestMain(m *testing.M) { testserver.VerifyTestMain(m) }

// TestQuick: a call to a fast server is over when it is slow after all, whether its caller makes it or
// a flight does; and none is made to one that is not fast.
func TestQuick(t *testing.T) {
	t.Parallel()
	proxy := faultproxy.New(t, testserver.SharedRedis(t).Addr())
	rdb := goredis.NewClient(&goredis.Options{Addr: proxy.Addr(), ReadTimeout: storetest.Patience})
	defer func() { require.NoError(t, rdb.Close()) }()
	l := NewLane(rdb, rdb)
	ping := []any{"ping"}
	for _, others := range []int{0, maxDirects} {
		l.speed.Store(fastFlights - 1)
		_, sent, err := l.Quick(t.Context(), ping)
		require.ErrorIs(t, err, errSlow)
		require.False(t, sent)

		l.directs = others
		l.Hasten()
		for range 100 { // on a starved machine any one may be late
			var reply any
			if reply, sent, err = l.Quick(t.Context(), ping); err == nil {
				require.Equal(t, "PONG", reply)
				require.True(t, sent)
				break
			}
			l.speed.Store(fastFlights)
		}
		require.NoError(t, err)
		landed(t, l)
		l.Hasten() // a flight that was slow, or late, has made the server a slow one

		held := proxy.Hold(faultproxy.Requests())
		_, sent, err = l.Quick(t.Context(), ping)
		require.True(t, IsTimeout(err) || err == errSlow, "%v", err) //nolint:errorlint // it is not wrapped
		require.True(t, sent)
		require.Less(t, l.speed.Load(), int64(0), "nobody is to wait for the same")

		l.speed.Store(fastFlights)
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		_, sent, err = l.Quick(ctx, ping)
		cancel()
		require.Error(t, err)
		require.True(t, sent || others > 0, "it may not have left yet behind the one that is held")
		held.Heal()
		_, err = l.Do(storetest.Bounded(t), ping, false)
		require.NoError(t, err)
	}
}

// landed waits until no flight is under way.
func landed(tb testing.TB, l *Lane) {
	tb.Helper()
	storetest.Eventually(tb, "the end of all flights", func() bool {
		l.mu.Lock()
		defer l.mu.Unlock()
		return l.flights == 0
	})
}

// TestRefusedLogin: every call of a batch whose connection cannot log in learns why.
func TestRefusedLogin(t *testing.T) {
	t.Parallel()
	server := testserver.Redis(t, "--requirepass", "right")
	rdb := goredis.NewClient(&goredis.Options{Addr: server.Addr(), Password: "wrong"})
	defer func() { require.NoError(t, rdb.Close()) }()
	batch := []*call{{Context: t.Context()}, {Context: t.Context()}}
	for _, c := range batch {
		c.cmd = NewCommand(c, "ping")
	}
	send(rdb, batch)
	for _, c := range batch {
		require.ErrorContains(t, c.cmd.Err(), "WRONGPASS")
	}
}

// TestUnsent: what reaches no server does not make it a fast one, and is not taken for sent.
func TestUnsent(t *testing.T) {
	t.Parallel()
	rdb := goredis.NewClient(&goredis.Options{
		DialerRetries: 1,
		Dialer: func(context.Context, string, string) (net.Conn, error) {
			return nil, &net.OpError{Op: "dial", Err: syscall.ECONNREFUSED}
		},
	})
	defer func() { require.NoError(t, rdb.Close()) }()
	l, ping := NewLane(rdb, rdb), []any{"ping"}
	for range 2 * fastFlights {
		_, err := l.Do(t.Context(), ping, true)
		require.ErrorIs(t, err, syscall.ECONNREFUSED)
	}
	require.False(t, l.fast())
	landed(t, l)

	l.speed.Store(fastFlights)
	_, sent, err := l.Quick(t.Context(), ping)
	require.ErrorIs(t, err, syscall.ECONNREFUSED)
	require.False(t, sent)

	l.flights = maxFlights // none of which comes back
	_, sent, err = l.Quick(t.Context(), ping)
	require.ErrorIs(t, err, errSlow)
	require.False(t, sent)
}
