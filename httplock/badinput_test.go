package httplock_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
	"unsafe"

	"github.com/stretchr/testify/require"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/httplock"
	"github.com/seed-215fdefa/lock/internal/servicetest"
	"github.com/seed-215fdefa/lock/internal/storetest"
	"github.com/seed-215fdefa/lock/memory"
)

// answer is what the service says to a request.
type answer struct {
	Status int
	Header http.Header
	Type   string `json:"type"`
	Title  string `json:"title"`
	Detail string `json:"detail"`
	Reason string `json:"reason"`
}

// ask sends a request as a stranger may: path is taken as it is.
func ask(tb testing.TB, s *servicetest.Service, method, path, media, body string) answer {
	tb.Helper()
	req, err := http.NewRequestWithContext(storetest.Bounded(tb), method, "http://"+s.Addr+path, strings.NewReader(body))
	require.NoError(tb, err)
	if media != "" {
		req.Header.Set("Content-Type", media)
	}
	c := http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: storetest.Patience}
	resp, err := c.Do(req)
	require.NoError(tb, err)
	defer func() { _ = resp.Body.Close() }()
	b, err := io.ReadAll(resp.Body)
	require.NoError(tb, err)
	a := answer{Status: resp.StatusCode, Header: resp.Header}
	if len(b) > 0 {
		require.NoError(tb, json.Unmarshal(b, &a), "%s", b)
	}
	if resp.StatusCode >= 400 {
		require.Equal(tb, "application/problem+json", resp.Header.Get("Content-Type"))
		require.NotEmpty(tb, a.Title)
	}
	documented(tb, method, path, resp)
	return a
}

