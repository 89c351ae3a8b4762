package testserver

import (
	"bytes"
	"context"
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
