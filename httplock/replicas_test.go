package httplock_test

import (
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/httplock"
	"github.com/seed-215fdefa/lock/internal/servicetest"
	"github.com/seed-215fdefa/lock/internal/storetest"
	"github.com/seed-215fdefa/lock/internal/testserver"
	"github.com/seed-215fdefa/lock/memory"
)

// onEachStore runs f on each of the stores that replicas are for.
func onEachStore(t *testing.T, f func(t *testing.T, st *servicetest.Store)) {
	t.Parallel()
	t.Run("memory", func(t *testing.T) { f(t, onMemory(t)) })
	t.Run("redis", func(t *testing.T) {
		testserver.NeedServer(t)
		f(t, onRedis(t))
	})
	t.Run("postgres", func(t *testing.T) {
		testserver.NeedServer(t)
		f(t, onPostgres(t))
	})
}

// A client that has gone on at another replica holds the lock for its full TTL, while the one that
// it left may still ask the store for the same owner, with the short TTL of a waiter.
func TestLateWaiterDoesNotShortenAGrant(t *testing.T) {
	onEachStore(t, func(t *testing.T, st *servicetest.Store) {
		for name, shared := range map[string]bool{"exclusive": false, "shared": true} {
			t.Run(name, func(t *testing.T) {
				there, left := st.Open(), st.Open()
				req := storetest.Request(name)
				req.Shared = shared
				g := storetest.Acquire(t, there, req)
				late := req
				late.Wait, late.TTL = true, time.Second
				require.Equal(t, g.Token, storetest.Acquire(t, left, late).Token)
				holders := storetest.Inspect(t, there, name).Holders
				require.Len(t, holders, 1)
				require.Greater(t, holders[0].ExpiresIn, 30*time.Second)
				storetest.Release(t, there, g)
			})
		}
	})
}

// switching sends requests to whichever service is set, and counts those that each has answered.
type switching struct {
	to       atomic.Pointer[servicetest.Service]
	answered sync.Map // how many, by service
	next     http.RoundTripper
}

func (s *switching) RoundTrip(r *http.Request) (*http.Response, error) {
	to := s.to.Load()
	r = r.Clone(r.Context())
	r.URL.Host = to.Addr
	resp, err := s.next.RoundTrip(r)
	if err == nil {
		n, _ := s.answered.LoadOrStore(to, new(atomic.Int64))
		n.(*atomic.Int64).Add(1)
	}
	return resp, err
}

func (s *switching) count(to *servicetest.Service) int64 {
	n, _ := s.answered.LoadOrStore(to, new(atomic.Int64))
	return n.(*atomic.Int64).Load()
}

// A waiter goes on at another replica. The one that it has left still asks the store for it, which
// must not come to a grant that nobody holds once the client has released its own.
func TestWaitGoesOnAtAnotherReplica(t *testing.T) {
	onEachStore(t, func(t *testing.T, st *servicetest.Store) {
		for name, shared := range map[string]bool{"exclusive": false, "shared": true} {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				left, right := serve(t, st.Open), serve(t, st.Open)
				transport := &http.Transport{}
				way := &switching{next: transport}
				way.to.Store(left)
				l := httplock.New("http://replicas", httplock.WithHTTPClient(&http.Client{Transport: way}))
				t.Cleanup(func() {
					_ = l.Close()
					transport.CloseIdleConnections()
				})
				other := st.Open()
				blocker := storetest.Acquire(t, other, storetest.Request(name))
				req, waits := storetest.Request(name), make(chan struct{})
				req.Shared, req.Wait = shared, true
				req.Waiting = func(lock.Record) { close(waits) }
				granted := make(chan lock.Grant, 1)
				go func() {
					g, err := l.Acquire(storetest.Bounded(t), req)
					if err != nil {
						t.Error(err)
					}
					granted <- g
				}()
				<-waits
				way.to.Store(right)
				storetest.Eventually(t, "a poll at the other replica", func() bool { return way.count(right) > 0 })
				storetest.Release(t, other, blocker)
				g := <-granted
				require.Equal(t, req.TTL, g.TTL)
				storetest.Release(t, l, g)
				for begun := time.Now(); time.Since(begun) < 3*time.Second; time.Sleep(20 * time.Millisecond) {
					rec := storetest.Inspect(t, other, name)
					require.Empty(t, rec.Holders, "%v after the release", time.Since(begun))
					require.Empty(t, rec.Waiters)
				}
			})
		}
	})
}

