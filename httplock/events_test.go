package httplock_test

import (
	"bufio"
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"iter"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/httplock"
	"github.com/seed-215fdefa/lock/internal/servicetest"
	"github.com/seed-215fdefa/lock/internal/storetest"
	"github.com/seed-215fdefa/lock/memory"
)

// follower reads a stream of events.
type follower struct {
	tb testing.TB

	mu  sync.Mutex // guards all
	all []httplock.Event
}

// follow reads the events of a prefix until the test ends.
func follow(tb testing.TB, s *servicetest.Service, prefix, lastID string) *follower {
	tb.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+s.Addr+"/v1/events?prefix="+prefix, http.NoBody)
	require.NoError(tb, err)
	req.Header.Set("Last-Event-ID", lastID)
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Do(req)
	require.NoError(tb, err)
	documented(tb, "GET", "/v1/events", resp)
	require.Equal(tb, http.StatusOK, resp.StatusCode)
	f, ended := &follower{tb: tb}, make(chan struct{})
	go func() {
		defer close(ended)
		defer func() { _ = resp.Body.Close() }()
		var id, kind string
		for lines := bufio.NewScanner(resp.Body); lines.Scan(); {
			field, value, _ := strings.Cut(lines.Text(), ": ")
			switch field {
			case "id":
				id = value
			case "event":
				kind = value
			case "data":
				var e httplock.Event
				d := json.NewDecoder(strings.NewReader(value))
				d.DisallowUnknownFields()
				assert.NoError(tb, d.Decode(&e))
				assert.Equal(tb, []string{id, kind}, []string{e.ID, string(e.Kind)})
				f.mu.Lock()
				f.all = append(f.all, e)
				f.mu.Unlock()
			}
		}
	}()
	tb.Cleanup(func() {
		cancel()
		<-ended
	})
	return f
}

// of returns the events of an owner.
func (f *follower) of(owner string) (events []httplock.Event) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, e := range f.all {
		if e.Owner == owner {
			events = append(events, e)
		}
	}
	return events
}

// tells waits until the owner's events are these: each a kind, behind "look: " if only a look can have
// found it. What a call does, a look may find before the call has told it.
func (f *follower) tells(owner string, kinds ...string) []httplock.Event {
	f.tb.Helper()
	var events []httplock.Event
	storetest.Eventually(f.tb, fmt.Sprintf("%v of %s", kinds, owner), func() bool {
		events = f.of(owner)
		return slices.EqualFunc(events, kinds, func(e httplock.Event, kind string) bool {
			return string(e.Kind) == strings.TrimPrefix(kind, "look: ") && (e.Looked || string(e.Kind) == kind)
		})
	})
	return events
}

// looks waits until a look has been compared with one before.
func (f *follower) looks(store lock.Locker, prefix string) {
	f.tb.Helper()
	storetest.Eventually(f.tb, "a look", func() bool {
		req := storetest.Request(prefix + rand.Text())
		storetest.Acquire(f.tb, store, req) // the first look says nothing of what it sees
		f.mu.Lock()
		defer f.mu.Unlock()
		return len(f.all) > 0
	})
}

