package dynamo_test

import (
	"context"
	"errors"
	"io"
	"net/http"
	"sync/atomic"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"
	"github.com/stretchr/testify/require"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/dynamo"
	"github.com/seed-215fdefa/lock/internal/storetest"
)

// first calls f before the first request of which it is true, and fails it with f's error.
func (h *hooks) first(which func(operation string) bool, f func() error) {
	done := false
	h.set(func(operation string) (*http.Response, error) {
		if done || !which(operation) {
			return nil, nil
		}
		done = true
		return nil, f()
	}, nil)
}

// nth is true of the nth write.
func nth(n int) func(string) bool {
	return func(operation string) bool {
		if isWrite(operation) {
			n--
		}
		return n == 0 && isWrite(operation)
	}
}

func named(name string) func(string) bool {
	return func(operation string) bool { return operation == name }
}

// TestTakenBeforeTheWithdrawal: a grant was stamped too early, and a rival has taken the lock
// over when it is to be taken back.
func TestTakenBeforeTheWithdrawal(t *testing.T) {
	t.Parallel()
	both(t, func(t *testing.T, mode func(lock.Request) lock.Request) {
		w := sharedWorld(t)
		p, rival := w.start(t), w.open(t)
		p.http.shift(always(-time.Hour))
		storetest.Inspect(t, p, "k")
		var g lock.Grant
		p.http.first(nth(2), func() error {
			g = storetest.Acquire(t, rival, storetest.Request("k"))
			return nil
		})
		storetest.Refused(t, p, mode(storetest.Request("k")))
		storetest.Holds(t, rival, g)
	})
}

// TestLateTakeover: the write that takes over from a dead holder comes after its own undo.
func TestLateTakeover(t *testing.T) {
	t.Parallel()
	both(t, func(t *testing.T, mode func(lock.Request) lock.Request) {
		w := sharedWorld(t)
		p, dead := w.open(t), w.open(t)
		g := storetest.Acquire(t, dead, storetest.Lasting(storetest.Request("k"), 500*time.Millisecond))
		time.Sleep(time.Until(g.Start.Add(g.TTL + p.Capabilities().ExpirySlack))) // it has expired by then, for all who look
		ctx, cancel := context.WithCancel(context.Background())
		req := mode(storetest.Request("k"))
		second := nth(2)
		deliver := p.http.late(t)
		p.http.mu.Lock()
		keep := p.http.intercept
		p.http.intercept = func(operation string, r *http.Request) error {
			if !second(operation) {
				return nil
			}
			cancel()
			return keep(operation, r)
		}
		p.http.mu.Unlock()
		_, err := p.Acquire(ctx, req)
		require.ErrorIs(t, err, context.Canceled)
		storetest.Release(t, p, lock.Grant{Key: "k", Owner: req.Owner})
		refusedLate(t, deliver())
		require.Empty(t, storetest.Inspect(t, dead, "k").Holders)
	})
}

// TestUndoBesideADeadHolder: who takes over keeps to the floor, though its process knows the
// time less well than the one whose request comes late.
func TestUndoBesideADeadHolder(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	p, dead, next := w.open(t), w.start(t), w.start(t)
	for _, l := range []*process{dead, next} {
		l.http.shift(always(-2 * time.Second))
	}
	req := storetest.Request("k")
	deliver := canceled(t, p, req)
	storetest.Acquire(t, dead, storetest.Lasting(storetest.Request("k"), 500*time.Millisecond))
	storetest.Release(t, p, lock.Grant{Key: "k", Owner: req.Owner})
	storetest.Release(t, next, storetest.Await(t, next, storetest.Request("k")))
	refusedLate(t, deliver())
}

// TestReleaseOfWhatIsLost: the first try fails, and by the second another has the lock.
func TestReleaseOfWhatIsLost(t *testing.T) {
	t.Parallel()
	both(t, func(t *testing.T, mode func(lock.Request) lock.Request) {
		w := sharedWorld(t)
		p, rival := w.open(t), w.open(t)
		g := storetest.Acquire(t, p, mode(storetest.Lasting(storetest.Request("k"), 500*time.Millisecond)))
		p.http.first(isWrite, func() error {
			storetest.Await(t, rival, storetest.Request("k"))
			return &netError{errors.New("connection reset by peer")}
		})
		require.Equal(t, lock.ReasonTaken, storetest.Lost(t, p.Release(storetest.Bounded(t), g)))
	})
}

