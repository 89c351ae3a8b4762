package dynamo_test

import (
	"context"
	"errors"
	"io"
	"math"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/stretchr/testify/require"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/dynamo"
	"github.com/seed-215fdefa/lock/internal/storetest"
)

// TestFrozenServer freezes the server right after an acquire: the lease is over before the
// store's own expiry.
func TestFrozenServer(t *testing.T) {
	t.Parallel()
	w := ownWorld(t)
	storetest.FrozenServer(t, w.open(t), w.open(t), 6*time.Second, w.server.Pause, w.server.Resume)
}

// TestFrozenServerCancel: every method returns when its ctx ends, and Close at once.
func TestFrozenServerCancel(t *testing.T) {
	t.Parallel()
	w := ownWorld(t)
	p, fence := w.open(t), dynamo.NewFence(w.db)
	waits := storetest.Waits(t, p, storetest.Request(storetest.Acquire(t, p, storetest.Request("held")).Key))
	w.server.Pause()
	calls := everyCall(p.Locker)
	calls["Fence.Get"] = func(ctx context.Context) error {
		_, err := fence.Get(ctx, 1, w.table, w.primary("k"))
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	results := make(chan error, len(calls))
	for name, call := range calls {
		go func() {
			if err := call(ctx); !errors.Is(err, context.DeadlineExceeded) {
				results <- errors.Join(errors.New(name), err)
				return
			}
			results <- nil
		}()
	}
	for range calls {
		select {
		case err := <-results:
			require.NoError(t, err)
		case <-time.After(storetest.Patience):
			require.FailNow(t, "a method hangs past its ctx")
		}
	}
	require.NoError(t, p.Close())
	waits.End(t)
	require.ErrorIs(t, waits.Err, lock.ErrClosed)
}

// TestFirstTryOfANewProcess: one that has never heard of the lock or of DynamoDB's time
// takes over from a dead holder by its first call.
func TestFirstTryOfANewProcess(t *testing.T) {
	t.Parallel()
	both(t, func(t *testing.T, mode func(lock.Request) lock.Request) {
		w := sharedWorld(t)
		dead := w.open(t)
		g := storetest.Acquire(t, dead, mode(storetest.Lasting(storetest.Request("k"), time.Second)))
		time.Sleep(time.Until(g.Start.Add(g.TTL + dead.Capabilities().ExpirySlack)))
		next := storetest.Acquire(t, w.start(t), storetest.Request("k"))
		require.Greater(t, next.Token, g.Token)
		require.Equal(t, lock.ReasonTaken, storetest.Lost(t, dead.Release(storetest.Bounded(t), g)))
		_, err := dead.Renew(storetest.Bounded(t), g)
		require.Equal(t, lock.ReasonTaken, storetest.Lost(t, err))
	})
}

// TestExpiredGrantIsLostToItsHolder, though nobody has taken the lock since: another may be
// about to.
func TestExpiredGrantIsLostToItsHolder(t *testing.T) {
	t.Parallel()
	both(t, func(t *testing.T, mode func(lock.Request) lock.Request) {
		w := sharedWorld(t)
		p, other := w.open(t), w.open(t)
		g := storetest.Acquire(t, p, mode(storetest.Lasting(storetest.Request("k"), 500*time.Millisecond)))
		storetest.Eventually(t, "its end", func() bool { return len(storetest.Inspect(t, other, "k").Holders) == 0 })
		_, err := p.Renew(storetest.Bounded(t), g)
		require.Equal(t, lock.ReasonExpired, storetest.Lost(t, err))
		require.Equal(t, lock.ReasonExpired, storetest.Lost(t, p.Release(storetest.Bounded(t), g)))
	})
}

// TestWriterAmongReaders: readers that come and go all the time do not keep a writer out. Each of
// the three leaves only when it has come again, so without the writer there is always one.
func TestWriterAmongReaders(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	ctx, cancel := context.WithCancel(storetest.Bounded(t))
	done := make(chan struct{}, 3)
	for range 3 {
		p := w.open(t)
		go func() {
			defer func() { done <- struct{}{} }()
			var held lock.Grant
			for ctx.Err() == nil {
				req := storetest.Shared(storetest.Request("k"))
				req.Wait = held.Token == 0
				g, err := p.Acquire(ctx, req)
				if held.Token != 0 {
					_ = p.Release(context.WithoutCancel(ctx), held)
				}
				if held = g; err != nil {
					held = lock.Grant{}
				}
			}
			if held.Token != 0 {
				_ = p.Release(context.WithoutCancel(ctx), held)
			}
		}()
	}
	writer := w.open(t)
	storetest.Eventually(t, "readers", func() bool { return len(storetest.Inspect(t, writer, "k").Holders) > 1 })
	g := storetest.Await(t, writer, storetest.Request("k"))
	require.NotContains(t, w.items(t)["k"], "intent")
	storetest.Release(t, writer, g)
	cancel()
	for range 3 {
		<-done
	}
}

// TestIntentEnds: of a writer that has left, at once; of one that died, after its heartbeat.
func TestIntentEnds(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	reader, writer := w.open(t), w.open(t)
	storetest.Acquire(t, reader, storetest.Shared(storetest.Request("k")))
	wait := func() *storetest.Waiting {
		waits := storetest.Waits(t, writer, storetest.Lasting(storetest.Request("k"), 2*time.Second))
		storetest.Eventually(t, "the intent", func() bool { return w.items(t)["k"]["intent"] != nil })
		storetest.Eventually(t, "a reader to hold back", func() bool { // not if the writer was too slow to keep it up
			g, err := reader.Acquire(storetest.Bounded(t), storetest.Shared(storetest.Request("k")))
			if err == nil {
				storetest.Release(t, reader, g)
				return false
			}
			require.ErrorIs(t, err, lock.ErrHeld)
			return true
		})
		return waits
	}
	left := wait()
	asks := make(chan struct{}, 1)
	writer.http.set(func(string) (*http.Response, error) {
		select {
		case asks <- struct{}{}:
		default:
		}
		return answer(400, "ThrottlingException"), nil
	}, nil)
	storetest.Receive(t, asks) // so nothing is under way that might come after the undo
	left.Cancel()
	left.End(t)
	writer.http.set(nil, nil)
	storetest.Release(t, writer, lock.Grant{Key: "k", Owner: left.Owner})
	storetest.Acquire(t, reader, storetest.Shared(storetest.Request("k")))

	wait()
	writer.net.Cut()
	storetest.Await(t, reader, storetest.Shared(storetest.Request("k")))
}

// TestDeadReaders are taken away by a living one who leaves, although there is always one.
func TestDeadReaders(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	p := w.open(t)
	var last lock.Grant
	for range 5 {
		last = storetest.Acquire(t, p, storetest.Shared(storetest.Lasting(storetest.Request("k"), 500*time.Millisecond)))
	}
	stays := storetest.Acquire(t, p, storetest.Shared(storetest.Request("k")))
	goes := storetest.Acquire(t, p, storetest.Shared(storetest.Request("k")))
	time.Sleep(time.Until(last.Start.Add(last.TTL + p.Capabilities().ExpirySlack)))
	storetest.Release(t, p, goes)
	storetest.Eventually(t, "the dead to be taken away", func() bool { // by one write, or else the next reader's
		if w.items(t)["k"]["reader:"+last.Owner] == nil {
			return true
		}
		storetest.Release(t, p, storetest.Acquire(t, p, storetest.Shared(storetest.Request("k"))))
		return false
	})
	require.Contains(t, w.items(t)["k"], "reader:"+stays.Owner)
	storetest.Holds(t, p, stays)
	storetest.Release(t, p, stays)
	require.NotContains(t, w.items(t)["k"], "readers")
}

// TestForcedAndSucceeded: another has had the lock, and let it go, before the holder learns that
// it was forced.
func TestForcedAndSucceeded(t *testing.T) {
	t.Parallel()
	both(t, func(t *testing.T, mode func(lock.Request) lock.Request) {
		w := sharedWorld(t)
		p, next := w.open(t), w.open(t)
		for name, call := range map[string]func(lock.Grant) error{
			"renew":   func(g lock.Grant) error { _, err := p.Renew(storetest.Bounded(t), g); return err },
			"release": func(g lock.Grant) error { return p.Release(storetest.Bounded(t), g) },
		} {
			g := storetest.Acquire(t, p, mode(storetest.Request(name)))
			require.NoError(t, next.ForceRelease(storetest.Bounded(t), name, g.Owner))
			storetest.Release(t, next, storetest.Acquire(t, next, storetest.Request(name)))
			require.Equal(t, lock.ReasonTaken, storetest.Lost(t, call(g)), name)
		}
	})
}

// TestSeveralForced: of many readers that are forced, the last learn of it.
func TestSeveralForced(t *testing.T) {
	t.Parallel()
	p := sharedWorld(t).open(t)
	var all []lock.Grant
	for range 20 {
		all = append(all, storetest.Acquire(t, p, storetest.Shared(storetest.Request("k"))))
	}
	for _, g := range all {
		require.NoError(t, p.ForceRelease(storetest.Bounded(t), "k", g.Owner))
	}
	for i, g := range all {
		_, err := p.Renew(storetest.Bounded(t), g)
		want := lock.ReasonForced
		if i < 4 {
			want = 0
		}
		require.Equal(t, want, storetest.Lost(t, err), i)
	}
}

// TestForced: a holder whose grant was forced is told so.
func TestForced(t *testing.T) {
	t.Parallel()
	both(t, func(t *testing.T, mode func(lock.Request) lock.Request) {
		p := sharedWorld(t).open(t)
		g := storetest.Acquire(t, p, mode(storetest.Request("k")))
		require.NoError(t, p.ForceRelease(storetest.Bounded(t), "k", g.Owner))
		_, err := p.Renew(storetest.Bounded(t), g)
		require.Equal(t, lock.ReasonForced, storetest.Lost(t, err))
		require.ErrorIs(t, p.ForceRelease(storetest.Bounded(t), "k", g.Owner), lock.ErrLost)
	})
}

// TestForcedBesideARelease: a release whose first write was lost finds the grant gone, and does not
// take that for its own work.
func TestForcedBesideARelease(t *testing.T) {
	t.Parallel()
	both(t, func(t *testing.T, mode func(lock.Request) lock.Request) {
		w := sharedWorld(t)
		p, admin := w.open(t), w.open(t)
		g := storetest.Acquire(t, p, mode(storetest.Request("k")))
		p.http.first(isWrite, func() error {
			if err := admin.ForceRelease(storetest.Bounded(t), "k", g.Owner); err != nil {
				return err
			}
			return &netError{io.ErrUnexpectedEOF}
		})
		err := p.Release(storetest.Bounded(t), g)
		require.Equal(t, lock.ReasonForced, storetest.Lost(t, err))
	})
}

// TestPrune deletes what nobody has used for long, and tokens rise all the same.
func TestPrune(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	p := w.open(t)
	var tokens []lock.Token
	for _, key := range []string{"old 1", "old 2", "other", "old held"} {
		g := storetest.Acquire(t, p, storetest.Request(key))
		tokens = append(tokens, g.Token)
		if key != "old held" {
			storetest.Release(t, p, g)
		}
	}
	n, err := p.Prune(storetest.Bounded(t), "old", time.Hour)
	require.NoError(t, err)
	require.Zero(t, n, "nothing is that old")

	later := w.start(t)
	later.http.shift(always(2 * time.Hour))
	n, err = later.Prune(storetest.Bounded(t), "old", time.Hour)
	require.NoError(t, err)
	require.Equal(t, 2, n)
	require.Len(t, w.items(t), 2)
	require.Contains(t, w.items(t), "old held")
	later.http.shift(always(2 * time.Second)) // a Locker knows DynamoDB's time to a second
	require.Greater(t, storetest.Acquire(t, later, storetest.Request("old 1")).Token, tokens[0])

	_, err = p.Prune(storetest.Bounded(t), "", time.Minute)
	require.ErrorIs(t, err, lock.ErrInvalid)
}

// TestPruneAsksForTheTimeAgain: its first request, for DynamoDB's time, is throttled.
func TestPruneAsksForTheTimeAgain(t *testing.T) {
	t.Parallel()
	p := sharedWorld(t).start(t)
	throttled := false
	p.http.set(func(operation string) (*http.Response, error) {
		switch {
		case strings.HasPrefix(operation, "Describe"): // it would tell the time
			return answer(400, "AccessDeniedException"), nil
		case operation == "GetItem" && !throttled:
			throttled = true
			return answer(400, "ThrottlingException"), nil
		}
		return nil, nil
	}, nil)
	_, err := p.Prune(storetest.Bounded(t), "", time.Hour)
	require.NoError(t, err)
	require.True(t, throttled)
}

// TestForeignItem: what this package did not write is left alone, and told of.
func TestForeignItem(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	p := w.open(t)
	it := w.primary("k")
	it["holder"] = w.primary("somebody")["key"]
	w.put(t, it)
	_, err := p.Acquire(storetest.Bounded(t), storetest.Request("k"))
	require.ErrorContains(t, err, "not a lock")
	_, err = p.Inspect(storetest.Bounded(t), "k")
	require.ErrorContains(t, err, "not a lock")
	require.Equal(t, it, w.items(t)["k"])
}

// everyCall has a call of each method of a Locker, for a key that nobody holds.
func everyCall(l *dynamo.Locker) map[string]func(context.Context) error {
	return storetest.EveryCall(l, storetest.NoGrant, map[string]func(context.Context) error{
		"Prune": func(ctx context.Context) error { _, err := l.Prune(ctx, "", time.Hour); return err },
	})
}

// TestBadSetUp: New does no I/O, and every call says what is wrong.
func TestBadSetUp(t *testing.T) {
	t.Parallel()
	nowhere := newClient(newTransport(), "127.0.0.1:1")
	var none *dynamodb.Client
	for name, c := range map[string]struct {
		l    *dynamo.Locker
		says string
	}{
		"nil":        {dynamo.New(nil, "locks"), "client is nil"},
		"nil client": {dynamo.New(none, "locks"), "client is nil"},
		"no table":   {dynamo.New(nowhere, ""), `table ""`},
		"bad table":  {dynamo.New(nowhere, "a b"), `table "a b"`},
		"nil option": {dynamo.New(nowhere, "locks", nil), "option is nil"},
		"prefix":     {dynamo.New(nowhere, "locks", dynamo.WithPrefix("\xff")), `\xff`},
		"poll":       {dynamo.New(nowhere, "locks", dynamo.WithPoll(2, 1)), "from 2ns to 1ns"},
		"poll 0":     {dynamo.New(nowhere, "locks", dynamo.WithPoll(0, 1)), "must be positive"},
		"poll never": {dynamo.New(nowhere, "locks", dynamo.WithPoll(math.MaxInt64, math.MaxInt64)), "longest must be at most"},
		"zero":       {&dynamo.Locker{}, "made by New"},
		"nil Locker": {nil, "made by New"},
	} {
		t.Run(name, func(t *testing.T) {
			for method, call := range everyCall(c.l) {
				err := call(context.Background())
				require.ErrorIs(t, err, lock.ErrInvalid, method)
				require.ErrorContains(t, err, c.says, method)
			}
			require.NoError(t, c.l.Close())
		})
	}
}

// TestClosed: every call says so, waits end, and the client is the caller's still.
func TestClosed(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	p := w.open(t)
	g := storetest.Acquire(t, p, storetest.Request("k"))
	first, second := storetest.Waits(t, p, storetest.Request("k")), storetest.Waits(t, p, storetest.Request("k"))
	require.NoError(t, p.Close())
	require.NoError(t, p.Close())
	for _, waits := range []*storetest.Waiting{first, second} {
		waits.End(t)
		require.ErrorIs(t, waits.Err, lock.ErrClosed)
	}
	for method, call := range everyCall(p.Locker) {
		require.ErrorIs(t, call(context.Background()), lock.ErrClosed, method)
	}
	other := dynamo.New(p.db, w.table, dynamo.WithPrefix(w.prefix))
	storetest.Holds(t, other, g)
}

// TestBadGrants are refused before anything is sent.
func TestBadGrants(t *testing.T) {
	t.Parallel()
	p := sharedWorld(t).open(t)
	p.http.sent()
	ctx := storetest.Bounded(t)
	_, err := p.Renew(ctx, lock.Grant{Key: "k", Owner: "o", Token: 1})
	require.ErrorIs(t, err, lock.ErrInvalid)
	_, err = p.Renew(ctx, lock.Grant{Key: "k", Token: 1, TTL: time.Second})
	require.ErrorIs(t, err, lock.ErrInvalid)
	_, err = p.Renew(ctx, lock.Grant{Key: "k", Owner: "o", Token: 1, TTL: lock.MaxTTL + 1})
	require.ErrorIs(t, err, lock.ErrInvalid)
	require.ErrorIs(t, p.Release(ctx, lock.Grant{Key: "k"}), lock.ErrInvalid)
	require.ErrorIs(t, p.Release(ctx, lock.Grant{Owner: "o"}), lock.ErrInvalid)
	require.Empty(t, p.http.sent())
}