// TestEvents has all kinds of events brought about at the service, and beside it.
func TestEvents(t *testing.T) {
	onEachStore(t, func(t *testing.T, st *servicetest.Store) {
		s, beside := serve(t, st.Open), st.Open()
		f := follow(t, s, "p:", "")
		f.looks(beside, "p:")
		here := httplock.New("http://" + s.Addr)
		t.Cleanup(func() { _ = here.Close() })
		storetest.Acquire(t, here, storetest.Request("q:k")) // nobody hears of it

		req := storetest.Request("p:k")
		req.Metadata = map[string]string{"host": "a\nb"}
		g := storetest.Acquire(t, here, req)
		held := f.tells(req.Owner, "granted")[0]
		assert.Equal(t, []any{"p:k", g.Token, req.Metadata}, []any{held.Key, held.Token, held.Metadata})
		assert.WithinDuration(t, time.Now(), held.Time, storetest.Patience)
		w := storetest.Waits(t, here, storetest.Request("p:k"))
		f.tells(w.Owner, "waiting")
		storetest.Release(t, here, g)
		released := f.tells(req.Owner, "granted", "released")[1]
		assert.Equal(t, held.Metadata, released.Metadata)
		g = w.Granted(t)
		f.tells(w.Owner, "waiting", "granted")
		require.NoError(t, here.ForceRelease(t.Context(), "p:k", w.Owner))
		forced := f.tells(w.Owner, "waiting", "granted", "forced")[2]
		assert.Equal(t, g.Token, forced.Token)
		_, err := here.Renew(t.Context(), g)
		storetest.Lost(t, err)
		f.tells(w.Owner, "waiting", "granted", "forced", "lost")
		_ = here.Release(t.Context(), g)

		g = storetest.Acquire(t, here, storetest.Request("p:k"))
		gone := storetest.Waits(t, here, storetest.Request("p:k"))
		f.tells(gone.Owner, "waiting")
		require.NoError(t, here.Release(t.Context(), lock.Grant{Key: "p:k", Owner: gone.Owner}))
		f.tells(gone.Owner, "waiting", "left")

		w = storetest.Waits(t, beside, storetest.Request("p:k"))
		f.tells(w.Owner, "look: waiting")
		storetest.Release(t, here, g)
		f.tells(w.Owner, "look: waiting", "look: granted")
		storetest.Release(t, beside, w.Granted(t))
		seen := f.tells(w.Owner, "look: waiting", "look: granted", "look: gone")
		assert.Equal(t, w.Grant.Token, seen[2].Token)

		req = storetest.Lasting(storetest.Request("p:k"), 300*time.Millisecond)
		g = storetest.Acquire(t, here, req)
		f.tells(req.Owner, "granted", "look: expired")
		_, err = here.Renew(t.Context(), g)
		storetest.Lost(t, err)
		f.tells(req.Owner, "granted", "look: expired", "lost")
		f.mu.Lock()
		defer f.mu.Unlock()
		for _, e := range f.all {
			assert.True(t, strings.HasPrefix(e.Key, "p:"), "%+v", e)
		}
	})
}

// TestEventsResume goes on behind an event, from the oldest, and behind one that nobody knows.
func TestEventsResume(t *testing.T) {
	t.Parallel()
	s := serve(t, onMemory(t).Open)
	here := httplock.New("http://" + s.Addr)
	t.Cleanup(func() { _ = here.Close() })
	a, b := storetest.Request("a"), storetest.Request("b")
	storetest.Acquire(t, here, a)
	storetest.Acquire(t, here, b)
	all := follow(t, s, "", "0")
	first := all.tells(a.Owner, "granted")[0]
	all.tells(b.Owner, "granted")
	second := follow(t, s, "", first.ID)
	second.tells(b.Owner, "granted")
	assert.Empty(t, second.of(a.Owner))
	follow(t, s, "b", "0").tells(b.Owner, "granted")
	for _, unknown := range []string{"nonsense", "another-1", first.ID + "0"} {
		f := follow(t, s, "", unknown)
		missed := f.tells("", "missed")[0]
		assert.Contains(t, missed.Reason, "another replica")
		again := follow(t, s, "", missed.ID)
		c := storetest.Request("c")
		g := storetest.Acquire(t, here, c)
		again.tells(c.Owner, "granted")
		f.tells(c.Owner, "granted")
		assert.Empty(t, again.of(a.Owner))
		assert.Empty(t, again.of(""))
		storetest.Release(t, here, g)
	}
}

// blocked is the connection of a client that reads nothing until it is let.
type blocked struct {
	*httptest.ResponseRecorder
	once    sync.Once
	writing chan struct{}
	read    chan struct{}
	rare    chan struct{} // closed when it has read of that owner
	ended   chan struct{}
	cancel  context.CancelFunc
}

func (b *blocked) Write(p []byte) (int, error) { return b.WriteString(string(p)) }

func (b *blocked) WriteString(s string) (int, error) {
	b.once.Do(func() { close(b.writing) })
	<-b.read
	if strings.Contains(s, `"owner":"rare"`) {
		close(b.rare)
	}
	return b.ResponseRecorder.WriteString(s)
}

