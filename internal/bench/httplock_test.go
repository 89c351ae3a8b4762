package bench

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strconv"
	"testing"
	"time"

	goredis "github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/httplock"
	"github.com/seed-215fdefa/lock/internal/testserver"
	"github.com/seed-215fdefa/lock/memory"
	"github.com/seed-215fdefa/lock/redis"
)

// message is what the bare handler is asked and answers.
type message struct {
	Owner string `json:"owner"`
	Token int    `json:"token"`
	TTL   string `json:"ttl"`
}

// bareService answers small JSON with small JSON, and does nothing else.
func bareService(t *testing.T) (ask func(path string)) {
	t.Helper()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var m message
		if err := json.NewDecoder(r.Body).Decode(&m); err != nil {
			w.WriteHeader(http.StatusBadRequest)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(m)
	}))
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.MaxIdleConns, transport.MaxIdleConnsPerHost = 0, 256
	client := http.Client{Transport: transport}
	t.Cleanup(func() {
		transport.CloseIdleConnections()
		server.Close()
	})
	return func(path string) {
		b, err := json.Marshal(message{"6f1c9a0b6f1c9a0b6f1c9a0b6f1c9a0b", 1764342162000000, "30s"})
		if err == nil {
			var resp *http.Response
			if resp, err = client.Post(server.URL+path, "application/json", bytes.NewReader(b)); err == nil {
				b, err = io.ReadAll(resp.Body)
				_ = resp.Body.Close()
			}
		}
		var m message
		if err == nil {
			err = json.Unmarshal(b, &m)
		}
		if err != nil {
			panic(err)
		}
	}
}

// remote is a client of a service on l, on the loopback interface.
func remote(t *testing.T, l lock.Locker) *httplock.Locker {
	t.Helper()
	h := httplock.NewHandler(l)
	server := httptest.NewServer(h)
	r := httplock.New(server.URL)
	require.NoError(t, r.Connect(t.Context()))
	t.Cleanup(func() {
		require.NoError(t, r.Close())
		server.Close()
		h.Close()
	})
	return r
}

// pair acquires and releases a key of the caller's own by l: Do without its bookkeeping.
func pair(l lock.Locker) func(caller, n int) {
	ctx := context.Background()
	return func(caller, n int) {
		id := strconv.Itoa(caller)
		g, err := l.Acquire(ctx, lock.Request{Key: "k" + id, Owner: id + "-" + strconv.Itoa(n), TTL: 30 * time.Second, Wait: true})
		if err == nil {
			err = l.Release(ctx, g)
		}
		if err != nil {
			panic(err)
		}
	}
}

// TestHTTP compares the service with a handler that does nothing, over memory, and with the store
// alone, over Redis.
func TestHTTP(t *testing.T) {
	s := scales()
	out := table{title: "The lock service, uncontended: acquire and release per second", head: []string{"64 callers", "service", "without", "ratio"}}
	row := func(name string, ours, bare func(caller, n int)) {
		a, b, ratio := pairs(s, 64, ours, bare)
		out.add(name, fmt.Sprintf("%.0f", a), fmt.Sprintf("%.0f", b), fmt.Sprintf("%.2f", ratio))
	}
	ask := bareService(t)
	row("over memory, to two requests of a handler that does nothing", pair(remote(t, memory.New())), func(int, int) {
		ask("/acquire")
		ask("/release")
	})
	rdb := goredis.NewClient(&goredis.Options{Addr: testserver.Redis(t).Addr(), PoolSize: 600})
	served, alone := redis.New(rdb), redis.New(rdb, redis.WithPrefix("alone:"))
	t.Cleanup(func() {
		require.NoError(t, served.Close())
		require.NoError(t, alone.Close())
		require.NoError(t, rdb.Close())
	})
	row("over Redis, to Redis alone", pair(remote(t, served)), pair(alone))
	out.print()
}