// TestReleaseOfABareGrant, of which its Locker knows neither Start nor TTL: if its first request has
// ended it, it is no loss, and else nobody knows why it is gone.
func TestReleaseOfABareGrant(t *testing.T) {
	t.Parallel()
	both(t, func(t *testing.T, mode func(lock.Request) lock.Request) {
		w := sharedWorld(t)
		p, other := w.open(t), w.open(t)
		g := storetest.Acquire(t, other, mode(storetest.Request("k")))
		bare := lock.Grant{Key: g.Key, Owner: g.Owner, Token: g.Token, Shared: g.Shared}
		left := p.http.loseReplies(1)
		storetest.Release(t, p, bare)
		require.Negative(t, left.Load())
		var err error
		storetest.Eventually(t, "a release that is answered at once", func() bool { // else its own first request may have ended it
			err = p.Release(storetest.Bounded(t), bare)
			return err != nil
		})
		require.Zero(t, storetest.Lost(t, err))
	})
}

// TestPruneRace: an item is used between the scan that finds it idle and the delete.
func TestPruneRace(t *testing.T) {
	t.Parallel()
	both(t, func(t *testing.T, mode func(lock.Request) lock.Request) {
		w := sharedWorld(t)
		p, later := w.open(t), w.start(t)
		storetest.Release(t, p, storetest.Acquire(t, p, storetest.Request("k")))
		later.http.shift(always(2 * time.Hour))
		storetest.Inspect(t, later, "k")
		var g lock.Grant
		later.http.first(named("DeleteItem"), func() error {
			g = storetest.Acquire(t, p, mode(storetest.Request("k")))
			return nil
		})
		n, err := later.Prune(storetest.Bounded(t), "", time.Hour)
		require.NoError(t, err)
		require.Zero(t, n)
		storetest.Holds(t, p, g)
	})
}

// TestUndoOfAWait: the ctx of a call that may wait ends while its first write takes effect. Its undo
// finds the grant.
func TestUndoOfAWait(t *testing.T) {
	t.Parallel()
	both(t, func(t *testing.T, mode func(lock.Request) lock.Request) {
		w := sharedWorld(t)
		p, other := w.open(t), w.open(t)
		req := mode(storetest.Request("k"))
		req.Wait = true
		ctx, cancel := context.WithCancel(t.Context())
		p.http.set(nil, func(operation string, resp *http.Response) (*http.Response, error) {
			if !isWrite(operation) || ctx.Err() != nil {
				return resp, nil
			}
			cancel()
			_ = resp.Body.Close()
			return nil, ctx.Err()
		})
		_, err := p.Acquire(ctx, req)
		require.ErrorIs(t, err, context.Canceled)
		require.NotEmpty(t, storetest.Inspect(t, other, "k").Holders)
		storetest.Release(t, p, lock.Grant{Key: "k", Owner: req.Owner})
		require.Empty(t, storetest.Inspect(t, other, "k").Holders)
	})
}

// TestForceRace: the holder leaves and another comes between the look and the write.
func TestForceRace(t *testing.T) {
	t.Parallel()
	both(t, func(t *testing.T, mode func(lock.Request) lock.Request) {
		w := sharedWorld(t)
		p, admin := w.open(t), w.open(t)
		g := storetest.Acquire(t, p, mode(storetest.Request("k")))
		var next lock.Grant
		admin.http.first(isWrite, func() error {
			storetest.Release(t, p, g)
			next = storetest.Acquire(t, p, mode(storetest.Request("k")))
			return nil
		})
		require.ErrorIs(t, admin.ForceRelease(storetest.Bounded(t), "k", g.Owner), lock.ErrLost)
		storetest.Holds(t, p, next)
	})
}