func TestBadInput(t *testing.T) {
	t.Parallel()
	st := onMemory(t)
	s := serve(t, st.Open)
	const good = `{"owner":"a","ttl":"30s"}`
	with := func(member string) string { return `{"owner":"a","ttl":"30s",` + member + `}` }
	for _, c := range []struct {
		name, method, path, media, body string
		status                          int
		kind, says                      string
	}{
		{"a root", "GET", "/", "", "", 404, "not-found", ""},
		{"another version", "POST", "/v2/locks/k:acquire", "application/json", good, 404, "not-found", ""},
		{"an unknown verb", "POST", "/v1/locks/k:steal", "application/json", good, 404, "not-found", "verbs"},
		{"no verb", "POST", "/v1/locks/k", "application/json", good, 405, "method-not-allowed", "GET"},
		{"a wrong method", "GET", "/v1/locks/k:acquire", "", "", 405, "method-not-allowed", "POST"},
		{"PUT", "PUT", "/v1/locks/k:acquire", "application/json", good, 405, "method-not-allowed", "POST"},
		{"DELETE", "DELETE", "/v1/locks/k", "", "", 405, "method-not-allowed", "GET"},
		{"a form", "POST", "/v1/locks/k:acquire", "application/x-www-form-urlencoded", good, 415, "media-type", ""},
		{"no media type", "POST", "/v1/locks/k:acquire", "", good, 415, "media-type", ""},
		{"no key", "POST", "/v1/locks/:acquire", "application/json", good, 400, "invalid", "key is empty"},
		{"no key to inspect", "GET", "/v1/locks/", "", "", 400, "invalid", "key is empty"},
		{"a long key", "POST", "/v1/locks/" + strings.Repeat("k", 513) + ":acquire", "application/json", good, 400, "invalid", "513 bytes"},
		{"a key that is not UTF-8", "POST", "/v1/locks/%ff:acquire", "application/json", good, 400, "invalid", "UTF-8"},
		{"a key with a bare slash", "POST", "/v1/locks/a/b:acquire", "application/json", good, 404, "not-found", "percent-encoded"},
		{"a key that is not base64", "POST", "/v1/locks/=%2B:acquire", "application/json", good, 400, "invalid", ""},
		{"a key of odd base64", "POST", "/v1/locks/=QQ==:acquire", "application/json", good, 400, "invalid", "base64"},
		{"no body", "POST", "/v1/locks/k:acquire", "application/json", "", 400, "invalid", "JSON"},
		{"no JSON", "POST", "/v1/locks/k:acquire", "application/json", "owner=a", 400, "invalid", "JSON"},
		{"an array", "POST", "/v1/locks/k:acquire", "application/json", "[" + good + "]", 400, "invalid", "JSON"},
		{"half of it", "POST", "/v1/locks/k:acquire", "application/json", good[:9], 400, "invalid", "JSON"},
		{"two of it", "POST", "/v1/locks/k:acquire", "application/json", good + good, 400, "invalid", "behind"},
		{"an unknown field", "POST", "/v1/locks/k:acquire", "application/json", with(`"ttl_ms":5`), 400, "invalid", "ttl_ms"},
		{"a body that is not UTF-8", "POST", "/v1/locks/k:acquire", "application/json", with(`"metadata":{"a":"` + "\xff" + `"}`), 400, "invalid", "UTF-8"},
		{"a large body", "POST", "/v1/locks/k:acquire", "application/json", with(`"metadata":{"a":"` + strings.Repeat("x", 70_000) + `"}`), 413, "too-large", "65536"},
		{"much metadata", "POST", "/v1/locks/k:acquire", "application/json", with(`"metadata":{"a":"` + strings.Repeat("x", 4097) + `"}`), 400, "invalid", "4098 bytes"},
		{"a deep body", "POST", "/v1/locks/k:acquire", "application/json", strings.Repeat("[", 20_000), 400, "invalid", ""},
		{"no owner", "POST", "/v1/locks/k:acquire", "application/json", `{"ttl":"30s"}`, 400, "invalid", "owner"},
		{"an odd owner", "POST", "/v1/locks/k:acquire", "application/json", `{"owner":"a b","ttl":"30s"}`, 400, "invalid", "owner"},
		{"no TTL", "POST", "/v1/locks/k:acquire", "application/json", `{"owner":"a"}`, 400, "invalid", "ttl is missing"},
		{"a TTL of 0", "POST", "/v1/locks/k:acquire", "application/json", `{"owner":"a","ttl":"0s"}`, 400, "invalid", "ttl is missing or 0"},
		{"a negative TTL", "POST", "/v1/locks/k:acquire", "application/json", `{"owner":"a","ttl":"-1s"}`, 400, "invalid", "TTL -1s"},
		{"a TTL of a century", "POST", "/v1/locks/k:acquire", "application/json", `{"owner":"a","ttl":"876000h"}`, 400, "invalid", "at most"},
		{"a TTL beyond all", "POST", "/v1/locks/k:acquire", "application/json", `{"owner":"a","ttl":"9000000h"}`, 400, "invalid", "at most 8784h"},
		{"a TTL without a unit", "POST", "/v1/locks/k:acquire", "application/json", `{"owner":"a","ttl":30}`, 400, "invalid", "duration 30"},
		{"a TTL below the store's", "POST", "/v1/locks/k:acquire", "application/json", `{"owner":"a","ttl":"1us"}`, 400, "invalid", "at least"},
		{"a head start of a try", "POST", "/v1/locks/k:acquire", "application/json", with(`"head_start":"1s"`), 400, "invalid", "head start"},
		{"a renewal without a token", "POST", "/v1/locks/k:renew", "application/json", good, 400, "invalid", "token"},
		{"a renewal without a TTL", "POST", "/v1/locks/k:renew", "application/json", `{"owner":"a","token":7}`, 400, "invalid", "ttl is missing"},
		{"a renewal of nothing", "POST", "/v1/locks/k:renew", "application/json", with(`"token":7`), 410, "lost", ""},
		{"a token that is negative", "POST", "/v1/locks/k:renew", "application/json", with(`"token":-7`), 400, "invalid", "token"},
		{"a token too large", "POST", "/v1/locks/k:renew", "application/json", with(`"token":9007199254740992`), 400, "invalid", "at most 9007199254740991"},
		{"a release of one too large", "POST", "/v1/locks/k:release", "application/json", `{"owner":"b","token":9007199254740992}`, 400, "invalid", "at most 9007199254740991"},
		{"a release of nothing", "POST", "/v1/locks/k:release", "application/json", `{"owner":"b","token":7}`, 410, "lost", ""},
		{"an undo of nothing", "POST", "/v1/locks/k:release", "application/json", `{"owner":"b"}`, 204, "", ""},
		{"force without a holder", "POST", "/v1/locks/k:force", "application/json", `{"owner":"b"}`, 410, "lost", ""},
		{"a list with an unknown parameter", "GET", "/v1/locks?prfix=a", "", "", 400, "invalid", `"prfix"`},
		{"a list with two prefixes", "GET", "/v1/locks?prefix=a&prefix=b", "", "", 400, "invalid", "2 times"},
		{"a list with a malformed prefix", "GET", "/v1/locks?prefix=%zz", "", "", 400, "invalid", "prefix=%zz"},
		{"events with an unknown parameter", "GET", "/v1/events?prfix=a", "", "", 400, "invalid", `"prfix"`},
		{"events with a malformed prefix", "GET", "/v1/events?prefix=%zz", "", "", 400, "invalid", "prefix=%zz"},
		{"a key with a parameter", "GET", "/v1/locks/k?prefix=a", "", "", 400, "invalid", `"prefix"`},
		{"a verb with a parameter", "POST", "/v1/locks/k:acquire?wait=true", "application/json", good, 400, "invalid", `"wait"`},
		{"a prefix that is not UTF-8", "GET", "/v1/locks?prefix=%ff", "", "", 400, "invalid", "UTF-8"},
	} {
		a := ask(t, s, c.method, c.path, c.media, c.body)
		require.Equal(t, c.status, a.Status, "%s: %+v", c.name, a)
		require.Contains(t, a.Detail+a.Header.Get("Allow"), c.says, "%s", c.name)
		if c.kind != "" {
			require.Equal(t, "urn:httplock:"+c.kind, a.Type, "%s", c.name)
		}
	}
	for rec, err := range lockAdmin(t, st.Open()).List(t.Context(), "") {
		require.NoError(t, err)
		t.Errorf("held, though nobody asked for it in a way that is valid: %+v", rec)
	}
}

