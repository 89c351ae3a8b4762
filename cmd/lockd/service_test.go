package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/json"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/httplock"
	"github.com/seed-215fdefa/lock/internal/testserver"
)

func TestServes(t *testing.T) {
	t.Parallel()
	p := start(t, "--store", "memory:")
	client := lock.New(httplock.New("http://" + p.addr))
	l, err := client.Lock(t.Context(), "job")
	require.NoError(t, err)
	status, body := p.get("/v1/locks/job")
	assert.Equal(t, http.StatusOK, status)
	assert.Contains(t, body, l.Owner())
	_, err = client.TryLock(t.Context(), "job")
	assert.ErrorIs(t, err, lock.ErrHeld)
	for path, says := range map[string]string{"/healthz": "ok\n", "/readyz": "ready\n"} {
		status, body = p.get(path)
		assert.Equal(t, http.StatusOK, status, path)
		assert.Equal(t, says, body)
	}
	_, body = p.get("/metrics")
	for _, metric := range []string{
		`lockd_requests_total{action="acquire",outcome="held"} `, `lockd_requests_total{action="inspect",outcome="ok"} 1`,
		`lockd_request_duration_seconds_count{action="acquire"} `, "lockd_waiting 0", "lockd_store_errors_total 0",
		"lockd_audit_errors_total 0", "go_goroutines", "process_open_fds",
	} {
		assert.Contains(t, body, metric)
	}
	require.NoError(t, l.Release(t.Context()))
	require.NoError(t, client.Close(t.Context()))
	stream, err := http.Get("http://" + p.addr + "/v1/locks/job:watch") // which a stop must end
	require.NoError(t, err)
	defer stream.Body.Close()
	p.signal(syscall.SIGINT)
	assert.Zero(t, p.ended(), p)
	p.await("stopped")
}

// TestStoreComesLater starts without a store, and with a password that the store does not take.
func TestStoreComesLater(t *testing.T) {
	t.Parallel()
	s := testserver.Redis(t)
	s.Kill()
	p := start(t, "--store", "redis://"+s.Addr())
	status, body := p.get("/readyz")
	assert.Equal(t, http.StatusServiceUnavailable, status)
	assert.Equal(t, "the store does not answer\n", body)
	status, _ = p.get("/healthz")
	assert.Equal(t, http.StatusOK, status)
	s.Start()
	p.eventually("/readyz", http.StatusOK)
	p.await("ready")
	status, _ = p.post("", "k:acquire", `{"owner": "o", "ttl": "30s"}`)
	assert.Equal(t, http.StatusOK, status)
	s.Kill()
	p.eventually("/readyz", http.StatusServiceUnavailable)
	s.Start()
	p.eventually("/readyz", http.StatusOK)

	wrong := start(t, "--store", "redis://somebody:geheim@"+s.Addr())
	wrong.eventually("/readyz", http.StatusServiceUnavailable)
	status, body = wrong.post("", "k:acquire", `{"owner": "o", "ttl": "30s"}`)
	assert.Equal(t, http.StatusServiceUnavailable, status)
	assert.Contains(t, wrong.await("the store failed")["error"], "WRONGPASS")
	wrong.signal(syscall.SIGTERM)
	assert.Zero(t, wrong.ended())
	assert.NotContains(t, body+wrong.String(), "geheim")
	assert.NotContains(t, body, "somebody")
}