// TestForceInDoubt: the write that forces a grant takes effect, its reply is lost, and another has
// the lock when it is repeated.
func TestForceInDoubt(t *testing.T) {
	t.Parallel()
	both(t, func(t *testing.T, mode func(lock.Request) lock.Request) {
		w := sharedWorld(t)
		p, admin := w.open(t), w.open(t)
		g := storetest.Acquire(t, p, mode(storetest.Request("k")))
		var next lock.Grant
		admin.http.set(nil, func(operation string, resp *http.Response) (*http.Response, error) {
			if !isWrite(operation) {
				return resp, nil
			}
			_ = resp.Body.Close()
			next = storetest.Acquire(t, p, storetest.Request("k"))
			return nil, &netError{io.ErrUnexpectedEOF}
		})
		require.NoError(t, admin.ForceRelease(storetest.Bounded(t), "k", g.Owner))
		storetest.Holds(t, p, next)
		_, err := p.Renew(storetest.Bounded(t), g)
		require.Equal(t, lock.ReasonTaken, storetest.Lost(t, err))
	})
}

// TestLateGrantInLine: a newcomer's write comes late, when the holder has left and the newcomer stands
// behind another waiter. It has the lock then, and learns of it: neither waits until that has run out.
func TestLateGrantInLine(t *testing.T) {
	t.Parallel()
	both(t, func(t *testing.T, mode func(lock.Request) lock.Request) {
		w := sharedWorld(t)
		p, holder := w.open(t), w.start(t)
		holder.http.shift(always(-2 * time.Second)) // so its token is below the late one
		g := storetest.Acquire(t, holder, storetest.Request("k"))
		first := storetest.Waits(t, p, storetest.Request("k"))

		// In trouble the first knows nothing, so a newcomer asks for itself. The trouble ends with the
		// newcomer's first write.
		var trouble atomic.Bool
		trouble.Store(true)
		refused := make(chan struct{}, 1)
		p.http.set(func(operation string) (*http.Response, error) {
			if operation != "GetItem" || !trouble.Load() {
				return nil, nil
			}
			select {
			case refused <- struct{}{}:
			default:
			}
			return answer(400, "ThrottlingException"), nil
		}, nil)
		deliver := p.http.late(t)
		p.http.mu.Lock()
		keep := p.http.intercept
		p.http.intercept = func(operation string, r *http.Request) error {
			err := keep(operation, r)
			if err != nil {
				trouble.Store(false)
			}
			return err
		}
		p.http.mu.Unlock()
		for range 2 { // by the second the line knows of the first
			storetest.Receive(t, refused)
		}
		newcomer := storetest.Waits(t, p, mode(storetest.Request("k")))

		gate := make(chan struct{}) // so that the first does not come between
		p.http.set(func(string) (*http.Response, error) {
			<-gate
			return nil, nil
		}, nil)
		storetest.Release(t, holder, g)
		require.Equal(t, http.StatusOK, deliver().StatusCode)
		close(gate)
		storetest.Release(t, p, newcomer.Granted(t))
		storetest.Release(t, p, first.Granted(t))
	})
}