func lockAdmin(tb testing.TB, l lock.Locker) lock.Admin {
	tb.Helper()
	admin, ok := lock.As[lock.Admin](l)
	require.True(tb, ok)
	return admin
}

// TestKeyIsACopy: a key is remembered for minutes, and would keep all that its request's line has.
func TestKeyIsACopy(t *testing.T) {
	segment := strings.Repeat("k", 8)
	key, err := httplock.UnescapeKey(segment)
	require.NoError(t, err)
	require.Equal(t, segment, key)
	require.NotSame(t, unsafe.StringData(segment), unsafe.StringData(key))
}

// A key that was encoded twice is another key, that with percent signs in it.
func TestKeyIsDecodedOnce(t *testing.T) {
	t.Parallel()
	st := onMemory(t)
	s := serve(t, st.Open)
	for path, key := range map[string]string{
		"a%2Fb": "a/b", "a%252Fb": "a%2Fb", "a%3Ab": "a:b", "a:b": "a:b", "=AAE": "\x00\x01", "%3DAAE": "=AAE", "%2E%2E": "..", "a%20+b": "a +b",
	} {
		require.Equal(t, http.StatusOK, ask(t, s, "POST", "/v1/locks/"+path+":acquire", "application/json", `{"owner":"o","ttl":"30s"}`).Status)
		rec, err := st.Open().Inspect(t.Context(), key)
		require.NoError(t, err)
		require.Len(t, rec.Holders, 1, "%s is %q", path, key)
		require.Equal(t, http.StatusNoContent, ask(t, s, "POST", "/v1/locks/"+path+":release", "application/json", `{"owner":"o"}`).Status)
		s.Restart() // which forgets that the owner was undone
	}
}

