package dynamo_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"sync/atomic"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/aws/retry"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/stretchr/testify/require"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/dynamo"
	"github.com/seed-215fdefa/lock/internal/storetest"
)

// TestTransientErrors: throttling and errors that pass cost nobody the lock.
func TestTransientErrors(t *testing.T) {
	t.Parallel()
	errs := map[string]func() (*http.Response, error){
		"conflict": func() (*http.Response, error) { return answer(400, "TransactionConflictException"), nil },
		"throughput": func() (*http.Response, error) {
			return answer(400, "ProvisionedThroughputExceededException"), nil
		},
		"throttling":  func() (*http.Response, error) { return answer(400, "ThrottlingException"), nil },
		"limit":       func() (*http.Response, error) { return answer(400, "RequestLimitExceeded"), nil },
		"in progress": func() (*http.Response, error) { return answer(400, "TransactionInProgressException"), nil },
		"replicated":  func() (*http.Response, error) { return answer(400, "ReplicatedWriteConflictException"), nil },
		"expired":     func() (*http.Response, error) { return answer(400, "ExpiredTokenException"), nil },
		"rotated":     func() (*http.Response, error) { return answer(400, "UnrecognizedClientException"), nil },
		"internal":    func() (*http.Response, error) { return answer(500, "InternalServerError"), nil },
		"no service":  func() (*http.Response, error) { return answer(503, "ServiceUnavailable"), nil },
		"clock skew":  func() (*http.Response, error) { return answer(400, "InvalidSignatureException"), nil },
		"reset":       func() (*http.Response, error) { return nil, &netError{errors.New("connection reset by peer")} },
	}
	for name, failure := range errs {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			both(t, func(t *testing.T, mode func(lock.Request) lock.Request) {
				w := sharedWorld(t)
				p, other := w.open(t), w.open(t)
				var left atomic.Int32
				p.http.set(func(string) (*http.Response, error) {
					if left.Add(-1) >= 0 {
						return failure()
					}
					return nil, nil
				}, nil)
				left.Store(1)
				g := storetest.Acquire(t, p, mode(storetest.Request("k")))
				storetest.Holds(t, other, g)
				left.Store(1)
				g = storetest.Renew(t, p, g)
				left.Store(1)
				storetest.Inspect(t, p, "k")
				left.Store(1)
				storetest.Release(t, p, g)
				require.Empty(t, storetest.Inspect(t, other, "k").Holders)
				left.Store(1)
				storetest.Release(t, p, lock.Grant{Key: "k", Owner: "nobody"})
				require.Negative(t, left.Load())
			})
		})
	}
}

// netError is an error of a connection.
type netError struct{ error }

func (netError) Timeout() bool         { return false }
func (netError) Temporary() bool       { return true }
func (netError) ConnectionError() bool { return true }

// TestThrottledForGood: ctx ends the attempts, and the error says both.
func TestThrottledForGood(t *testing.T) {
	t.Parallel()
	p := sharedWorld(t).open(t)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	var answers atomic.Int32
	p.http.set(func(string) (*http.Response, error) {
		if answers.Add(1) == 3 {
			cancel()
		}
		return answer(400, "ProvisionedThroughputExceededException"), nil
	}, nil)
	_, err := p.Acquire(ctx, storetest.Request("k"))
	require.ErrorIs(t, err, context.Canceled)
	require.ErrorContains(t, err, "ProvisionedThroughputExceededException")
	require.NotErrorIs(t, err, lock.ErrHeld)
}

// TestTroubleWhileWaiting: who is in line goes on through what may pass, for longer than one
// call does, and gets the lock. What cannot pass ends the wait at once.
func TestTroubleWhileWaiting(t *testing.T) {
	t.Parallel()
	for name, passes := range map[string]bool{
		"ExpiredTokenException": true, "UnrecognizedClientException": true, "ThrottlingException": true,
		"ResourceNotFoundException": false, "AccessDeniedException": false,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := sharedWorld(t)
			p, other := w.open(t), w.open(t)
			g := storetest.Acquire(t, other, storetest.Request("k"))
			waits := storetest.Waits(t, p, storetest.Request("k"))
			var answers atomic.Int32
			p.http.set(func(string) (*http.Response, error) {
				answers.Add(1)
				return answer(400, name), nil
			}, nil)
			if !passes {
				waits.End(t)
				require.ErrorContains(t, waits.Err, name)
				return
			}
			// One call gives up after ten.
			storetest.Eventually(t, "more than one call", func() bool { return answers.Load() > 12 })
			p.http.set(nil, nil)
			storetest.Release(t, other, g)
			storetest.Release(t, p, waits.Granted(t))
		})
	}
}