// roundTrip is an http.RoundTripper.
type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// A grant is lost before its client has verified it, by way of another replica than that which tells of
// it. The wait goes on.
func TestLostBeforeItIsVerified(t *testing.T) {
	t.Parallel()
	st := onMemory(t)
	left, right, store := serve(t, st.Open), serve(t, st.Open), st.Open()
	transport := &http.Transport{}
	t.Cleanup(transport.CloseIdleConnections)
	req, waits := storetest.Lasting(storetest.Request("k"), time.Second), make(chan struct{})
	var once sync.Once
	way := roundTrip(func(r *http.Request) (*http.Response, error) {
		r = r.Clone(r.Context())
		if r.URL.Host = left.Addr; strings.HasSuffix(r.URL.Path, ":renew") {
			once.Do(func() { assert.NoError(t, store.(lock.Admin).ForceRelease(r.Context(), "k", req.Owner)) })
			r.URL.Host = right.Addr
		}
		return transport.RoundTrip(r)
	})
	l := httplock.New("http://replicas", httplock.WithHTTPClient(&http.Client{Transport: way}))
	t.Cleanup(func() { _ = l.Close() })
	blocker := storetest.Acquire(t, store, storetest.Request("k"))
	req.Wait, req.Waiting = true, func(lock.Record) { close(waits) }
	granted := make(chan error, 1)
	go func() { _, err := l.Acquire(storetest.Bounded(t), req); granted <- err }()
	storetest.Receive(t, waits)
	storetest.Release(t, store, blocker)
	require.NoError(t, storetest.Receive(t, granted))
}

// A waiter is granted by another replica than that where it stands in line, which may do so too, later:
// its release leaves nothing to that one.
func TestGrantedBesideItsPlace(t *testing.T) {
	t.Parallel()
	var polls atomic.Int32
	var mu sync.Mutex // guards releases
	var releases []string
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		w.Header().Set("Content-Type", "application/json")
		switch {
		case strings.HasSuffix(r.URL.Path, ":release"):
			mu.Lock()
			defer mu.Unlock()
			releases = append(releases, string(body))
			w.WriteHeader(http.StatusNoContent)
		case strings.HasSuffix(r.URL.Path, ":acquire") && polls.Add(1) == 1:
			w.WriteHeader(http.StatusAccepted)
			_, _ = io.WriteString(w, `{"new":true}`)
		default:
			_, _ = io.WriteString(w, `{"token":7,"ttl":"60s"}`)
		}
	}))
	defer s.Close()
	l := httplock.New(s.URL)
	defer l.Close()
	req := storetest.Request("k")
	req.Wait = true
	g := storetest.Acquire(t, l, req)
	storetest.Release(t, l, g)
	mu.Lock()
	defer mu.Unlock()
	require.Len(t, releases, 2)
	require.Contains(t, releases[0], `"token":`)
	require.NotContains(t, releases[1], `"token":`)
}

// A request that comes after the undo of its owner gets nothing, on a store too that forgets undos.
func TestUndoRefusesLateRequests(t *testing.T) {
	t.Parallel()
	st := onMemory(t)
	s := serve(t, st.Open)
	for _, owner := range []string{"late", "a", "b", "c"} {
		require.Equal(t, 204, ask(t, s, "POST", "/v1/locks/k:release", "application/json", `{"owner":"`+owner+`"}`).Status)
	}
	for _, wait := range []string{"false", "true"} {
		a := ask(t, s, "POST", "/v1/locks/k:acquire", "application/json", `{"owner":"late","ttl":"30s","wait":`+wait+`}`)
		require.Equal(t, 410, a.Status)
		require.Equal(t, "urn:httplock:released", a.Type)
	}
	require.Empty(t, storetest.Inspect(t, st.Open(), "k").Holders)
}

// forgetful is a store that grants only after an undo, of which it remembers nothing.
type forgetful struct {
	*memory.Locker
	asked, undone chan struct{}
}

func (f forgetful) Acquire(ctx context.Context, req lock.Request) (lock.Grant, error) {
	close(f.asked)
	<-f.undone
	return f.Locker.Acquire(ctx, req)
}

func (f forgetful) Release(ctx context.Context, g lock.Grant) error {
	if g.Token == 0 {
		close(f.undone)
		return nil
	}
	return f.Locker.Release(ctx, g)
}

// A try that its undo overtakes on the way to the store leaves no grant.
func TestUndoOvertakesATry(t *testing.T) {
	t.Parallel()
	store := forgetful{memory.New(), make(chan struct{}), make(chan struct{})}
	s := serve(t, func() lock.Locker { return store })
	tried := make(chan answer)
	go func() {
		defer close(tried)
		tried <- ask(t, s, "POST", "/v1/locks/k:acquire", "application/json", `{"owner":"o","ttl":"1h"}`)
	}()
	<-store.asked
	require.Equal(t, 204, ask(t, s, "POST", "/v1/locks/k:release", "application/json", `{"owner":"o"}`).Status)
	require.Equal(t, "urn:httplock:released", (<-tried).Type)
	require.Empty(t, storetest.Inspect(t, store, "k").Holders)
}

// TestWrappedTransport has a program that has put something around http.DefaultTransport.
func TestWrappedTransport(t *testing.T) { //nolint:paralleltest // it changes a global
	original := http.DefaultTransport
	defer func() { http.DefaultTransport = original }()
	s := serve(t, onMemory(t).Open)
	http.DefaultTransport = roundTrip(original.RoundTrip)
	l := httplock.New("http://" + s.Addr)
	defer func() { require.NoError(t, l.Close()) }()
	storetest.Release(t, l, storetest.Acquire(t, l, storetest.Request("k")))
}