func TestAuthorization(t *testing.T) {
	t.Parallel()
	const secret = "password-of-the-store"
	logged := make(chan string, 100)
	s := serve(t, onMemory(t).Open, httplock.WithErrorLog(func(_ *http.Request, err error) { logged <- err.Error() }),
		httplock.WithAuthorization(func(r *http.Request, action httplock.Action, key string) error {
			switch {
			case r.Header.Get("Authorization") != "Bearer right":
				return fmt.Errorf("%w: %s", httplock.ErrUnauthenticated, secret)
			case action == httplock.ActionForce, !strings.HasPrefix(key, "mine:"):
				return errors.New(secret)
			}
			return nil
		}))
	url := "http://" + s.Addr
	open := func(token string) *httplock.Locker {
		l := httplock.New(url, httplock.WithBearerToken(token))
		t.Cleanup(func() { _ = l.Close() })
		return l
	}
	right, wrong := open("right"), open("wrong-token")
	g := storetest.Acquire(t, right, storetest.Request("mine:1"))
	_, err := right.Acquire(t.Context(), storetest.Request("yours:1"))
	status(t, http.StatusForbidden, err)
	status(t, http.StatusForbidden, right.ForceRelease(t.Context(), "mine:1", g.Owner))
	for _, err := range right.List(t.Context(), "") {
		status(t, http.StatusForbidden, err)
	}
	status(t, http.StatusForbidden, right.Watch(t.Context(), "yours:1", func() {}))
	_, err = wrong.Inspect(t.Context(), "mine:1")
	status(t, http.StatusUnauthorized, err)
	require.NotContains(t, err.Error(), secret)
	require.NotContains(t, err.Error(), "wrong-token")
	require.Contains(t, <-logged, secret)
	status(t, http.StatusUnauthorized, wrong.Release(t.Context(), lock.Grant{Key: "mine:1", Owner: g.Owner}))
	storetest.Release(t, right, g)
}

func status(tb testing.TB, want int, err error) {
	tb.Helper()
	var e *httplock.ServiceError
	require.ErrorAs(tb, err, &e)
	require.Equal(tb, want, e.Status)
}

// What a store says of itself is for the log.
func TestStoreErrorsAreNotTold(t *testing.T) {
	t.Parallel()
	store := memory.NewFaulty()
	logged := make(chan string, 100)
	s := serve(t, func() lock.Locker { return store }, httplock.WithErrorLog(func(_ *http.Request, err error) { logged <- err.Error() }))
	store.Fail(errors.New("dial db.internal as admin: refused"))
	a := ask(t, s, "POST", "/v1/locks/k:acquire", "application/json", `{"owner":"a","ttl":"30s"}`)
	require.Equal(t, http.StatusServiceUnavailable, a.Status)
	require.NotContains(t, a.Detail+a.Title, "internal")
	require.Equal(t, "1", a.Header.Get("Retry-After"))
	require.Contains(t, <-logged, "db.internal")
	l := httplock.New("http://" + s.Addr)
	defer func() { _ = l.Close() }()
	_, err := l.Acquire(t.Context(), storetest.Request("k"))
	require.ErrorIs(t, err, lock.ErrUnavailable)
	store.Fail(lock.ErrClosed)
	_, err = l.Acquire(t.Context(), storetest.Request("k"))
	require.ErrorIs(t, err, lock.ErrClosed)
	store.Heal() // a store that comes later
	storetest.Release(t, l, storetest.Acquire(t, l, storetest.Request("k")))
}

