package httplock_test

import (
	"bytes"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/httplock"
	"github.com/seed-215fdefa/lock/internal/storetest"
	"github.com/seed-215fdefa/lock/memory"
)

// TestProxyRefusesAPoll has a proxy, or the service, refuse a waiter's third poll: the wait goes on.
func TestProxyRefusesAPoll(t *testing.T) {
	t.Parallel()
	for name, refuse := range map[string]struct {
		status  int
		problem string // its type; "": it is none
	}{
		"too many requests":           {http.StatusTooManyRequests, ""},
		"request timeout":             {http.StatusRequestTimeout, ""},
		"too early":                   {http.StatusTooEarly, ""},
		"problem too many requests":   {http.StatusTooManyRequests, "about:blank"},
		"problem bad gateway":         {http.StatusBadGateway, "about:blank"},
		"problem service unavailable": {http.StatusServiceUnavailable, "about:blank"},
		"crowded":                     {http.StatusTooManyRequests, "urn:httplock:crowded"},
		"timeout":                     {http.StatusRequestTimeout, "urn:httplock:timeout"},
		"stopping":                    {http.StatusServiceUnavailable, "urn:httplock:stopping"},
		"unavailable":                 {http.StatusServiceUnavailable, "urn:httplock:unavailable"},
		"closed":                      {http.StatusServiceUnavailable, "urn:httplock:closed"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			store := memory.New()
			defer store.Close()
			s := serve(t, func() lock.Locker { return store })
			var polls atomic.Int32
			behind := &httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) {
				r.Out.URL.Scheme, r.Out.URL.Host = "http", s.Addr
			}}
			front := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				body, _ := io.ReadAll(r.Body)
				r.Body = io.NopCloser(bytes.NewReader(body))
				if bytes.Contains(body, []byte(`"wait":true`)) && polls.Add(1) == 3 {
					if refuse.problem != "" {
						w.Header().Set("Content-Type", "application/problem+json")
					}
					w.WriteHeader(refuse.status)
					_, _ = io.WriteString(w, `{"type":"`+refuse.problem+`"}`)
					return
				}
				behind.ServeHTTP(w, r)
			}))
			defer front.Close()
			l := httplock.New(front.URL)
			defer l.Close()

			g := storetest.Acquire(t, store, storetest.Request("k"))
			w := storetest.Begin(t, l, storetest.Request("k"))
			storetest.Eventually(t, "a poll after the refused one, or the end of the wait", func() bool {
				select {
				case <-w.Done:
					return true
				default:
					return polls.Load() > 3
				}
			})
			storetest.Release(t, store, g)
			<-w.Done
			require.NoError(t, w.Err)
			storetest.Holds(t, store, w.Grant)
		})
	}
}
