package main

import (
	"context"
	"crypto/tls"
	"encoding/binary"
	"fmt"
	"io"
	"iter"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"google.golang.org/grpc/codes"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/contrib/grpclock"
	"github.com/seed-215fdefa/lock/httplock"
	"github.com/seed-215fdefa/lock/internal/storetest"
	inmemory "github.com/seed-215fdefa/lock/memory"
)

var noWindow = http2.Setting{ID: http2.SettingInitialWindowSize, Val: 0}

// TestNoWindow: over HTTP/2 a client may read all that comes, and yet allow no body. Its connection ends.
func TestNoWindow(t *testing.T) {
	t.Parallel()
	s := opened(t, func(s *service) {
		s.bodyTime, s.server.IdleTimeout = time.Second, 5*time.Second
		s.server.WriteTimeout = min(s.server.WriteTimeout, time.Second)
	})
	server := httptest.NewUnstartedServer(s)
	server.Config, server.EnableHTTP2 = s.server, true
	server.StartTLS()
	t.Cleanup(server.Close)
	config := server.Client().Transport.(*http.Transport).TLSClientConfig.Clone()
	config.NextProtos = []string{"h2"}
	for name, c := range map[string]struct {
		path string
		more []hpack.HeaderField
	}{
		"small":   {path: "/healthz"},
		"large":   {path: "/ui.js"},
		"metrics": {path: "/metrics"},
		"page":    {path: "/"},
		"refused": {path: "/v1/locks/k"},
		"events":  {"/v1/events", []hpack.HeaderField{{Name: "authorization", Value: "Bearer " + opsToken}}},
		"invalid": {"/healthz", []hpack.HeaderField{{Name: "connection", Value: "close"}}}, // net/http refuses it itself
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			conn, err := tls.Dial("tcp", server.Listener.Addr().String(), config)
			require.NoError(t, err)
			t.Cleanup(func() { _ = conn.Close() })
			require.NoError(t, conn.SetDeadline(time.Now().Add(patience)))
			l := &loris{t, conn, http2.NewFramer(conn, conn)}
			l.greet(noWindow)
			l.headers(1, true, append([]hpack.HeaderField{
				{Name: ":method", Value: "GET"},
				{Name: ":scheme", Value: "https"},
				{Name: ":path", Value: c.path},
				{Name: ":authority", Value: "locks"},
			}, c.more...))
			err = l.read(func(uint32, codes.Code) bool { return true })
			assert.NotErrorIs(t, err, os.ErrDeadlineExceeded, "the connection must be ended")
		})
	}
}

// TestNoWindowOverGRPC has a stranger allow no body of an answer, and a caller none of a list.
func TestNoWindowOverGRPC(t *testing.T) {
	t.Parallel()
	s, addr := overGRPC(t, func(s *service) { s.bodyTime, s.server.IdleTimeout = 5*time.Second, 5*time.Second })
	call := func(method, token string) *loris {
		c := newLoris(t, addr)
		require.NoError(t, c.framer.WriteSettings(noWindow))
		c.begin(1, method, token, binary.BigEndian.AppendUint32([]byte{0}, 0)...)
		require.NoError(t, c.framer.WriteData(1, true, nil))
		return c
	}
	err := call("Capabilities", "").read(func(_ uint32, code codes.Code) bool {
		assert.Equal(t, codes.Unauthenticated, code)
		return true
	})
	assert.NotErrorIs(t, err, os.ErrDeadlineExceeded, "the connection must be ended")
	var refused *grpclock.ServiceError
	require.ErrorAs(t, lockerOf(t, addr, "").Connect(t.Context()), &refused)
	assert.Equal(t, "unauthenticated", refused.Kind)
	require.NoError(t, lockerOf(t, addr, webToken).Connect(t.Context()))

	for i := range 20 { // of 4 KiB each: gRPC buffers 64
		storetest.Acquire(t, s.store, lock.Request{
			Key: fmt.Sprint("web:", i), Owner: "o", TTL: time.Hour, Metadata: map[string]string{"note": strings.Repeat("x", 4000)},
		})
	}
	var reading sync.WaitGroup
	t.Cleanup(reading.Wait)
	list := call("List", opsToken)
	reading.Go(func() { _ = list.read(func(uint32, codes.Code) bool { return true }) })
	require.Eventually(t, func() bool {
		w := httptest.NewRecorder()
		s.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/metrics", http.NoBody))
		return strings.Contains(w.Body.String(), `lockd_requests_total{action="list",outcome="canceled"} 1`)
	}, patience, 20*time.Millisecond)
}

// pipes are connections within this process.
type pipes chan net.Conn

func (p pipes) Accept() (net.Conn, error) {
	c, ok := <-p
	if !ok {
		return nil, net.ErrClosed
	}
	return c, nil
}

func (p pipes) Close() error   { close(p); return nil }
func (p pipes) Addr() net.Addr { return new(net.TCPAddr) }

// slowList is a store that takes its time for each record of a list.
type slowList struct{ *inmemory.Locker }

func (l slowList) List(context.Context, string) iter.Seq2[lock.Record, error] {
	return func(yield func(lock.Record, error) bool) {
		for range 2 {
			time.Sleep(time.Minute)
			if !yield(lock.Record{Key: "web:k"}, nil) {
				return
			}
		}
	}
}

// TestPausesInAnswers: only who does not take what there is has a bound, not an answer that pauses.
func TestPausesInAnswers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := opened(t, func(s *service) {
			s.bodyTime, s.server.WriteTimeout = time.Second, time.Second
			s.handler = httplock.NewHandler(slowList{inmemory.New()})
		})
		over := new(http.Protocols)
		over.SetUnencryptedHTTP2(true)
		s.server.Protocols = over
		l := make(pipes)
		go func() { assert.ErrorIs(t, s.server.Serve(l), http.ErrServerClosed) }()
		client := &http.Transport{Protocols: over, DialContext: func(context.Context, string, string) (net.Conn, error) {
			here, there := net.Pipe()
			l <- there
			return here, nil
		}}
		get := func(path string) *http.Response {
			req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://locks"+path, http.NoBody)
			require.NoError(t, err)
			req.Header.Set("Authorization", "Bearer "+webToken)
			resp, err := client.RoundTrip(req)
			require.NoError(t, err)
			require.Equal(t, 2, resp.ProtoMajor)
			require.Equal(t, http.StatusOK, resp.StatusCode)
			return resp
		}
		list := get("/v1/locks?prefix=web:")
		body, err := io.ReadAll(list.Body)
		assert.NoError(t, err)
		assert.Contains(t, string(body), `{"end":true}`)
		events := get("/v1/events?prefix=web:")
		for range 3 { // 5 s after one another
			_, err = events.Body.Read(make([]byte, 1<<10))
			assert.NoError(t, err)
		}
		assert.NoError(t, events.Body.Close())
		client.CloseIdleConnections()
		assert.NoError(t, s.server.Close())
	})
}