// TestWaitGoesOnAtAnotherReplica stops the replica at which somebody stands in line.
func TestWaitGoesOnAtAnotherReplica(t *testing.T) {
	t.Parallel()
	url := "redis://" + testserver.Redis(t).Addr()
	first, second := start(t, "--store", url, "--no-auth", "--grace", patience.String()), start(t, "--store", url, "--no-auth")
	holder := httplock.New("http://" + second.addr)
	defer holder.Close()
	g, err := holder.Acquire(t.Context(), lock.Request{Key: "k", Owner: "holder", TTL: time.Hour})
	require.NoError(t, err)

	// The waiter goes to the first replica for as long as there is one.
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		c, err := new(net.Dialer).DialContext(ctx, "tcp", first.addr)
		if err != nil {
			c, err = new(net.Dialer).DialContext(ctx, "tcp", second.addr)
		}
		return c, err
	}}
	defer transport.CloseIdleConnections()
	waiter := httplock.New("http://replicas", httplock.WithHTTPClient(&http.Client{Transport: transport}))
	defer waiter.Close()
	placed, granted := make(chan struct{}), make(chan error, 1)
	go func() {
		_, err := waiter.Acquire(t.Context(), lock.Request{
			Key: "k", Owner: "waiter", TTL: time.Hour, Wait: true, Waiting: func(lock.Record) { close(placed) },
		})
		granted <- err
	}()
	<-placed
	waits := func(p *process) {
		require.Eventually(t, func() bool {
			_, body := p.get("/metrics")
			return strings.Contains(body, "lockd_waiting 1")
		}, patience, 20*time.Millisecond)
	}
	waits(first)
	first.signal(syscall.SIGTERM)
	assert.Zero(t, first.ended(), first)
	waits(second)
	require.NoError(t, holder.Release(t.Context(), g))
	assert.NoError(t, <-granted)
}

// TestDrain serves on while it is not ready any more, until a second signal.
func TestDrain(t *testing.T) {
	t.Parallel()
	p := start(t, "--store", "memory:", "--grace", "2h", "--drain", "1h")
	p.eventually("/readyz", http.StatusOK)
	p.signal(syscall.SIGTERM)
	p.eventually("/readyz", http.StatusServiceUnavailable)
	_, body := p.get("/readyz")
	assert.Equal(t, "stopping\n", body)
	p.signal(syscall.SIGHUP) // as of a log that is rotated
	status, _ := p.post("", "k:acquire", `{"owner": "o", "ttl": "30s"}`)
	assert.Equal(t, http.StatusOK, status)
	p.signal(syscall.SIGTERM)
	assert.Equal(t, -1, p.ended())
}

// TestGrace has a request under way that does not end, since its body never comes.
func TestGrace(t *testing.T) {
	t.Parallel()
	p := start(t, "--store", "memory:", "--grace", "100ms")
	conn, err := net.Dial("tcp", p.addr)
	require.NoError(t, err)
	defer conn.Close()
	_, err = io.WriteString(conn, "POST /v1/locks/k:acquire HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nExpect: 100-continue\r\nContent-Length: 9\r\n\r\n")
	require.NoError(t, err)
	_, err = conn.Read(make([]byte, 1)) // it waits for the body
	require.NoError(t, err)
	p.signal(syscall.SIGTERM)
	assert.Equal(t, exitUnavailable, p.ended(), p)
	p.await("lockd: not everything was answered within --grace 100ms")
}

// TestUnreadBodies has the body of a refused request not arrive: the connection ends all the same.
func TestUnreadBodies(t *testing.T) {
	t.Parallel()
	s, err := open(config{
		store: "memory:", maxWaiters: 1, tokens: write(t, "tokens", tokensFile()), audit: filepath.Join(t.TempDir(), "audit"),
	}, slog.New(slog.DiscardHandler))
	require.NoError(t, err)
	defer func() { assert.NoError(t, s.store.Close()) }()
	defer s.handler.Close()
	server := httptest.NewServer(s)
	defer server.Close()
	var wg sync.WaitGroup
	defer wg.Wait()
	for path, status := range map[string]string{
		"/v1/locks/k:acquire": "401 Unauthorized", "/healthz": "200 OK", "/readyz": "200 OK", "/metrics": "200 OK", "/nowhere": "404 Not Found",
	} {
		wg.Go(func() {
			conn, err := net.Dial("tcp", server.Listener.Addr().String())
			if !assert.NoError(t, err) {
				return
			}
			defer conn.Close()
			_, err = io.WriteString(conn, "POST "+path+" HTTP/1.1\r\nHost: h\r\nContent-Length: 9\r\n\r\n")
			assert.NoError(t, err)
			assert.NoError(t, conn.SetDeadline(time.Now().Add(patience)))
			reply, err := io.ReadAll(conn)
			assert.NoError(t, err, "%s: the service has not closed it", path)
			assert.Contains(t, string(reply), status, path)
			if strings.HasPrefix(status, "401") {
				assert.Contains(t, string(reply), "Www-Authenticate: Bearer", path)
			}
		})
	}
}

