package zookeeper_test

import (
	"errors"
	"net"
	"testing"
	"time"

	"github.com/go-zookeeper/zk"
	"github.com/stretchr/testify/require"

	"github.com/seed-215fdefa/lock/internal/storetest"
	"github.com/seed-215fdefa/lock/zookeeper"
)

// TestDialer: a server that takes connections and never answers does not keep the client from
// the next one for longer than a part of the session timeout. If none ever answers, the
// handshakes, which keep the session alive, become rarer than that takes to expire.
func TestDialer(t *testing.T) {
	t.Parallel()
	silence, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer func() { _ = silence.Close() }()
	const timeout = 4 * time.Second // nearly seven of them are longer than Patience
	conn, _, err := zk.Connect([]string{silence.Addr().String()}, timeout, zk.WithLogger(silent{}), zk.WithLogInfo(false),
		zk.WithDialer(zookeeper.Dialer(timeout, nil)))
	require.NoError(t, err)
	defer conn.Close()
	var at []time.Time
	for range 4 {
		require.NoError(t, silence.(*net.TCPListener).SetDeadline(time.Now().Add(storetest.Patience)))
		c, err := silence.Accept()
		require.NoError(t, err, "it waits for an answer still")
		defer func() { _ = c.Close() }()
		at = append(at, time.Now())
	}
	require.Greater(t, at[3].Sub(at[2]), timeout, "the session never expires")
}

// TestDialerError: what dial returns comes through.
func TestDialerError(t *testing.T) {
	want := errors.New("no")
	_, err := zookeeper.Dialer(time.Second, func(string, string, time.Duration) (net.Conn, error) { return nil, want })("", "", 0)
	require.Equal(t, want, err)
}
