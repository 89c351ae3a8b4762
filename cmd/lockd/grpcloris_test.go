package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/contrib/grpclock"
	lockservice "github.com/seed-215fdefa/lock/internal/service"
)

// loris is a connection that sends what no client of gRPC would. It answers pings.
type loris struct {
	t      *testing.T
	conn   net.Conn
	framer *http2.Framer
}

func newLoris(t *testing.T, addr string) *loris {
	t.Helper()
	conn, err := net.Dial("tcp", addr)
	require.NoError(t, err)
	t.Cleanup(func() { _ = conn.Close() })
	require.NoError(t, conn.SetDeadline(time.Now().Add(patience)))
	c := &loris{t, conn, http2.NewFramer(conn, conn)}
	c.greet()
	f, err := c.framer.ReadFrame()
	require.NoError(t, err)
	calls, _ := f.(*http2.SettingsFrame).Value(http2.SettingMaxConcurrentStreams)
	require.EqualValues(t, 10+besideWaits, calls, "all that may wait may share a connection")
	return c
}

// greet begins to speak HTTP/2.
func (c *loris) greet(settings ...http2.Setting) {
	c.t.Helper()
	_, err := io.WriteString(c.conn, http2.ClientPreface)
	require.NoError(c.t, err)
	c.framer.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	require.NoError(c.t, c.framer.WriteSettings(settings...))
}

// begin sends a call's headers, with a token if it is not "", and then data.
func (c *loris) begin(stream uint32, method, token string, data ...byte) {
	c.t.Helper()
	fields := []hpack.HeaderField{
		{Name: ":method", Value: "POST"},
		{Name: ":scheme", Value: "http"},
		{Name: ":path", Value: "/lock.v1.LockService/" + method},
		{Name: ":authority", Value: "locks"},
		{Name: "content-type", Value: "application/grpc"},
		{Name: "te", Value: "trailers"},
	}
	if token != "" {
		fields = append(fields, hpack.HeaderField{Name: "authorization", Value: "Bearer " + token})
	}
	c.headers(stream, false, fields)
	if len(data) > 0 {
		require.NoError(c.t, c.framer.WriteData(stream, false, data))
	}
}

func (c *loris) headers(stream uint32, end bool, fields []hpack.HeaderField) {
	c.t.Helper()
	var block bytes.Buffer
	e := hpack.NewEncoder(&block)
	e.SetMaxDynamicTableSize(0)
	for _, f := range fields {
		require.NoError(c.t, e.WriteField(f))
	}
	require.NoError(c.t, c.framer.WriteHeaders(http2.HeadersFrameParam{
		StreamID: stream, BlockFragment: block.Bytes(), EndStream: end, EndHeaders: true,
	}))
}

// read calls ended with each call's status until that returns false, or the connection ends.
func (c *loris) read(ended func(stream uint32, code codes.Code) bool) error {
	for {
		f, err := c.framer.ReadFrame()
		if err != nil {
			return err
		}
		switch f := f.(type) {
		case *http2.PingFrame:
			if !f.IsAck() {
				_ = c.framer.WritePing(true, f.Data)
			}
		case *http2.MetaHeadersFrame:
			for _, field := range f.Fields {
				if field.Name != "grpc-status" {
					continue
				}
				if code, _ := strconv.Atoi(field.Value); !ended(f.StreamID, codes.Code(code)) {
					return nil
				}
			}
		}
	}
}

// opened is a service with the tokens of tokensFile, and what set has set.
func opened(t *testing.T, set func(*service)) *service {
	t.Helper()
	s, err := open(config{
		store: "memory:", maxConnections: 50, maxWaiters: 10,
		tokens: write(t, "tokens", tokensFile()), audit: filepath.Join(t.TempDir(), "audit"),
	}, slog.New(slog.DiscardHandler))
	require.NoError(t, err)
	t.Cleanup(func() {
		s.handler.Close()
		assert.NoError(t, s.store.Close())
	})
	set(s)
	return s
}

// overGRPC serves such a service over gRPC, in this process.
func overGRPC(t *testing.T, set func(*service)) (s *service, addr string) {
	t.Helper()
	s = opened(t, set)
	s.openGRPC(lockservice.Share(s.store))
	l, err := s.listen("--grpc", "127.0.0.1:0")
	require.NoError(t, err)
	var serving sync.WaitGroup
	serving.Go(func() { assert.NoError(t, s.grpc.Serve(l)) })
	t.Cleanup(func() {
		s.grpc.Stop()
		serving.Wait()
		s.locks.Close()
	})
	return s, l.Addr().String()
}

// lockerOf is a Locker of web at addr.
func lockerOf(t *testing.T, addr, token string) *grpclock.Locker {
	t.Helper()
	conn, err := grpc.NewClient("passthrough:///"+addr, append(grpclock.DialOptions(), grpc.WithTransportCredentials(insecure.NewCredentials()))...)
	require.NoError(t, err)
	l := grpclock.New(conn, grpclock.WithBearerToken(token))
	t.Cleanup(func() { _ = l.Close(); _ = conn.Close() })
	return l
}