// TestHost has a page of the web come under a name of its own.
func TestHost(t *testing.T) {
	t.Parallel()
	gone, cancel := context.WithCancel(t.Context())
	cancel() // which ends streams
	ask := func(c config, path, host string) *httptest.ResponseRecorder {
		c.store, c.listen, c.maxWaiters, c.audit = "memory:", "locks.local:8080", 1, filepath.Join(t.TempDir(), "audit")
		s, err := open(c, slog.New(slog.DiscardHandler))
		require.NoError(t, err)
		defer func() { assert.NoError(t, s.store.Close()) }()
		defer s.handler.Close()
		r := httptest.NewRequestWithContext(gone, http.MethodGet, path, http.NoBody)
		r.Host = host
		w := httptest.NewRecorder()
		s.ServeHTTP(w, r)
		audit, err := os.ReadFile(c.audit)
		require.NoError(t, err)
		assert.Equal(t, w.Code == http.StatusMisdirectedRequest, strings.Contains(string(audit), `"outcome":"misdirected"`), host)
		return w
	}
	for _, path := range []string{"/", "/ui.js", "/lock?key=k", "/force?key=k&owner=o", "/v1", "/v1/locks/k", "/v1/locks", "/v1/events"} {
		w := ask(config{}, path, "evil.example:8080")
		require.Equal(t, http.StatusMisdirectedRequest, w.Code, path)
		assert.Equal(t, "application/problem+json", w.Header().Get("Content-Type"))
		assert.Contains(t, w.Body.String(), `"urn:httplock:misdirected"`)
		assert.Contains(t, w.Body.String(), `host \"evil.example:8080\": without --tokens`)
	}
	for host, status := range map[string]int{
		"evil.example": 421, "127.0.0.1.evil.example": 421, "localhost.evil.example": 421, "": 421, ":8080": 421, "locks": 421,
		"127.0.0.1:8080": 200, "127.0.0.1": 200, "[::1]:8080": 200, "[::1]": 200, "localhost:8080": 200, "LOCALHOST": 200,
		"locks.local:8080": 200, "Locks.local": 200,
	} {
		assert.Equal(t, status, ask(config{}, "/ui.js", host).Code, host)
	}
	for _, path := range []string{"/healthz", "/metrics"} {
		assert.Equal(t, http.StatusOK, ask(config{}, path, "evil.example").Code, path)
	}
	assert.Equal(t, http.StatusOK, ask(config{noAuth: true}, "/ui.js", "evil.example").Code)
	assert.Equal(t, http.StatusOK, ask(config{tokens: write(t, "tokens", tokensFile())}, "/ui.js", "evil.example").Code)
}

// TestReload changes the file of tokens: broken, then right.
func TestReload(t *testing.T) {
	t.Parallel()
	file := write(t, "tokens", tokensFile())
	p := start(t, "--store", "memory:", "--tokens", file)
	assert.Equal(t, http.StatusOK, try(p, webToken, "web%3Ak:acquire"))
	assert.Equal(t, http.StatusUnauthorized, try(p, "", "web%3Ak:acquire"))
	assert.Equal(t, http.StatusForbidden, try(p, webToken, "k:acquire"))
	assert.Equal(t, http.StatusForbidden, try(p, opsToken, "web%3Ak:acquire"))

	require.NoError(t, os.WriteFile(file, []byte("{"), 0o600))
	p.signal(syscall.SIGHUP)
	p.await("the files were not read anew: all old ones stay")
	assert.Equal(t, http.StatusOK, try(p, webToken, "web%3Ak:acquire"))

	const renewed = "web-renewed-0123456789"
	require.NoError(t, os.WriteFile(file, []byte(strings.ReplaceAll(tokensFile(), sha(webToken), sha(renewed))), 0o600))
	p.signal(syscall.SIGHUP)
	p.await("the files were read anew")
	assert.Equal(t, http.StatusUnauthorized, try(p, webToken, "web%3Ak:acquire"))
	assert.Equal(t, http.StatusOK, try(p, renewed, "web%3Ak:acquire"), "the owner is the caller's, whatever its token")
	assert.NotContains(t, p.String(), "geheim")
}