// TestFirstRequestFails: it is told at once, with the store's own error, to who waits too.
func TestFirstRequestFails(t *testing.T) {
	t.Parallel()
	p := sharedWorld(t).open(t)
	p.http.set(func(string) (*http.Response, error) { return answer(400, "ThrottlingException"), nil }, nil)
	req := storetest.Request("k")
	req.Wait = true
	begin := time.Now()
	_, err := p.Acquire(context.Background(), req)
	require.ErrorContains(t, err, "ThrottlingException")
	require.Less(t, time.Since(begin), lock.Patience)
}

// TestFrozenIsNotHeldForSeveral: many goroutines of one process ask for a key while DynamoDB does
// not answer. Nobody has shown the key held.
func TestFrozenIsNotHeldForSeveral(t *testing.T) {
	t.Parallel()
	both(t, func(t *testing.T, mode func(lock.Request) lock.Request) {
		p := sharedWorld(t).open(t)
		heal := p.net.Freeze()
		c := lock.New(p.Locker)
		const n = 5
		errs := make(chan error, n)
		for range n {
			go func() {
				opts := []lock.Option{lock.WithWait(2 * time.Second)}
				if mode(lock.Request{}).Shared {
					opts = append(opts, lock.WithShared())
				}
				_, err := c.Lock(t.Context(), "k", opts...)
				errs <- err
			}()
		}
		for range n {
			err := storetest.Receive(t, errs)
			require.ErrorIs(t, err, lock.ErrUnavailable)
			require.NotErrorIs(t, err, lock.ErrHeld)
		}
		heal()
		require.NoError(t, c.Close(storetest.Bounded(t)))
	})
}

// TestNoCredentials: the error says so, and what to do.
func TestNoCredentials(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	failing := aws.CredentialsProviderFunc(func(context.Context) (aws.Credentials, error) {
		return aws.Credentials{}, errors.New("no role")
	})
	for name, c := range map[string]aws.CredentialsProvider{
		"none": nil, "empty": credentials.NewStaticCredentialsProvider("", "", ""), "failing": aws.NewCredentialsCache(failing),
	} {
		db := dynamodb.New(w.db.Options(), func(o *dynamodb.Options) { o.Credentials = c })
		_, err := dynamo.New(db, w.table).Acquire(storetest.Bounded(t), storetest.Request("k"))
		require.ErrorContains(t, err, "credentials: set them", name)
	}
}

// TestNoItemInRefusals: a server or proxy that knows nothing of
// ReturnValuesOnConditionCheckFailure. The item is read instead.
func TestNoItemInRefusals(t *testing.T) {
	t.Parallel()
	both(t, func(t *testing.T, mode func(lock.Request) lock.Request) {
		w := sharedWorld(t)
		l := dynamo.New(old{w.db}, w.table, dynamo.WithPrefix(w.prefix))
		g := storetest.Acquire(t, l, mode(storetest.Request("k")))
		require.Len(t, storetest.Refused(t, l, storetest.Request("k")).Holders, 1)
		waits := storetest.Waits(t, l, storetest.Request("k"))
		g = storetest.Renew(t, l, g)
		storetest.Release(t, l, g)
		storetest.Lost(t, l.Release(storetest.Bounded(t), g))
		g = waits.Granted(t)
		require.NoError(t, l.ForceRelease(storetest.Bounded(t), "k", g.Owner))
		_, err := l.Renew(storetest.Bounded(t), g)
		require.Equal(t, lock.ReasonForced, storetest.Lost(t, err))
	})
}

// old is a client whose refusals bring no item.
type old struct{ *dynamodb.Client }

func (c old) PutItem(ctx context.Context, in *dynamodb.PutItemInput, opts ...func(*dynamodb.Options)) (*dynamodb.PutItemOutput, error) {
	in.ReturnValuesOnConditionCheckFailure = ""
	return c.Client.PutItem(ctx, in, opts...)
}

func (c old) UpdateItem(ctx context.Context, in *dynamodb.UpdateItemInput, opts ...func(*dynamodb.Options)) (*dynamodb.UpdateItemOutput, error) {
	in.ReturnValuesOnConditionCheckFailure = ""
	return c.Client.UpdateItem(ctx, in, opts...)
}