// read begins a stream, and returns when it has something for the client.
func read(h *httplock.Handler, prefix string) *blocked {
	b := &blocked{
		ResponseRecorder: httptest.NewRecorder(), writing: make(chan struct{}), read: make(chan struct{}), rare: make(chan struct{}), ended: make(chan struct{}),
	}
	var ctx context.Context
	ctx, b.cancel = context.WithCancel(context.Background())
	go func() {
		defer close(b.ended)
		defer b.cancel()
		h.ServeHTTP(b, httptest.NewRequestWithContext(ctx, http.MethodGet, "/v1/events?prefix="+prefix, http.NoBody))
	}()
	<-b.writing
	return b
}

// call acquires or releases, for an hour and shared.
func call(t *testing.T, h *httplock.Handler, key, verb, owner string) {
	t.Helper()
	w, r := httptest.NewRecorder(), httptest.NewRequest(http.MethodPost, "/v1/locks/"+key+":"+verb, strings.NewReader(`{"owner": "`+owner+`", "ttl": "1h", "shared": true}`))
	r.Header.Set("Content-Type", "application/json")
	h.ServeHTTP(w, r)
	require.Less(t, w.Code, 300, w.Body)
}

// churn lets more happen than is remembered.
func churn(t *testing.T, h *httplock.Handler) {
	t.Helper()
	for range 2200 {
		owner := rand.Text()
		call(t, h, "k", "acquire", owner)
		call(t, h, "k", "release", owner)
	}
}

// TestSlowReader does not read while more happens than is remembered: one reader of all keys, who
// is dropped, and one of a key to which little happens, who is not.
func TestSlowReader(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		h := httplock.NewHandler(memory.New())
		defer h.Close()
		slow, sparse := read(h, ""), read(h, "rare")
		churn(t, h)
		call(t, h, "rare", "acquire", "rare")
		close(slow.read)
		<-slow.ended
		close(sparse.read)
		select {
		case <-sparse.rare:
		case <-sparse.ended:
		}
		h.Close()
		<-sparse.ended
		assert.Contains(t, slow.Body.String(), "event: dropped\n")
		assert.NotContains(t, slow.Body.String(), "event: granted\n")
		assert.NotContains(t, sparse.Body.String(), "event: dropped\n")
		assert.Contains(t, sparse.Body.String(), "event: granted\n")
		assert.Len(t, h.Events(""), 4096)
		assert.Len(t, h.Events("rare"), 1)
	})
}

// staleList is a store whose lists take their time: what they show is from when they began.
type staleList struct {
	*memory.Locker
	begun, end chan struct{}
}

func (l staleList) List(ctx context.Context, prefix string) iter.Seq2[lock.Record, error] {
	var records []lock.Record
	for rec, err := range l.Locker.List(ctx, prefix) {
		if err != nil {
			break
		}
		records = append(records, rec)
	}
	return func(yield func(lock.Record, error) bool) {
		select {
		case l.begun <- struct{}{}:
			<-l.end
		case <-ctx.Done():
			return
		}
		for _, rec := range records {
			if !yield(rec, nil) {
				return
			}
		}
	}
}

// TestEventsAreNotInvented has looks find what calls have ended meanwhile, and not find what they
// have begun, while more happens than is remembered.
func TestEventsAreNotInvented(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		store := staleList{memory.New(), make(chan struct{}), make(chan struct{})}
		h := httplock.NewHandler(store)
		stream := read(h, "")
		for look := range 7 {
			<-store.begun
			if look == 1 || look == 2 {
				call(t, h, "k", "release", fmt.Sprint("during", look-1))
			}
			call(t, h, "k", "acquire", fmt.Sprint("during", look))
			if look < 4 {
				churn(t, h)
			}
			for _, e := range h.Events("") {
				require.False(t, e.Looked, "%+v", e)
			}
			store.end <- struct{}{}
			if look == 3 { // and between two looks
				synctest.Wait()
				call(t, h, "k", "release", "during2")
				churn(t, h)
			}
		}
		close(stream.read)
		h.Close()
		<-stream.ended
	})
}

