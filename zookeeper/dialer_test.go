package zookeeper_test

import (
	"context"
	"errors"
	"net"
	"testing"
	"time"

	"github.com/go-zookeeper/zk"
	"github.com/stretchr/testify/require"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/internal/storetest"
	"github.com/seed-215fdefa/lock/zookeeper"
)

// TestDialer: a server that takes connections and never answers, or not to the end, does not keep the
// client from the next one for longer than a part of the session timeout. If none ever answers, the
// handshakes, which keep the session alive, become rarer than that takes to expire.
func TestDialer(t *testing.T) {
	t.Parallel()
	for name, answer := range map[string][]byte{"none": nil, "the length of one": {0, 0, 0, 37}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			silence, err := net.Listen("tcp", "127.0.0.1:0")
			require.NoError(t, err)
			defer func() { _ = silence.Close() }()
			const timeout = 4 * time.Second // nearly seven of them are longer than Patience
			conn, _, err := zk.Connect([]string{silence.Addr().String()}, timeout, zk.WithLogger(silent{}), zk.WithLogInfo(false),
				zk.WithDialer(zookeeper.NewDialer(timeout, nil).Dial))
			require.NoError(t, err)
			defer conn.Close()
			var at []time.Time
			for range 4 {
				require.NoError(t, silence.(*net.TCPListener).SetDeadline(time.Now().Add(storetest.Patience)))
				c, err := silence.Accept()
				require.NoError(t, err, "it waits for an answer still")
				defer func() { _ = c.Close() }()
				_, _ = c.Write(answer)
				at = append(at, time.Now())
			}
			require.Greater(t, at[3].Sub(at[2]), timeout, "the session never expires")
		})
	}
}

// TestDialerError: what dial returns comes through.
func TestDialerError(t *testing.T) {
	want := errors.New("no")
	d := zookeeper.NewDialer(time.Second, func(string, string, time.Duration) (net.Conn, error) { return nil, want })
	_, err := d.Dial("", "", 0)
	require.Equal(t, want, err)
}

// TestShorterSession: the server grants a session of two minutes at most. Who would take the
// longer one that it has asked for would hold its locks for longer than the server keeps them.
func TestShorterSession(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	const asked, granted = 4 * time.Minute, 2 * time.Minute
	dialer := zookeeper.NewDialer(asked, new(gate).dial)
	conn := dialBy(t, dialer.Dial, asked, w.server.Addr())
	open := func(tick time.Duration) *zookeeper.Locker {
		l := zookeeper.New(conn, zookeeper.WithRoot(w.root), zookeeper.WithTick(tick), zookeeper.WithDialer(dialer))
		t.Cleanup(func() { require.NoError(t, l.Close()) })
		return l
	}
	l := open(tick)
	const most = granted*2/3 - tick
	require.Equal(t, most, l.MaxTTL())
	req := storetest.Request("k")
	g := storetest.Acquire(t, l, storetest.Lasting(req, asked))
	require.Equal(t, most, g.TTL)
	g.TTL = asked
	require.Equal(t, most, storetest.Renew(t, l, g).TTL)
	storetest.Release(t, l, g)

	// A waiter is granted what the session leaves by then.
	g = storetest.Acquire(t, l, storetest.Request("k"))
	waiting := storetest.Waits(t, l, storetest.Lasting(storetest.Request("k"), asked))
	dialer.SetGranted(granted / 2)
	storetest.Release(t, l, g)
	g = waiting.Granted(t)
	require.Equal(t, granted/2*2/3-tick, g.TTL)
	storetest.Release(t, l, g)
	dialer.SetGranted(granted)

	// A tick that would leave a TTL of the session that was asked for leaves none of this.
	_, err := open(granted*2/3).Acquire(storetest.Bounded(t), storetest.Request("k"))
	require.ErrorContains(t, err, "session timeout of 2m0s")
	storetest.Eventually(t, "its node to go", func() bool { return len(names(t, conn, w.root+"/k")) == 0 })

	// Nor does a server with another limit, which the client has come to since.
	g = storetest.Acquire(t, l, storetest.Request("k"))
	dialer.SetGranted(tick)
	_, err = l.Renew(storetest.Bounded(t), g)
	require.ErrorContains(t, err, "session timeout of 200ms")
	storetest.Release(t, l, g)
}

// TestDialerOfAnother: a Dialer that zk.Connect was not given knows nothing of the session. Who
// believed it would hold its locks for longer than the server keeps them.
func TestDialerOfAnother(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	dialer := zookeeper.NewDialer(40*time.Second, nil)
	for _, use := range []func(){
		func() {},
		func() { dialBy(t, dialer.Dial, long, w.server.Addr()) }, // another connection's
	} {
		use()
		p := w.open(t, zookeeper.WithDialer(dialer))
		_, err := p.Acquire(storetest.Bounded(t), storetest.Request("k"))
		require.ErrorIs(t, err, lock.ErrInvalid)
		require.ErrorContains(t, err, "zk.WithDialer")
		require.Empty(t, names(t, p.conn, w.root+"/k"))
	}
}

// TestDriftBeyondTheSession: a session of 10 s leaves a TTL below a drift of 7 s, whatever TTL is
// asked for. That is an error, not a lease that is lost as soon as it is granted.
func TestDriftBeyondTheSession(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	w.timeout = 10 * time.Second
	p := w.open(t)
	c := lock.New(p, lock.WithTTL(30*time.Second), lock.WithDrift(7*time.Second))
	called := false
	err := c.Do(storetest.Bounded(t), "k", func(context.Context, *lock.Lease) error {
		called = true
		return nil
	})
	require.ErrorIs(t, err, lock.ErrInvalid)
	require.False(t, called)
	require.NoError(t, c.Close(storetest.Bounded(t)))
	storetest.Eventually(t, "its node to go", func() bool { return len(names(t, p.conn, w.root+"/k")) == 0 })
}
