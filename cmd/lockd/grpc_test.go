package main

import (
	"bufio"
	"crypto/tls"
	"encoding/json"
	"net/http"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/contrib/grpclock"
	"github.com/seed-215fdefa/lock/httplock"
)

// dialGRPC returns a Locker, with a token if it is not "", that ends with the test.
func dialGRPC(t *testing.T, p *process, creds credentials.TransportCredentials, token string) *grpclock.Locker {
	t.Helper()
	conn, err := grpc.NewClient("passthrough:///"+p.await("serving gRPC")["address"].(string),
		append(grpclock.DialOptions(), grpc.WithTransportCredentials(creds))...)
	require.NoError(t, err)
	var opts []grpclock.Option
	if token != "" {
		opts = append(opts, grpclock.WithBearerToken(token))
	}
	l := grpclock.New(conn, opts...)
	t.Cleanup(func() { _ = l.Close(); _ = conn.Close() })
	return l
}

// TestGRPC has the same callers as over HTTP, with their rights, audits and metrics, until a stop.
func TestGRPC(t *testing.T) {
	t.Parallel()
	authority := newAuthority(t)
	cert, key := authority.issue(t, "localhost").files(t)
	p := start(t, "--store", "memory:", "--grpc", "127.0.0.1:0", "--tokens", write(t, "tokens", certificatesFile()),
		"--tls-cert", cert, "--tls-key", key, "--client-ca", write(t, "ca", authority.pem()))
	dial := func(token string, certs ...tls.Certificate) *grpclock.Locker {
		return dialGRPC(t, p, credentials.NewTLS(&tls.Config{RootCAs: authority.pool(), Certificates: certs}), token)
	}
	req := lock.Request{Key: "web:k", Owner: "o", TTL: time.Hour}
	web := dial(webToken)
	g, err := web.Acquire(t.Context(), req)
	require.NoError(t, err)
	rec, err := dial("", authority.issue(t, "web.example").pair).Inspect(t.Context(), "web:k")
	require.NoError(t, err)
	assert.Equal(t, "o", rec.Holders[0].Owner, "it is the same caller")
	for l, want := range map[*grpclock.Locker]codes.Code{
		dial(""): codes.Unauthenticated, dial("wrong-token-geheim"): codes.Unauthenticated, dial("", authority.issue(t, "nobody.example").pair): codes.PermissionDenied,
	} {
		_, err := l.Acquire(t.Context(), req)
		assert.Equal(t, want, status.Code(err))
		assert.Equal(t, want, status.Code(l.Watch(t.Context(), "other", func() {})), "a stream")
	}
	var lines []map[string]any
	require.Eventually(t, func() bool {
		p.mu.Lock()
		defer p.mu.Unlock()
		lines = nil
		for _, line := range p.lines {
			if line["msg"] == "audit" && line["action"] == "acquire" {
				lines = append(lines, line)
			}
		}
		return len(lines) == 4
	}, patience, 5*time.Millisecond)
	assert.Equal(t, "web", lines[0]["caller"])
	assert.Contains(t, lines[0]["remote"], "127.0.0.1:")
	assert.InDelta(t, float64(g.Token), lines[0]["token"], 0)
	assert.NotContains(t, p.String(), "geheim")

	// A stop ends waits and watches.
	wait := req
	wait.Owner, wait.Wait = "waiter", true
	placed, ends := make(chan struct{}), make(chan error, 2)
	wait.Waiting = func(lock.Record) { close(placed) }
	go func() { _, err := web.Acquire(t.Context(), wait); ends <- err }()
	<-placed
	watching := make(chan struct{})
	go func() { ends <- web.Watch(t.Context(), "web:k", sync.OnceFunc(func() { close(watching) })) }()
	<-watching
	https := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: authority.pool()}}}
	defer https.CloseIdleConnections()
	var body string
	require.Eventually(t, func() bool {
		resp, err := https.Get("https://" + p.addr + "/metrics")
		if !assert.NoError(t, err) {
			return true
		}
		_, body = answer(t, resp)
		return strings.Contains(body, "lockd_waiting 1")
	}, patience, 20*time.Millisecond)
	for _, metric := range []string{
		`lockd_requests_total{action="acquire",outcome="forbidden"} 1`, `lockd_requests_total{action="acquire",outcome="unauthenticated"} 2`,
	} {
		assert.Contains(t, body, metric)
	}
	p.signal(syscall.SIGTERM)
	assert.Zero(t, p.ended(), p)
	assert.Error(t, <-ends)
	require.NoError(t, web.Close())
	assert.Error(t, <-ends)
}

// TestEventsOfGRPC: what is asked for over gRPC is told at once, as over HTTP.
func TestEventsOfGRPC(t *testing.T) {
	t.Parallel()
	p := start(t, "--store", "memory:", "--grpc", "127.0.0.1:0")
	l := dialGRPC(t, p, insecure.NewCredentials(), "")
	g, err := l.Acquire(t.Context(), lock.Request{Key: "k", Owner: "o", TTL: time.Hour})
	require.NoError(t, err)
	require.NoError(t, l.Release(t.Context(), g))
	status, _ := p.post("", "last:acquire", `{"owner": "o", "ttl": "1h"}`)
	require.Equal(t, http.StatusOK, status)

	// Nobody has read until now, so nothing has been looked at.
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+p.addr+"/v1/events", http.NoBody)
	require.NoError(t, err)
	req.Header.Set("Last-Event-ID", "0")
	resp, err := http.DefaultClient.Do(req)
	require.NoError(t, err)
	defer resp.Body.Close()
	var events []httplock.Event
	for s := bufio.NewScanner(resp.Body); len(events) == 0 || events[len(events)-1].Key != "last"; {
		require.True(t, s.Scan(), s.Err())
		if data, ok := strings.CutPrefix(s.Text(), "data: "); ok {
			var e httplock.Event
			require.NoError(t, json.Unmarshal([]byte(data), &e))
			assert.False(t, e.Looked)
			events = append(events, e)
		}
	}
	require.Len(t, events, 3)
	for i, kind := range []httplock.EventKind{httplock.EventGranted, httplock.EventReleased} {
		assert.Equal(t, kind, events[i].Kind)
		assert.Equal(t, "k", events[i].Key)
		assert.Equal(t, g.Token, events[i].Token)
	}
}