// TestWrongToken has an owner renew and release by other tokens than that of its grant, which goes on.
func TestWrongToken(t *testing.T) {
	t.Parallel()
	h := httplock.NewHandler(memory.New())
	defer h.Close()
	call(t, h, "k", "acquire", "o")
	token := h.Events("")[0].Token
	for _, verb := range []string{"renew", "release"} {
		for _, wrong := range []lock.Token{1, token - 1, token + 1} {
			w, r := httptest.NewRecorder(), httptest.NewRequest(http.MethodPost, "/v1/locks/k:"+verb,
				strings.NewReader(fmt.Sprintf(`{"owner": "o", "token": %d, "ttl": "1h"}`, wrong)))
			r.Header.Set("Content-Type", "application/json")
			h.ServeHTTP(w, r)
			require.Equal(t, http.StatusGone, w.Code)
		}
	}
	call(t, h, "k", "release", "o")
	var kinds []httplock.EventKind
	for _, e := range h.Events("") {
		kinds = append(kinds, e.Kind)
	}
	require.Equal(t, []httplock.EventKind{httplock.EventGranted, httplock.EventReleased}, kinds)
}

// TestLooksSeeParts has a key with more holders and waiters than records show, and readers that come
// one after the other: nothing is told that may be an old story.
func TestLooksSeeParts(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		store := memory.New()
		h := httplock.NewHandler(store)
		defer h.Close()
		var grants []lock.Grant
		for range 30 {
			grants = append(grants, storetest.Acquire(t, store, storetest.Lasting(storetest.Shared(storetest.Request("a:shared")), time.Hour)))
		}
		held := storetest.Acquire(t, store, storetest.Lasting(storetest.Request("a:line"), time.Hour))
		var line []*storetest.Waiting
		for range 30 {
			line = append(line, storetest.Waits(t, store, storetest.Lasting(storetest.Request("a:line"), time.Hour)))
		}
		storetest.Acquire(t, store, storetest.Lasting(storetest.Request("b:k"), time.Hour))
		streams := []*blocked{read(h, "a:")}
		time.Sleep(3 * lookInterval)
		streams = append(streams, read(h, "b:"))
		time.Sleep(3 * lookInterval)
		require.Empty(t, h.Events(""))

		for _, g := range grants[:10] {
			storetest.Release(t, store, g)
		}
		ahead := []*storetest.Waiting{storetest.Waits(t, store, storetest.Ahead("a:line", time.Minute)), storetest.Waits(t, store, storetest.Ahead("a:line", time.Minute))}
		storetest.Release(t, store, held)
		next := ahead[0].Granted(t)
		time.Sleep(3 * lookInterval)
		told := map[string]httplock.EventKind{}
		for _, e := range h.Events("") {
			told[e.Owner] = e.Kind
		}
		require.Equal(t, map[string]httplock.EventKind{held.Owner: "gone", next.Owner: "granted"}, told)

		close(streams[0].read) // whose reader goes
		streams[0].cancel()
		<-streams[0].ended
		time.Sleep(3 * lookInterval)
		storetest.Release(t, store, next)
		time.Sleep(3 * lookInterval)
		require.Len(t, h.Events("a:"), 2)
		for _, w := range append(line, ahead...) {
			w.Cancel()
			w.End(t)
		}
		close(streams[1].read)
		h.Close()
		<-streams[1].ended
	})
}

// lookInterval is that of looks.
const lookInterval = time.Second