func TestErrorsAreRebuilt(t *testing.T) {
	t.Parallel()
	st := onMemory(t)
	l := protocol().Connect(t, serve(t, st.Open).Addr, st)
	req := storetest.Request("k")
	req.Metadata = map[string]string{"why": "über\x00 <&>"}
	g := storetest.Acquire(t, l, req)
	_, err := l.Acquire(t.Context(), storetest.Request("k"))
	var held *lock.HeldError
	require.ErrorAs(t, err, &held)
	require.Equal(t, g.Owner, held.Record.Holders[0].Owner)
	require.Equal(t, req.Metadata, held.Record.Holders[0].Metadata)
	require.Equal(t, g.Token, held.Record.Holders[0].Token)
	require.NoError(t, l.ForceRelease(t.Context(), "k", g.Owner))
	_, err = l.Renew(t.Context(), g)
	var lost *lock.LostError
	require.ErrorAs(t, err, &lost)
	require.Equal(t, lock.ReasonForced, lost.Reason)
	require.Equal(t, g.Token, lost.Token)
	require.ErrorIs(t, l.ForceRelease(t.Context(), "k", g.Owner), lock.ErrLost)
	require.NoError(t, l.Close())
	_, err = l.Acquire(t.Context(), req)
	require.ErrorIs(t, err, lock.ErrClosed)
}

// bare has neither Admin nor Watcher, nor anything else that need not be.
type bare struct{ lock.Locker }

func (bare) Capabilities() lock.Capabilities { return lock.Capabilities{Store: "bare"} }

func TestUnsupported(t *testing.T) {
	t.Parallel()
	s := serve(t, func() lock.Locker { return bare{memory.New()} })
	l := httplock.New("http://" + s.Addr) // not connected: the service decides
	defer func() { _ = l.Close() }()
	req := storetest.Request("k")
	req.Shared = true
	_, err := l.Acquire(t.Context(), req)
	require.ErrorIs(t, err, lock.ErrUnsupported)
	require.ErrorIs(t, l.Watch(t.Context(), "k", func() {}), lock.ErrUnsupported)
	require.ErrorIs(t, l.ForceRelease(t.Context(), "k", "o"), lock.ErrUnsupported)
	for _, err := range l.List(t.Context(), "") {
		require.ErrorIs(t, err, lock.ErrUnsupported)
	}
}

func TestBadURL(t *testing.T) {
	for _, url := range []string{"", "localhost:8080", "ftp://h", "http://", "http://h?x=1", "http://u:pass word@h", "http://h/#f"} {
		l := httplock.New(url)
		_, err := l.Inspect(t.Context(), "k")
		require.ErrorIs(t, err, lock.ErrInvalid, "%q", url)
		require.NotContains(t, err.Error(), "pass")
		require.NoError(t, l.Close())
	}
}

// A handler with a nil option, which may have been to keep somebody out, lets nobody in.
func TestNilOption(t *testing.T) {
	t.Parallel()
	s := serve(t, onMemory(t).Open, nil)
	l := httplock.New("http://" + s.Addr)
	defer l.Close()
	_, err := l.Acquire(t.Context(), storetest.Request("k"))
	status(t, http.StatusBadRequest, err)
	require.ErrorIs(t, err, lock.ErrInvalid)
	require.ErrorContains(t, err, "option is nil")
	_, err = l.Inspect(t.Context(), "k")
	status(t, http.StatusBadRequest, err)
}

// A handler without a Locker says so to every request.
func TestNilLocker(t *testing.T) {
	t.Parallel()
	var none *memory.Locker
	for _, of := range []lock.Locker{nil, none} {
		h := httplock.NewHandler(of)
		for _, url := range []string{"/v1", "/v1/locks", "/v1/locks/k", "/v1/events"} {
			w := httptest.NewRecorder()
			h.ServeHTTP(w, httptest.NewRequest(http.MethodGet, url, nil))
			if url != "/v1" { // which says what the store can do: nothing
				require.Equal(t, http.StatusBadRequest, w.Code, url)
				require.Contains(t, w.Body.String(), "Locker is nil", url)
			}
		}
		h.Close()
	}
}

// A try of a service that is not there fails at once, and says why.
func TestServiceIsDown(t *testing.T) {
	l := httplock.New("http://127.0.0.1:1")
	defer func() { _ = l.Close() }()
	req := storetest.Request("k")
	for _, req.Wait = range []bool{false, true} {
		_, err := l.Acquire(t.Context(), req)
		var op *net.OpError
		require.ErrorAs(t, err, &op)
	}
}