// TestPermanentError: what cannot pass is told at once.
func TestPermanentError(t *testing.T) {
	t.Parallel()
	p := sharedWorld(t).open(t)
	p.http.set(func(string) (*http.Response, error) { return answer(400, "AccessDeniedException"), nil }, nil)
	p.http.sent()
	_, err := p.Acquire(storetest.Bounded(t), storetest.Request("k"))
	require.ErrorContains(t, err, "AccessDeniedException")
	require.Equal(t, map[string]int{"PutItem": 1}, p.http.sent())
}

// isWrite tells whether an operation is one of those that a Locker writes by.
func isWrite(operation string) bool { return operation == "PutItem" || operation == "UpdateItem" }

// loseReplies makes the next n replies to writes get lost, after they have taken effect.
func (h *hooks) loseReplies(n int32) (left *atomic.Int32) {
	left = new(atomic.Int32)
	left.Store(n)
	h.set(nil, func(operation string, resp *http.Response) (*http.Response, error) {
		if isWrite(operation) && left.Add(-1) >= 0 {
			_ = resp.Body.Close()
			return nil, &netError{io.ErrUnexpectedEOF}
		}
		return resp, nil
	})
	return left
}

// TestLostReplies: each write takes effect and says so to nobody. There is one grant with
// one token, whose Start is from before the write; a renewal renews; a release is no loss.
func TestLostReplies(t *testing.T) {
	t.Parallel()
	both(t, func(t *testing.T, mode func(lock.Request) lock.Request) {
		w := sharedWorld(t)
		p, other := w.open(t), w.open(t)
		for _, lost := range []int32{1, 2, 3} {
			left := p.http.loseReplies(lost)
			before := time.Now()
			g := storetest.Acquire(t, p, mode(storetest.Request("k")))
			require.True(t, g.Start.After(before))
			storetest.Holds(t, other, g)
			left.Store(lost)
			r := storetest.Renew(t, p, g)
			require.True(t, r.Start.After(g.Start))
			left.Store(lost)
			storetest.Release(t, p, r)
			require.Empty(t, storetest.Inspect(t, other, "k").Holders)
		}
	})
}

// answerLate keeps the reply to the next write back until ttl, and what DynamoDB's time may be off, are
// over, and then passes it on, or loses it. meanwhile, if not nil, runs first. late is when the sender
// heard of it; zero: not yet.
func (h *hooks) answerLate(ttl time.Duration, lost bool, meanwhile func()) (late *time.Time) {
	late = new(time.Time)
	h.set(nil, func(operation string, resp *http.Response) (*http.Response, error) {
		if !isWrite(operation) || !late.IsZero() {
			return resp, nil
		}
		body, err := io.ReadAll(resp.Body) // now: it ends with the time that the request is given
		_ = resp.Body.Close()
		if meanwhile != nil {
			meanwhile()
		}
		time.Sleep(ttl + 1500*time.Millisecond)
		*late = time.Now()
		if lost || err != nil {
			return nil, &netError{io.ErrUnexpectedEOF}
		}
		resp.Body = io.NopCloser(bytes.NewReader(body))
		return resp, nil
	})
	return late
}

// lateOrLost runs f for replies that come late, and for those that are lost then, each as both does.
func lateOrLost(t *testing.T, f func(t *testing.T, lost bool, mode func(lock.Request) lock.Request)) {
	for name, lost := range map[string]bool{"late": false, "lost": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			both(t, func(t *testing.T, mode func(lock.Request) lock.Request) { f(t, lost, mode) })
		})
	}
}

// TestLateAnswer: a write takes effect, and its sender learns of that when the TTL has passed. An
// acquisition grants anew, and a renewal renews again or tells the loss.
func TestLateAnswer(t *testing.T) {
	t.Parallel()
	lateOrLost(t, func(t *testing.T, lost bool, mode func(lock.Request) lock.Request) {
		p := sharedWorld(t).open(t)
		const ttl = 2 * time.Second
		late := p.http.answerLate(ttl, lost, nil)
		g := storetest.Acquire(t, p, mode(storetest.Lasting(storetest.Request("k"), ttl)))
		require.True(t, g.Start.After(*late), "it may be over")

		g = storetest.Acquire(t, p, mode(storetest.Lasting(storetest.Request("renewed"), ttl)))
		late = p.http.answerLate(ttl, lost, nil)
		g, err := p.Renew(storetest.Bounded(t), g)
		if err == nil {
			require.True(t, g.Start.After(*late), "it may be over")
		} else {
			require.Equal(t, lock.ReasonExpired, storetest.Lost(t, err))
		}
	})
}