// TestRevocation ends the streams of a token that the file does not have any more, and no others.
func TestRevocation(t *testing.T) {
	t.Parallel()
	file := write(t, "tokens", tokensFile())
	p := start(t, "--store", "memory:", "--grpc", "127.0.0.1:0", "--tokens", file)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	stream := func(token, path string) *bufio.Scanner {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+p.addr+path, http.NoBody)
		require.NoError(t, err)
		req.Header.Set("Authorization", "Bearer "+token)
		resp, err := http.DefaultClient.Do(req)
		require.NoError(t, err)
		t.Cleanup(func() { _ = resp.Body.Close() })
		require.Equal(t, http.StatusOK, resp.StatusCode)
		return bufio.NewScanner(resp.Body)
	}
	revoked := []*bufio.Scanner{stream(webToken, "/v1/events?prefix=web:"), stream(webToken, "/v1/locks/web%3Ak:watch")}
	stays := stream(opsToken, "/v1/events")
	l := dialGRPC(t, p, insecure.NewCredentials(), webToken)
	watching, watched := make(chan struct{}), make(chan error, 1)
	go func() { watched <- l.Watch(ctx, "web:k", sync.OnceFunc(func() { close(watching) })) }()
	<-watching

	const renewed = "web-renewed-0123456789"
	require.NoError(t, os.WriteFile(file, []byte(strings.ReplaceAll(tokensFile(), sha(webToken), sha(renewed))), 0o600))
	p.signal(syscall.SIGHUP)
	p.await("the files were read anew")
	for _, s := range revoked {
		for s.Scan() {
		}
		assert.NoError(t, s.Err())
	}
	assert.Equal(t, codes.Unauthenticated, status.Code(<-watched))
	assert.Equal(t, http.StatusOK, try(p, renewed, "web%3Ak:acquire"))
	for !strings.Contains(stays.Text(), `"granted"`) {
		require.True(t, stays.Scan(), stays.Err())
	}
}