// TestEventsNeedTheRight asks for more than one may read, and by more than may.
func TestEventsNeedTheRight(t *testing.T) {
	t.Parallel()
	s := serve(t, onMemory(t).Open, httplock.WithAuthorization(func(_ *http.Request, action httplock.Action, key string) error {
		if action != httplock.ActionEvents || strings.HasPrefix(key, "mine:") {
			return nil
		}
		return http.ErrNoCookie
	}))
	assert.Equal(t, 403, ask(t, s, "GET", "/v1/events", "", "").Status)
	assert.Equal(t, 403, ask(t, s, "GET", "/v1/events?prefix=mine", "", "").Status)
	assert.Equal(t, 405, ask(t, s, "POST", "/v1/events?prefix=mine:", "", "").Status)
	assert.Equal(t, 400, ask(t, s, "GET", "/v1/events?prefix=mine:%ff", "", "").Status)
	for range 1000 {
		follow(t, s, "mine:", "")
	}
	assert.Equal(t, 429, ask(t, s, "GET", "/v1/events?prefix=mine:", "", "").Status)
}

// busy is a client to which something happens whenever it reads.
type busy struct {
	*httptest.ResponseRecorder
	happens func()
}

func (b busy) WriteString(s string) (int, error) {
	b.happens()
	return b.ResponseRecorder.WriteString(s)
}

// TestRightIsWithdrawn from one who reads a stream that never pauses.
func TestRightIsWithdrawn(t *testing.T) {
	t.Parallel()
	for _, path := range []string{"/v1/events", "/v1/locks/k:watch"} {
		synctest.Test(t, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			reads, outcome := 0, ""
			h := httplock.NewHandler(memory.New(), httplock.WithAuthorization(func(r *http.Request, _ httplock.Action, _ string) error {
				if r.Method == http.MethodGet && reads > 20 {
					return httplock.ErrUnauthenticated
				}
				return nil
			}), httplock.WithObserver(func(r *http.Request, c httplock.Call) {
				if r.Method == http.MethodGet {
					outcome = c.Outcome
				}
			}))
			defer h.Close()
			h.ServeHTTP(busy{httptest.NewRecorder(), func() {
				if reads++; reads == 120 {
					cancel()
				}
				time.Sleep(time.Second)
				call(t, h, "k", "acquire", rand.Text())
			}}, httptest.NewRequestWithContext(ctx, http.MethodGet, path, http.NoBody))
			assert.Greater(t, reads, 20, path)
			assert.Equal(t, "unauthenticated", outcome, path)
		})
	}
}

// TestOwnersInEvents shows each caller its own owners as it sent them.
func TestOwnersInEvents(t *testing.T) {
	t.Parallel()
	caller := httplock.WithCaller(func(r *http.Request) string { return r.Header.Get("Caller") })
	h := httplock.NewHandler(memory.New(), caller)
	defer h.Close()
	w, r := httptest.NewRecorder(), httptest.NewRequest(http.MethodPost, "/v1/locks/k:acquire", strings.NewReader(`{"owner": "alice", "ttl": "1h"}`))
	r.Header.Set("Content-Type", "application/json")
	r.Header.Set("Caller", "k")
	h.ServeHTTP(w, r)
	require.Equal(t, 200, w.Code)
	for name, want := range map[string]string{"k": `"owner":"alice",`, "": `"owner":"alice-`} {
		ctx, cancel := context.WithCancel(t.Context())
		r := httptest.NewRequestWithContext(ctx, http.MethodGet, "/v1/events", http.NoBody)
		r.Header.Set("Last-Event-ID", "0")
		r.Header.Set("Caller", name)
		w := &flushed{httptest.NewRecorder(), func(body string) {
			if strings.Contains(body, "alice") {
				cancel()
			}
		}}
		h.ServeHTTP(w, r)
		assert.Contains(t, w.Body.String(), want)
		cancel()
	}
}

// flushed calls f with what it has when it is flushed.
type flushed struct {
	*httptest.ResponseRecorder
	f func(body string)
}

func (w *flushed) Flush() { w.f(w.Body.String()) }

// TestTooMuchToLookAt tells readers that they are not told all, once.
func TestTooMuchToLookAt(t *testing.T) {
	t.Parallel()
	st := onMemory(t)
	beside := st.Open()
	for i := range 10_001 {
		storetest.Acquire(t, beside, storetest.Request(fmt.Sprint("k", i)))
	}
	f := follow(t, serve(t, st.Open), "", "")
	missed := f.tells("", "look: missed")
	assert.Contains(t, missed[0].Reason, "more than 10000")
}