// TestLateAnswerOfARenewedGrant: the lock service's client has gone on with the grant by way of another
// replica. The one whose answer comes late does not take it back.
func TestLateAnswerOfARenewedGrant(t *testing.T) {
	t.Parallel()
	lateOrLost(t, func(t *testing.T, lost bool, mode func(lock.Request) lock.Request) {
		w := sharedWorld(t)
		p, other := w.open(t), w.open(t)
		const ttl = 2 * time.Second
		var renewed lock.Grant
		ctx := storetest.Bounded(t)
		p.http.answerLate(ttl, lost, func() {
			rec, _ := other.Inspect(ctx, "k")
			for _, h := range rec.Holders {
				renewed, _ = other.Renew(ctx, lock.Grant{
					Key: "k", Owner: h.Owner, Token: h.Token, TTL: time.Minute, Start: time.Now(), Shared: h.Shared,
				})
			}
		})
		g := storetest.Acquire(t, p, mode(storetest.Lasting(storetest.Request("k"), ttl)))
		require.NotZero(t, renewed.Token)
		require.Equal(t, renewed.Token, g.Token)
		storetest.Renew(t, other, renewed)
	})
}

// TestRetryingClient: of a client that sends again by itself, an acquisition finds its own
// grant, and a renewal its own renewal.
func TestRetryingClient(t *testing.T) {
	t.Parallel()
	both(t, func(t *testing.T, mode func(lock.Request) lock.Request) {
		w := sharedWorld(t)
		p, other := w.open(t), w.open(t)
		l := dynamo.New(retrying{p.db}, w.table, dynamo.WithPrefix(w.prefix))
		left := p.http.loseReplies(1)
		g := storetest.Acquire(t, l, mode(storetest.Request("k")))
		require.Negative(t, left.Load())
		storetest.Holds(t, other, g)
		left.Store(1)
		g = storetest.Renew(t, l, g)
		require.Negative(t, left.Load())
		storetest.Release(t, l, g)
	})
}

// retrying is a wrapper that repeats requests on its own, whatever it is told.
type retrying struct{ *dynamodb.Client }

func (r retrying) PutItem(ctx context.Context, in *dynamodb.PutItemInput, _ ...func(*dynamodb.Options)) (*dynamodb.PutItemOutput, error) {
	return r.Client.PutItem(ctx, in, repeats)
}

func (r retrying) UpdateItem(ctx context.Context, in *dynamodb.UpdateItemInput, _ ...func(*dynamodb.Options)) (*dynamodb.UpdateItemOutput, error) {
	return r.Client.UpdateItem(ctx, in, repeats)
}

func repeats(o *dynamodb.Options) {
	o.Retryer = retry.NewStandard(func(o *retry.StandardOptions) {
		o.Backoff = retry.BackoffDelayerFunc(func(int, error) (time.Duration, error) { return time.Millisecond, nil })
	})
}

// late keeps the next write back, as a network may: its sender hears of an error, and deliver
// sends it when the test says so.
func (h *hooks) late(t *testing.T) (deliver func() *http.Response) {
	t.Helper()
	kept := make(chan *http.Request, 1)
	h.mu.Lock()
	defer h.mu.Unlock()
	h.intercept = func(operation string, req *http.Request) error {
		if !isWrite(operation) || len(kept) == 1 {
			return nil
		}
		kept <- copyOf(req)
		return &netError{io.ErrUnexpectedEOF}
	}
	return func() *http.Response {
		h.mu.Lock()
		h.intercept = nil
		h.mu.Unlock()
		require.Len(t, kept, 1)
		resp, err := h.next.RoundTrip(<-kept)
		require.NoError(t, err)
		_, _ = io.Copy(io.Discard, resp.Body)
		require.NoError(t, resp.Body.Close())
		return resp
	}
}

