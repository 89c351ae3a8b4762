package main

import (
	"context"
	"fmt"
	"html"
	"iter"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/internal/storetest"
	"github.com/seed-215fdefa/lock/internal/testserver"
	inmemory "github.com/seed-215fdefa/lock/memory"
)

// site is a lockd in this process.
type site struct {
	*httptest.Server
	t     *testing.T
	store lock.Locker
	audit string
}

// browse starts a lockd on a store, with tokens if there are some.
func browse(t *testing.T, store, tokens string) *site {
	t.Helper()
	audit := filepath.Join(t.TempDir(), "audit")
	s, err := open(config{store: store, maxWaiters: 1000, tokens: tokens, audit: audit}, slog.New(slog.DiscardHandler))
	require.NoError(t, err)
	server := httptest.NewServer(s)
	t.Cleanup(func() {
		s.handler.Close()
		server.Close()
		assert.NoError(t, s.store.Close())
	})
	return &site{server, t, s.store, audit}
}

// visit returns the status and the HTML of a page, as a browser with this token would get it.
func (s *site) visit(method, path, token string, header ...string) (*http.Response, string) {
	s.t.Helper()
	req, err := http.NewRequest(method, s.URL+path, http.NoBody)
	require.NoError(s.t, err)
	if token != "" {
		req.SetBasicAuth("whoever", token)
	}
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	client := &http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	resp, err := client.Do(req)
	require.NoError(s.t, err)
	_, body := answer(s.t, resp)
	return resp, body
}

// get returns the HTML of a page that is there.
func (s *site) get(path string) string {
	s.t.Helper()
	resp, body := s.visit(http.MethodGet, path, "")
	require.Equal(s.t, http.StatusOK, resp.StatusCode, body)
	require.Contains(s.t, resp.Header.Get("Content-Security-Policy"), "default-src 'none'; style-src 'self'; script-src 'self'")
	require.Contains(s.t, resp.Header.Get("Content-Security-Policy"), "frame-ancestors 'none'")
	return body
}

// onStores runs f on a site over each of two stores.
func onStores(t *testing.T, f func(t *testing.T, s *site)) {
	t.Parallel()
	t.Run("memory", func(t *testing.T) { f(t, browse(t, "memory:", "")) })
	t.Run("redis", func(t *testing.T) {
		f(t, browse(t, "redis://"+testserver.SharedRedis(t).Addr()+"?prefix="+testserver.Prefix(), ""))
	})
}

const hostile = `"><script>alert(1)</script><img src=x onerror=alert(1)>`