// TestRevokedAuthority does the same to whoever has a certificate of an authority that the file does not
// have any more, on the connections that it has.
func TestRevokedAuthority(t *testing.T) {
	t.Parallel()
	leaked, sound := newAuthority(t), newAuthority(t)
	cert, key := sound.issue(t, "localhost").files(t)
	file := write(t, "ca", leaked.pem()+sound.pem())
	p := start(t, "--store", "memory:", "--grpc", "127.0.0.1:0", "--tokens", write(t, "tokens", certificatesFile()),
		"--tls-cert", cert, "--tls-key", key, "--client-ca", file)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	tlsOf := func(a *authority) *tls.Config {
		return &tls.Config{RootCAs: sound.pool(), Certificates: []tls.Certificate{a.issue(t, "web.example").pair}}
	}
	get := func(c *http.Client, path string) *http.Response {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+p.addr+path, http.NoBody)
		require.NoError(t, err)
		resp, err := c.Do(req)
		require.NoError(t, err, "another connection would not come about")
		t.Cleanup(func() { _ = resp.Body.Close() })
		return resp
	}
	client := func(a *authority) *http.Client {
		transport := &http.Transport{TLSClientConfig: tlsOf(a), ForceAttemptHTTP2: true}
		t.Cleanup(transport.CloseIdleConnections)
		return &http.Client{Transport: transport}
	}
	thief, owner := client(leaked), client(sound)
	var revoked []*bufio.Scanner
	for _, path := range []string{"/v1/events?prefix=web:", "/v1/locks/web%3Ak:watch"} {
		resp := get(thief, path)
		require.Equal(t, http.StatusOK, resp.StatusCode)
		revoked = append(revoked, bufio.NewScanner(resp.Body))
	}
	stays := bufio.NewScanner(get(owner, "/v1/events?prefix=web:").Body)
	l := dialGRPC(t, p, credentials.NewTLS(tlsOf(leaked)), "")
	watching, watched := make(chan struct{}), make(chan error, 1)
	go func() { watched <- l.Watch(ctx, "web:k", sync.OnceFunc(func() { close(watching) })) }()
	<-watching

	require.NoError(t, os.WriteFile(file, []byte(sound.pem()), 0o600))
	p.signal(syscall.SIGHUP)
	p.await("the files were read anew")
	assert.Equal(t, http.StatusUnauthorized, get(thief, "/v1/locks/web%3Ak").StatusCode)
	_, err := l.Inspect(ctx, "web:k")
	assert.Equal(t, codes.Unauthenticated, status.Code(err))
	for _, s := range revoked {
		for s.Scan() {
		}
		assert.NoError(t, s.Err())
	}
	assert.Equal(t, codes.Unauthenticated, status.Code(<-watched))
	_, err = dialGRPC(t, p, credentials.NewTLS(tlsOf(sound)), "").Acquire(ctx, lock.Request{Key: "web:k", Owner: "o", TTL: time.Minute})
	require.NoError(t, err)
	for !strings.Contains(stays.Text(), `"granted"`) {
		require.True(t, stays.Scan(), stays.Err())
	}
}

func try(p *process, token, path string) int {
	p.t.Helper()
	status, _ := p.post(token, path, `{"owner": "o", "ttl": "30s"}`)
	return status
}

// TestAudit reads the audit log, which is moved away meanwhile.
func TestAudit(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "audit")
	p := start(t, "--store", "memory:", "--tokens", write(t, "tokens", tokensFile()), "--audit", file)
	entries := func(file string) (lines []map[string]any) {
		b, err := os.ReadFile(file)
		require.NoError(t, err)
		for line := range strings.Lines(string(b)) {
			var entry map[string]any
			require.NoError(t, json.Unmarshal([]byte(line), &entry))
			assert.Contains(t, entry["remote"], "127.0.0.1:")
			delete(entry, "remote")
			delete(entry, "time")
			delete(entry, "level")
			lines = append(lines, entry)
		}
		return lines
	}
	_, body := p.post(webToken, "web%3Ak:acquire", `{"owner": "o", "ttl": "30s"}`)
	var grant struct{ Token float64 }
	require.NoError(t, json.Unmarshal([]byte(body), &grant))
	token, _ := json.Marshal(grant)
	owned := `{"owner": "o", "ttl": "30s", "token": ` + strings.TrimSuffix(strings.TrimPrefix(string(token), `{"Token":`), "}") + `}`
	status, _ := p.post(webToken, "web%3Ak:renew", owned)
	assert.Equal(t, http.StatusOK, status)
	assert.Equal(t, http.StatusForbidden, try(p, opsToken, "web%3Ak:release"))
	assert.Equal(t, http.StatusUnauthorized, try(p, "no-such-token-geheim", "web%3Ak:force"))
	_, body = p.post(webToken, "web%3Ak:acquire", `{"owner": "p", "ttl": "30s"}`)
	assert.Contains(t, body, `"owner":"o"`)
	want := func(caller, action, owner, outcome string, token any) map[string]any {
		return map[string]any{
			"msg": "audit", "caller": caller, "action": action, "key": "web:k", "owner": owner, "token": token, "outcome": outcome,
		}
	}
	var lines []map[string]any
	require.Eventually(t, func() bool { lines = entries(file); return len(lines) == 4 }, patience, 5*time.Millisecond)
	stored := lines[0]["owner"].(string)
	assert.Regexp(t, `^o-[\w-]{9}$`, stored)
	assert.Equal(t, []map[string]any{
		want("web", "acquire", stored, "ok", grant.Token),
		want("ops", "release", "", "forbidden", 0.0),
		want("", "force", "", "unauthenticated", 0.0),
		want("web", "acquire", "p"+stored[1:], "held", 0.0),
	}, lines)

	require.NoError(t, os.Rename(file, file+".1"))
	p.signal(syscall.SIGHUP)
	p.await("the files were read anew")
	status, _ = p.post(opsToken, "web%3Ak:force", `{"owner": "`+stored+`"}`)
	assert.Equal(t, http.StatusNoContent, status)
	require.Eventually(t, func() bool { return len(entries(file)) == 1 }, patience, 5*time.Millisecond)
	assert.Equal(t, want("ops", "force", stored, "ok", 0.0), entries(file)[0])
	assert.Len(t, entries(file+".1"), 4)
	status, _ = p.post(webToken, "web%3Ak:renew", owned)
	assert.Equal(t, http.StatusGone, status)
	require.Eventually(t, func() bool { return len(entries(file)) == 2 }, patience, 5*time.Millisecond)
	assert.Equal(t, want("web", "renew", stored, "lost", grant.Token), entries(file)[1])
}