// What answers is some other server.
func TestStranger(t *testing.T) {
	for name, f := range map[string]http.HandlerFunc{
		"HTML": func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("<html>")) },
		"nothing": func(w http.ResponseWriter, r *http.Request) {
			if strings.HasSuffix(r.URL.Path, ":acquire") {
				w.WriteHeader(http.StatusNoContent)
			}
		},
		"not here": http.NotFound,
		"redirect": func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/login", http.StatusFound) },
	} {
		t.Run(name, func(t *testing.T) {
			server := httptest.NewServer(f)
			defer server.Close()
			l := httplock.New(server.URL)
			defer func() { _ = l.Close() }()
			req := storetest.Request("k")
			for _, req.Wait = range []bool{false, true} {
				_, err := l.Acquire(t.Context(), req)
				require.Error(t, err)
				require.NotErrorIs(t, err, lock.ErrHeld)
			}
			g := lock.Grant{Key: "k", Owner: req.Owner, Token: 1, TTL: req.TTL, Start: time.Now()}
			require.Error(t, l.Release(t.Context(), g), "nothing was released")
			admin, _ := lock.As[lock.Admin](l)
			require.Error(t, admin.ForceRelease(t.Context(), "k", "o"))
		})
	}
}

// A client that sends half a request holds nothing, and is not waited for forever.
func TestHalfARequest(t *testing.T) {
	t.Parallel()
	st := onMemory(t)
	s := serve(t, st.Open)
	conn, err := net.Dial("tcp", s.Addr)
	require.NoError(t, err)
	_, err = io.WriteString(conn, "POST /v1/locks/k:acquire HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\nContent-Length: 25\r\n\r\n{\"owner\":\"a\",")
	require.NoError(t, err)
	require.NoError(t, conn.SetReadDeadline(time.Now().Add(time.Minute)))
	b, _ := io.ReadAll(conn) // until the service has had enough
	require.True(t, bytes.Contains(b, []byte(" 408 ")) || len(b) == 0, "%s", b)
	require.NoError(t, conn.Close())
	rec, err := st.Open().Inspect(context.Background(), "k")
	require.NoError(t, err)
	require.Empty(t, rec.Holders)
}

// TestUnreadBodies has the body of a refused request not arrive: the connection ends all the same.
func TestUnreadBodies(t *testing.T) {
	t.Parallel()
	s := serve(t, onMemory(t).Open, httplock.WithAuthorization(func(*http.Request, httplock.Action, string) error {
		return httplock.ErrUnauthenticated
	}))
	conn, err := net.Dial("tcp", s.Addr)
	require.NoError(t, err)
	defer func() { _ = conn.Close() }()
	_, err = io.WriteString(conn, "POST /v1/locks/k:acquire HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\nContent-Length: 25\r\n\r\n")
	require.NoError(t, err)
	require.NoError(t, conn.SetReadDeadline(time.Now().Add(time.Minute)))
	b, err := io.ReadAll(conn)
	require.NoError(t, err, "the service has not closed it")
	require.Contains(t, string(b), " 401 ")
}

func TestTooManyWait(t *testing.T) {
	t.Parallel()
	st := onMemory(t)
	s := serve(t, st.Open, httplock.WithMaxWaiters(3, 2))
	g := storetest.Acquire(t, st.Open(), storetest.Request("k"))
	wait := func(owner string) answer {
		return ask(t, s, "POST", "/v1/locks/k:acquire", "application/json", `{"owner":"`+owner+`","ttl":"30s","wait":true}`)
	}
	var a answer
	var last string
	storetest.Eventually(t, "a refusal", func() bool { // whom nobody polls is given up soon
		owner := rand.Text()
		if a = wait(owner); a.Status == http.StatusAccepted {
			last = owner
		}
		return a.Status != http.StatusAccepted
	})
	require.Equal(t, http.StatusTooManyRequests, a.Status)
	require.Contains(t, a.Detail, "2 of this client")
	ask(t, s, "POST", "/v1/locks/k:release", "application/json", `{"owner":"`+last+`"}`)
	require.Equal(t, http.StatusAccepted, wait("c").Status)
	storetest.Release(t, st.Open(), g)
}