// TestPage has keys, metadata and prefixes that are hostile, or do not show.
func TestPage(t *testing.T) {
	onStores(t, func(t *testing.T, s *site) {
		assert.Contains(t, s.get("/"), "No lock is held or waited for.")
		keys := []string{hostile, "a\nb", "a\r\nb", "nul\x00", "..", " ", "\u202egnp.exe", "a/b:force", "50%", "ключ", strings.Repeat("k", 512)}
		for _, key := range keys {
			req := storetest.Request(key)
			req.Metadata = map[string]string{"host": hostile, hostile: "\u202e"}
			storetest.Acquire(t, s.store, req)
			storetest.Waits(t, s.store, storetest.Request(key))
		}
		page := s.get("/")
		assert.Contains(t, page, fmt.Sprint(len(keys), " locks are held"))
		assert.NotContains(t, page, "\u202e")
		assert.Contains(t, page, `\u202egnp.exe`)
		found := map[string]bool{}
		for _, link := range regexp.MustCompile(`<th scope="row"><a href="(.*?)"`).FindAllStringSubmatch(page, -1) {
			at, err := url.Parse(html.UnescapeString(link[1]))
			require.NoError(t, err)
			key := at.Query().Get("key")
			found[key] = true
			shown := s.get(html.UnescapeString(link[1]))
			assert.NotContains(t, shown, "<script>alert")
			assert.NotContains(t, shown, "<img")
			force := regexp.MustCompile(`href="(/force.*?)"`).FindStringSubmatch(shown)
			require.NotNil(t, force, key)
			confirm := s.get(html.UnescapeString(force[1]))
			assert.Contains(t, confirm, "1 wait: the next in line has the lock")
			form := regexp.MustCompile(`<form method="post" action="(.*?)"`).FindStringSubmatch(confirm)
			before := storetest.Inspect(t, s.store, key).Holders[0].Owner
			resp, body := s.visit(http.MethodPost, html.UnescapeString(form[1]), "", "Origin", s.URL)
			require.Equal(t, http.StatusSeeOther, resp.StatusCode, body)
			storetest.Eventually(t, "the next holder", func() bool {
				rec := storetest.Inspect(t, s.store, key)
				return rec.HolderCount == 1 && rec.Holders[0].Owner != before
			})
			assert.Regexp(t, "forced.*\n.*"+before, s.get(resp.Header.Get("Location")))
		}
		for _, key := range keys {
			assert.True(t, found[key], "%q", key)
		}
		assert.NotContains(t, page, "<script>alert")
		assert.NotContains(t, page, "<img")
		assert.NotContains(t, s.get("/?prefix="+url.QueryEscape(hostile)), "<script>alert")
		assert.Contains(t, s.get("/lock?key=free"), "Nobody holds it.")
		for _, path := range []string{"/lock", "/lock?key=%ff", "/force", "/lock?key=" + strings.Repeat("k", 513)} {
			resp, body := s.visit(http.MethodGet, path, "")
			assert.Equal(t, http.StatusBadRequest, resp.StatusCode, path)
			assert.Contains(t, body, "lock: ", path)
		}
		resp, _ := s.visit(http.MethodPost, "/force", "")
		assert.Equal(t, http.StatusBadRequest, resp.StatusCode)
		resp, _ = s.visit(http.MethodPost, "/", "")
		assert.Equal(t, http.StatusMethodNotAllowed, resp.StatusCode)
	})
}

// TestPageForce confirms what another site asks for, what is not there, and what one may do.
func TestPageForce(t *testing.T) {
	t.Parallel()
	s := browse(t, "memory:", write(t, "tokens", tokensFile()))
	storetest.Acquire(t, s.store, lock.Request{Key: "web:k", Owner: "victim", TTL: time.Hour})
	const path = "/force?key=web%3Ak&owner=victim"
	for _, header := range [][]string{{"Sec-Fetch-Site", "cross-site"}, {"Origin", "https://evil.example"}, {"Origin", "null"}} {
		resp, body := s.visit(http.MethodPost, path, opsToken, header...)
		assert.Equal(t, http.StatusForbidden, resp.StatusCode)
		assert.Contains(t, body, "another site: nothing was done")
	}
	resp, _ := s.visit(http.MethodPost, path, "", "Origin", s.URL)
	assert.Equal(t, http.StatusUnauthorized, resp.StatusCode)
	resp, body := s.visit(http.MethodPost, path, webToken, "Origin", s.URL)
	assert.Equal(t, http.StatusForbidden, resp.StatusCode, body)
	assert.Equal(t, 1, storetest.Inspect(t, s.store, "web:k").HolderCount)
	_, body = s.visit(http.MethodGet, "/lock?key=web%3Ak", webToken)
	assert.NotContains(t, body, "/force?")

	resp, _ = s.visit(http.MethodPost, path, opsToken, "Origin", s.URL)
	assert.Equal(t, http.StatusSeeOther, resp.StatusCode)
	assert.Zero(t, storetest.Inspect(t, s.store, "web:k").HolderCount)
	resp, body = s.visit(http.MethodPost, path, opsToken, "Origin", s.URL)
	assert.Equal(t, http.StatusGone, resp.StatusCode)
	assert.Contains(t, body, "Nothing was done: the grant does not exist any more")
	_, body = s.visit(http.MethodGet, path, opsToken)
	assert.Contains(t, body, "does not hold")
	b, err := os.ReadFile(s.audit)
	require.NoError(t, err)
	assert.Contains(t, string(b), `"caller":"ops"`)
	assert.Contains(t, string(b), `"action":"force","key":"web:k","owner":"victim","token":0,"outcome":"ok"`)
	assert.Contains(t, string(b), `"caller":"web"`)
}