// TestSlowLorisOverGRPC: connections that are never used take all there are. They are ended, and then
// others are served.
func TestSlowLorisOverGRPC(t *testing.T) {
	t.Parallel()
	_, addr := overGRPC(t, func(s *service) { s.server.IdleTimeout = time.Second })
	var ends sync.WaitGroup
	for range 50 {
		c := newLoris(t, addr)
		ends.Go(func() {
			assert.NotErrorIs(t, c.read(func(uint32, codes.Code) bool { return true }), os.ErrDeadlineExceeded, "the connection must be ended")
		})
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	l := lockerOf(t, addr, webToken)
	inspected := func() bool { _, err := l.Inspect(ctx, "web:k"); return err == nil }
	require.Eventually(t, inspected, patience, 5*time.Millisecond)
	ends.Wait()
	require.Eventually(t, inspected, patience, 5*time.Millisecond, "its connection was idle, and ended too")
}

// TestCallsWithoutMessage: calls whose message never arrives are ended, and others are not.
func TestCallsWithoutMessage(t *testing.T) {
	t.Parallel()
	_, addr := overGRPC(t, func(s *service) { s.bodyTime = 2 * time.Second })
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	l := lockerOf(t, addr, webToken)
	watching, changed, watched := make(chan struct{}), make(chan struct{}, 1), make(chan error, 1)
	go func() {
		first := sync.OnceFunc(func() { close(watching) })
		watched <- l.Watch(ctx, "web:k", func() {
			first()
			select {
			case changed <- struct{}{}:
			default:
			}
		})
	}()
	<-watching
	c := newLoris(t, addr)
	half := binary.BigEndian.AppendUint32([]byte{0}, 9)
	left := map[uint32]bool{}
	for i, method := range []string{"Acquire", "Watch", "List", "Capabilities"} {
		for j, token := range []string{"", webToken} {
			stream := uint32(8*i + 4*j + 1)
			c.begin(stream, method, token)
			c.begin(stream+2, method, token, half...)
			left[stream], left[stream+2] = true, true
		}
	}
	require.NoError(t, c.read(func(stream uint32, code codes.Code) bool {
		delete(left, stream)
		assert.Equal(t, codes.Canceled, code)
		return len(left) > 0
	}))
	for len(changed) > 0 {
		<-changed
	}
	g, err := l.Acquire(ctx, lock.Request{Key: "web:k", Owner: "o", TTL: time.Hour})
	require.NoError(t, err)
	select {
	case <-changed: // over the same stream, which began before all those
	case err := <-watched:
		require.NoError(t, err)
	}
	require.NoError(t, l.Release(ctx, g))
}

// TestCallsOfTheUnknown: too many of them wait for their messages. Who is known is served all the same.
func TestCallsOfTheUnknown(t *testing.T) {
	t.Parallel()
	s, addr := overGRPC(t, func(s *service) { s.bodyTime = time.Hour })
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	known, unknown := lockerOf(t, addr, webToken), lockerOf(t, addr, "no-such-token-geheim")
	req := lock.Request{Key: "web:k", Owner: "o", TTL: time.Hour}
	_, err := unknown.Acquire(ctx, req)
	require.Equal(t, codes.Unauthenticated, status.Code(err))

	c := newLoris(t, addr)
	const last = 2*maxUnknown + 1
	for stream := uint32(1); stream <= last; stream += 2 {
		c.begin(stream, "Acquire", "")
	}
	require.NoError(t, c.read(func(stream uint32, code codes.Code) bool {
		assert.EqualValues(t, last, stream)
		assert.Contains(t, []codes.Code{codes.Canceled, codes.DeadlineExceeded}, code)
		return false
	}))
	_, err = known.Acquire(ctx, req)
	assert.NoError(t, err)
	require.NoError(t, c.conn.Close())
	require.Eventually(t, func() bool { return s.unknown.Load() == 0 }, patience, 5*time.Millisecond)
}

// TestNobodyReads: a connection whose client reads nothing would be blocked for ever, over HTTP too.
func TestNobodyReads(t *testing.T) {
	t.Parallel()
	short := func(s *service) { s.bodyTime = time.Second }
	ended := func(t *testing.T, write func() error) {
		t.Helper()
		var err error
		for err == nil {
			err = write()
		}
		assert.NotErrorIs(t, err, os.ErrDeadlineExceeded, "the connection must be ended")
	}
	t.Run("HTTP", func(t *testing.T) {
		t.Parallel()
		s := opened(t, short)
		l, err := s.listen("--listen", "127.0.0.1:0")
		require.NoError(t, err)
		var serving sync.WaitGroup
		serving.Go(func() { assert.ErrorIs(t, s.serve(l), http.ErrServerClosed) })
		t.Cleanup(func() { assert.NoError(t, s.server.Close()); serving.Wait() })
		conn, err := net.Dial("tcp", l.Addr().String())
		require.NoError(t, err)
		t.Cleanup(func() { _ = conn.Close() })
		require.NoError(t, conn.SetDeadline(time.Now().Add(patience)))
		ended(t, func() error {
			_, err := io.WriteString(conn, "GET /ui.js HTTP/1.1\r\nHost: locks\r\n\r\n")
			return err
		})
	})
	t.Run("gRPC", func(t *testing.T) {
		t.Parallel()
		_, addr := overGRPC(t, short)
		c := newLoris(t, addr)
		framer := http2.NewFramer(bufio.NewWriterSize(c.conn, 64<<10), nil)
		ended(t, func() error { return framer.WriteSettings() })
	})
}