// TestLateRequest: a write comes after what its sender has done since because it did not
// know its outcome. It must have no effect.
func TestLateRequest(t *testing.T) {
	t.Parallel()
	both(t, func(t *testing.T, mode func(lock.Request) lock.Request) {
		w := sharedWorld(t)
		p, other := w.open(t), w.open(t)
		for name, used := range map[string]bool{"of a new key": false, "of a used key": true} {
			t.Run(name, func(t *testing.T) {
				if used {
					storetest.Release(t, other, storetest.Acquire(t, other, storetest.Request(name)))
				}
				lateAfterUndo(t, p, other, mode(storetest.Request(name)))
			})
		}
		t.Run("after a release", func(t *testing.T) {
			deliver := p.http.late(t)
			g := storetest.Acquire(t, p, mode(storetest.Request("released")))
			storetest.Release(t, p, g)
			refusedLate(t, deliver())
			require.Empty(t, storetest.Inspect(t, other, "released").Holders)
		})
		t.Run("after a refusal", func(t *testing.T) {
			holder := w.start(t)
			holder.http.shift(always(-2 * time.Second)) // so its token is below the late one
			g := storetest.Acquire(t, holder, storetest.Request("refused"))
			deliver := p.http.late(t)
			storetest.Refused(t, p, mode(storetest.Request("refused")))
			storetest.Release(t, holder, g)
			refusedLate(t, deliver())
			require.Empty(t, storetest.Inspect(t, other, "refused").Holders)
		})
		t.Run("renewal", func(t *testing.T) {
			g := storetest.Acquire(t, p, mode(storetest.Request("renewed")))
			deliver := p.http.late(t)
			g = storetest.Renew(t, p, g)
			before := w.items(t)["renewed"]
			refusedLate(t, deliver())
			require.Equal(t, before, w.items(t)["renewed"], "a late renewal shortens a later one")
			storetest.Release(t, p, g)
		})
		t.Run("release", func(t *testing.T) {
			g := storetest.Acquire(t, p, mode(storetest.Request("again")))
			deliver := p.http.late(t)
			storetest.Release(t, p, g)
			next := storetest.Acquire(t, p, mode(storetest.Request("again")))
			refusedLate(t, deliver())
			storetest.Holds(t, other, next)
		})
	})
}

// canceled cancels an Acquire while its write is under way.
func canceled(t *testing.T, p *process, req lock.Request) (deliver func() *http.Response) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	deliver = p.http.late(t)
	p.http.mu.Lock()
	keep := p.http.intercept
	p.http.intercept = func(operation string, r *http.Request) error {
		err := keep(operation, r)
		if err != nil {
			cancel()
		}
		return err
	}
	p.http.mu.Unlock()
	_, err := p.Acquire(ctx, req)
	require.ErrorIs(t, err, context.Canceled)
	return deliver
}

func lateAfterUndo(t *testing.T, p *process, other lock.Locker, req lock.Request) {
	t.Helper()
	deliver := canceled(t, p, req)
	storetest.Release(t, p, lock.Grant{Key: req.Key, Owner: req.Owner})
	refusedLate(t, deliver())
	require.Empty(t, storetest.Inspect(t, other, req.Key).Holders)
	storetest.Release(t, other, storetest.Acquire(t, other, storetest.Request(req.Key)))
}

// TestUndoBesideAHolder refuses what comes after that holder's release, though its token is
// above the holder's, whose process knows the time less well.
func TestUndoBesideAHolder(t *testing.T) {
	t.Parallel()
	both(t, func(t *testing.T, mode func(lock.Request) lock.Request) {
		w := sharedWorld(t)
		p, holder, other := w.open(t), w.start(t), w.open(t)
		holder.http.shift(always(-2 * time.Second))
		req := mode(storetest.Request("k"))
		deliver := canceled(t, p, req)
		g := storetest.Acquire(t, holder, storetest.Request("k"))
		storetest.Release(t, p, lock.Grant{Key: req.Key, Owner: req.Owner})
		storetest.Holds(t, other, g)
		g = storetest.Renew(t, holder, g)
		holder.http.sent()
		storetest.Release(t, holder, g)
		require.Equal(t, map[string]int{"PutItem": 1, "UpdateItem": 1}, holder.http.sent())
		require.Equal(t, g.Token, storetest.Inspect(t, other, "k").Token)
		refusedLate(t, deliver())
		require.Empty(t, storetest.Inspect(t, other, "k").Holders)
		require.Greater(t, storetest.Acquire(t, other, storetest.Request("k")).Token, g.Token)
	})
}

func refusedLate(t *testing.T, resp *http.Response) {
	t.Helper()
	require.Equal(t, http.StatusBadRequest, resp.StatusCode, "the late write took effect")
}