// TestPageRights has the token as the password, as the API has, too.
func TestPageRights(t *testing.T) {
	t.Parallel()
	s := browse(t, "memory:", write(t, "tokens", tokensFile()))
	for _, c := range []struct {
		path, token string
		status      int
		says        string
	}{
		{"/", "", 401, "a token as the password"},
		{"/", "wrong-token-0123456789", 401, ""},
		{"/lock?key=k", "", 401, ""},
		{"/ui.css", "", 200, "prefers-color-scheme"},
		{"/", opsToken, 200, "You are ops"},
		{"/", webToken, 403, `<a href="/?prefix=web%3a">web:</a>`},
		{"/?prefix=web:", webToken, 200, "You are web"},
		{"/lock?key=web:k", webToken, 200, "Nobody holds it."},
		{"/lock?key=k", webToken, 403, ""},
		{"/force?key=k&owner=o", webToken, 403, ""},
		{"/v1/locks/web%3Ak", webToken, 200, ""},
		{"/v1/locks/web%3Ak", "", 401, ""},
	} {
		resp, body := s.visit(http.MethodGet, c.path, c.token)
		assert.Equal(t, c.status, resp.StatusCode, c.path)
		assert.Contains(t, body, c.says, c.path)
		if c.status == http.StatusUnauthorized {
			assert.Equal(t, []string{"Bearer", `Basic realm="lockd", charset="UTF-8"`}, resp.Header.Values("WWW-Authenticate"), c.path)
		}
	}
}

// broken is a store that fails after a second.
type broken struct{ *inmemory.Locker }

func (broken) Inspect(context.Context, string) (lock.Record, error) {
	time.Sleep(time.Second)
	return lock.Record{}, lock.ErrUnavailable
}

func (b broken) List(ctx context.Context, _ string) iter.Seq2[lock.Record, error] {
	return func(yield func(lock.Record, error) bool) { yield(b.Inspect(ctx, "")) }
}

// TestPageIsCounted counts what the store said, and how long it took.
func TestPageIsCounted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := opened(t, func(s *service) { s.store.Locker = broken{inmemory.New()} })
		get := func(path, token string) string {
			r, w := httptest.NewRequest(http.MethodGet, path, http.NoBody), httptest.NewRecorder()
			r.SetBasicAuth("whoever", token)
			s.ServeHTTP(w, r)
			return w.Body.String()
		}
		for _, path := range []string{"/", "/lock?key=k", "/lock", "/force?key=k&owner=o"} {
			get(path, opsToken)
		}
		get("/", webToken)
		get("/", "")
		metrics := get("/metrics", "")
		for _, metric := range []string{
			`requests_total{action="list",outcome="unavailable"} 1`, `requests_total{action="inspect",outcome="unavailable"} 2`,
			`requests_total{action="inspect",outcome="invalid"} 1`, `requests_total{action="list",outcome="forbidden"} 1`,
			`requests_total{action="list",outcome="unauthenticated"} 1`,
			`request_duration_seconds_sum{action="list"} 1`, `request_duration_seconds_sum{action="inspect"} 2`,
		} {
			assert.Contains(t, metrics, "\nlockd_"+metric+"\n")
		}
		assert.NotContains(t, metrics, `outcome="ok"`)
	})
}