// TestAsk: a waiter that sees the lock handed on past it asks for it once, beside a holder
// only. The release that is asked takes two writes, and leaves the lock to the waiter.
func TestAsk(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	busy, other := w.open(t, dynamo.WithPoll(time.Second, 10*time.Second)), w.open(t) // busy rests for 5 s and more
	g := storetest.Acquire(t, busy, storetest.Request("k"))
	handOn := func() {
		storetest.Release(t, busy, g)
		g = storetest.Acquire(t, busy, storetest.Request("k"))
	}
	asked := make(chan struct{})
	asks := 0
	other.http.set(func(operation string) (*http.Response, error) {
		switch {
		case operation == "GetItem" && asks < 2:
			handOn() // as it does all the time; now without a gap
		case operation == "UpdateItem":
			if asks++; asks == 1 {
				w.deleteAll(t) // this one comes too late: there is no holder any more
			}
		}
		return nil, nil
	}, func(operation string, resp *http.Response) (*http.Response, error) {
		switch {
		case operation == "UpdateItem" && asks == 1:
			require.Equal(t, http.StatusBadRequest, resp.StatusCode)
			require.Empty(t, w.items(t))
			g = storetest.Acquire(t, busy, storetest.Request("k"))
		case operation == "UpdateItem" && asks == 2:
			require.Equal(t, http.StatusOK, resp.StatusCode)
			close(asked)
		}
		return resp, nil
	})
	waits := storetest.Waits(t, other, storetest.Request("k"))
	select {
	case <-asked:
	case <-time.After(storetest.Patience):
		require.FailNow(t, "it does not ask")
	}
	storetest.Holds(t, busy, g)
	busy.http.sent()
	storetest.Release(t, busy, g)
	require.Equal(t, map[string]int{"PutItem": 1, "UpdateItem": 1}, busy.http.sent())
	again := storetest.Waits(t, busy, storetest.Request("k"))
	next := waits.Granted(t)
	require.Greater(t, next.Token, g.Token)
	storetest.Release(t, other, next)
	storetest.Release(t, busy, again.Granted(t))
}

// TestRepeatedReader: an owner asks for a shared grant that it has, as by a copy of its request that
// comes late. It keeps that grant, also while a writer waits, and nothing is counted twice.
func TestRepeatedReader(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	p, other := w.open(t), w.open(t)
	req := storetest.Shared(storetest.Request("k"))
	g := storetest.Acquire(t, p, req)
	weight := w.items(t)["k"]["weight"]
	again := storetest.Acquire(t, other, req)
	require.Equal(t, g.Token, again.Token)
	require.True(t, again.Start.After(g.Start))
	g = storetest.Renew(t, p, g)
	expiry := func() string {
		reader := w.items(t)["k"]["reader:"+req.Owner].(*types.AttributeValueMemberM)
		return reader.Value["expiry"].(*types.AttributeValueMemberN).Value
	}
	before := expiry()
	require.Equal(t, g.Token, storetest.Acquire(t, other, storetest.Lasting(req, req.TTL/2)).Token)
	require.Greater(t, expiry(), before, "else who watches that takes it for over")

	writer := storetest.Waits(t, p, storetest.Request("k"))
	storetest.Eventually(t, "the intent", func() bool { return w.items(t)["k"]["intent"] != nil })
	require.Equal(t, g.Token, storetest.Acquire(t, other, req).Token)
	writer.Cancel()
	writer.End(t)
	storetest.Holds(t, p, g)
	require.Equal(t, weight, w.items(t)["k"]["weight"])
	storetest.Release(t, p, g)
	require.Equal(t, digits("0"), w.items(t)["k"]["weight"])
}

// TestRepeatedReaderInDoubt: a write of the second Acquire comes after the release of the grant that it
// found.
func TestRepeatedReaderInDoubt(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	p, other := w.open(t), w.open(t)
	req := storetest.Shared(storetest.Request("k"))
	g := storetest.Acquire(t, p, req)
	deliver := other.http.late(t)
	require.Equal(t, g.Token, storetest.Acquire(t, other, req).Token)
	storetest.Release(t, p, g)
	refusedLate(t, deliver())
	require.Empty(t, storetest.Inspect(t, p, "k").Holders)
}

// TestRepeatedReaderTooLate: the grant of an earlier Acquire is over, and another takes its place.
func TestRepeatedReaderTooLate(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	p := w.open(t)
	req := storetest.Shared(storetest.Lasting(storetest.Request("k"), 500*time.Millisecond))
	g := storetest.Acquire(t, p, req)
	weight := w.items(t)["k"]["weight"]
	time.Sleep(time.Until(g.Start.Add(g.TTL + p.Capabilities().ExpirySlack)))
	next := storetest.Acquire(t, p, storetest.Lasting(req, time.Minute))
	require.Greater(t, next.Token, g.Token)
	storetest.Holds(t, p, next)
	require.Equal(t, weight, w.items(t)["k"]["weight"])
}
