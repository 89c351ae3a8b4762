package testserver

import (
	"bytes"
	"context"
	"errors"
	"net"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestProxyPasses(t *testing.T) {
	s := Redis(t)
	p := NewProxy(t, s.Addr())
	require.NoError(t, ping(p.Addr()))
}

func TestProxyCut(t *testing.T) {
	s := Redis(t)
	p := NewProxy(t, s.Addr())
	heal := p.Cut()
	require.Error(t, ping(p.Addr()))
	heal()
	require.NoError(t, ping(p.Addr()))
}

// TestProxyFreeze: what was sent meanwhile arrives after the thaw, although nobody waits
// for the answer any more.
func TestProxyFreeze(t *testing.T) {
	s := Redis(t)
	p := NewProxy(t, s.Addr())
	heal := p.Freeze()
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	_, err := respCall(ctx, p.Addr(), "PING")
	require.ErrorIs(t, err, os.ErrDeadlineExceeded)
	heal()
	require.NoError(t, ping(p.Addr()))
}

func TestProxyLoseReplies(t *testing.T) {
	s := Redis(t)
	p := NewProxy(t, s.Addr())
	heal := p.LoseReplies()
	_, err := respCall(t.Context(), p.Addr(), "SET", "k", "v")
	require.Error(t, err)
	eventually(t, startTimeout, "the write", func() error {
		if s.call("GET", "k") != "v" {
			return os.ErrNotExist
		}
		return nil
	})
	heal()
	require.NoError(t, ping(p.Addr()))
}

func TestProxyHoldReplies(t *testing.T) {
	s := Redis(t)
	p := NewProxy(t, s.Addr())
	heal := p.HoldReplies()
	answered := make(chan error, 1)
	go func() { answered <- ping(p.Addr()) }()
	select {
	case err := <-answered:
		require.FailNow(t, "an answer while replies are held", "%v", err)
	case <-time.After(100 * time.Millisecond):
	}
	heal()
	require.NoError(t, <-answered)
}

func TestProxyDropReplies(t *testing.T) {
	s := Redis(t)
	p := NewProxy(t, s.Addr())
	heal := p.DropReplies(func(chunk []byte) bool { return bytes.HasPrefix(chunk, []byte("+PONG")) })
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	_, err := respCall(ctx, p.Addr(), "PING")
	require.ErrorIs(t, err, os.ErrDeadlineExceeded)
	_, err = respCall(t.Context(), p.Addr(), "SET", "k", "v")
	require.NoError(t, err)
	heal()
	require.NoError(t, ping(p.Addr()))
}

// TestProxyPatience: a connection that comes before its target listens stays open until
// then, and one to a target that never listens is closed.
func TestProxyPatience(t *testing.T) {
	target, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	addr := target.Addr().String()
	require.NoError(t, target.Close())
	closed := func(conn net.Conn) bool {
		require.NoError(t, conn.SetReadDeadline(time.Now().Add(100*time.Millisecond)))
		_, err := conn.Read(make([]byte, 1))
		return !errors.Is(err, os.ErrDeadlineExceeded)
	}
	dial := func(patience time.Duration) net.Conn {
		conn, err := net.Dial("tcp", newProxy(t, addr, patience).Addr())
		require.NoError(t, err)
		t.Cleanup(func() { _ = conn.Close() })
		return conn
	}
	early, hasty := dial(time.Minute), dial(0)
	require.False(t, closed(early), "it is closed, as if the target had hung up")
	eventually(t, startTimeout, "the end of who has no patience", func() error {
		if !closed(hasty) {
			return errors.New("it is open")
		}
		return nil
	})
	target, err = net.Listen("tcp", addr)
	require.NoError(t, err)
	defer func() { _ = target.Close() }()
	conn, err := target.Accept()
	require.NoError(t, err)
	_, err = conn.Write([]byte("x"))
	require.NoError(t, err)
	require.NoError(t, early.SetReadDeadline(time.Now().Add(startTimeout)))
	_, err = early.Read(make([]byte, 1))
	require.NoError(t, err)
	require.NoError(t, conn.Close())
}