// busy has 500 locks and more, with lines of 50, of which some are shown.
func busy(t *testing.T, s *site, locks int) {
	ctx, cancel := context.WithCancel(context.Background())
	var waits sync.WaitGroup
	t.Cleanup(waits.Wait)
	t.Cleanup(cancel)
	for i := range locks {
		req := lock.Request{
			Key: fmt.Sprintf("app%d:job/%03d", i%7, i), Owner: fmt.Sprintf("holder-%03d", i), TTL: time.Duration(1+i%90) * time.Minute,
			Metadata: map[string]string{"host": fmt.Sprintf("web-%02d", i%20), "pid": fmt.Sprint(1000 + i)},
		}
		storetest.Acquire(t, s.store, req)
		for j := range i % 51 {
			req := req
			req.Owner, req.Wait = fmt.Sprintf("waiter-%03d-%02d", i, j), true
			placed := make(chan struct{})
			req.Waiting = func(lock.Record) { close(placed) }
			waits.Go(func() { _, _ = s.store.Acquire(ctx, req) })
			<-placed
		}
	}
}

func TestPageIsCut(t *testing.T) {
	t.Parallel()
	s := browse(t, "memory:", "")
	busy(t, s, 510)
	begun := time.Now()
	page := s.get("/")
	t.Logf("%d bytes in %v", len(page), time.Since(begun))
	assert.Contains(t, page, "The 500 of 510 locks with the longest lines are shown")
	assert.Equal(t, 500, strings.Count(page, `<th scope="row">`))
	page = s.get("/lock?key=app1%3Ajob%2F050")
	assert.Contains(t, page, "The first 16 of 50 waiters are shown")
	for i := range 9_500 {
		storetest.Acquire(t, s.store, storetest.Request(fmt.Sprint("more", i)))
	}
	assert.Contains(t, s.get("/"), "some of more than 10000 locks")
}

// deadlocked has n who wait for each other in a cycle.
func deadlocked(t *testing.T, s *site, n int) {
	ctx, cancel := context.WithCancel(context.Background())
	var waits sync.WaitGroup
	t.Cleanup(waits.Wait)
	t.Cleanup(cancel)
	for i := range n {
		storetest.Acquire(t, s.store, lock.Request{Key: fmt.Sprint("account:", i), Owner: fmt.Sprint("transfer-", i), TTL: time.Hour})
	}
	for i := range n {
		placed := make(chan struct{})
		waits.Go(func() {
			_, _ = s.store.Acquire(ctx, lock.Request{
				Key: fmt.Sprint("account:", (i+1)%n), Owner: fmt.Sprint("waiter-", i), TTL: time.Hour, Wait: true,
				Under: []string{fmt.Sprint("transfer-", i)}, Metadata: map[string]string{"host": fmt.Sprint("bank-", i), "pid": "42"},
				Waiting: func(lock.Record) { close(placed) },
			})
		})
		<-placed
	}
}

func TestPageOfADeadlock(t *testing.T) {
	onStores(t, func(t *testing.T, s *site) {
		deadlocked(t, s, 3)
		page := s.get("/")
		assert.Contains(t, page, "Deadlock of 3")
		assert.Equal(t, 3, strings.Count(page, `class="arrow"`))
		assert.Contains(t, page, `<span class="who">host=bank-2, pid=42</span> <code>waiter-2</code> holds <a href="/lock?key=account%3a2">account:2</a> and waits for <a href="/lock?key=account%3a0">account:0</a>`)
		youngest := regexp.MustCompile(`<a href="(/force\?.*?)">end the youngest`).FindStringSubmatch(page)
		require.NotNil(t, youngest)
		assert.Equal(t, "/force?key=account%3a2&owner=transfer-2", html.UnescapeString(youngest[1]))
		resp, _ := s.visit(http.MethodPost, html.UnescapeString(youngest[1]), "")
		assert.Equal(t, http.StatusSeeOther, resp.StatusCode)
		assert.NotContains(t, s.get("/"), "Deadlock of")
		assert.NotContains(t, s.get("/?prefix=account:1"), "Deadlock of")
	})
}