// TestTLS knows callers by certificates, and takes a new one of its own.
func TestTLS(t *testing.T) {
	t.Parallel()
	authority, another := newAuthority(t), newAuthority(t)
	cert, key := authority.issue(t, "localhost").files(t)
	p := start(t, "--store", "memory:", "--tokens", write(t, "tokens", certificatesFile()),
		"--tls-cert", cert, "--tls-key", key, "--client-ca", write(t, "ca", authority.pem()))
	client := func(certs ...tls.Certificate) *http.Client {
		transport := &http.Transport{
			TLSClientConfig:   &tls.Config{RootCAs: authority.pool(), Certificates: certs},
			ForceAttemptHTTP2: true,
		}
		t.Cleanup(transport.CloseIdleConnections)
		return &http.Client{Transport: transport}
	}
	inspect := func(c *http.Client) (int, *http.Response) {
		resp, err := c.Get("https://" + p.addr + "/v1/locks/web%3Ak")
		require.NoError(t, err)
		status, _ := answer(t, resp)
		return status, resp
	}
	status, resp := inspect(client(authority.issue(t, "web.example").pair))
	assert.Equal(t, http.StatusOK, status)
	assert.Equal(t, 2, resp.ProtoMajor)
	old := resp.TLS.PeerCertificates[0].SerialNumber
	status, _ = inspect(client(authority.issue(t, "nobody.example").pair))
	assert.Equal(t, http.StatusForbidden, status)
	status, _ = inspect(client())
	assert.Equal(t, http.StatusUnauthorized, status)
	_, err := client(another.issue(t, "web.example").pair).Get("https://" + p.addr + "/v1/locks/web%3Ak")
	assert.Error(t, err, "nobody has signed it that is trusted")

	withToken := lock.New(httplock.New("https://"+p.addr, httplock.WithHTTPClient(client()), httplock.WithBearerToken(webToken)))
	l, err := withToken.Lock(t.Context(), "web:k")
	require.NoError(t, err)
	require.NoError(t, l.Release(t.Context()))

	renewed, renewedKey := authority.issue(t, "localhost").files(t)
	require.NoError(t, os.Rename(renewed, cert))
	p.signal(syscall.SIGHUP)
	p.await("the files were not read anew: all old ones stay") // the key is that of the old certificate
	_, resp = inspect(client())
	assert.Equal(t, old, resp.TLS.PeerCertificates[0].SerialNumber)
	require.NoError(t, os.Rename(renewedKey, key))
	p.signal(syscall.SIGHUP)
	p.await("the files were read anew")
	_, resp = inspect(client())
	assert.NotEqual(t, old, resp.TLS.PeerCertificates[0].SerialNumber)
}
