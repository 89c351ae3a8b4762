package main

import (
	"io"
	"net"
	"net/http"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// TestSlowLoris: connections that never send the whole of a header take all there are. They are
// ended, and then others are served.
func TestSlowLoris(t *testing.T) {
	t.Parallel()
	const n = 50
	p := start(t, "--store", "memory:", "--max-connections", "50")
	lorises := idlers(t, p, n, "GET /healthz HTTP/1.1\r\nHost: locks\r\nX-Slow: ")
	status, _ := p.get("/healthz")
	assert.Equal(t, http.StatusOK, status)
	for _, c := range lorises {
		require.NoError(t, c.SetReadDeadline(time.Now().Add(patience)))
		_, err := io.ReadAll(c)
		require.NotErrorIs(t, err, os.ErrDeadlineExceeded, "the connection must be ended")
	}
}

// TestIdleConnections: thousands that ask for nothing are in nobody's way.
func TestIdleConnections(t *testing.T) {
	t.Parallel()
	p := start(t, "--store", "memory:")
	idle := idlers(t, p, 2000, "GET /healthz HTTP/1.1\r\nHost: locks\r\n\r\n")
	status, _ := p.post("", "k:acquire", `{"owner": "o", "ttl": "30s"}`)
	assert.Equal(t, http.StatusOK, status)
	for _, c := range idle {
		require.NoError(t, c.SetReadDeadline(time.Now().Add(patience)))
		_, err := c.Read(make([]byte, 1))
		require.NoError(t, err, "each was answered, and may ask again")
	}
}

// idlers are connections that say so much, and no more.
func idlers(t *testing.T, p *process, n int, says string) []net.Conn {
	t.Helper()
	var conns []net.Conn
	for range n {
		c, err := net.Dial("tcp", p.addr)
		require.NoError(t, err)
		t.Cleanup(func() { _ = c.Close() })
		_, err = io.WriteString(c, says)
		require.NoError(t, err)
		conns = append(conns, c)
	}
	return conns
}
