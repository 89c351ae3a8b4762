package dynamo_test

import (
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"
	"github.com/stretchr/testify/require"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/internal/storetest"
)

// shift makes all replies tell another time.
func (h *hooks) shift(by func() time.Duration) {
	h.set(nil, func(_ string, resp *http.Response) (*http.Response, error) {
		date, err := http.ParseTime(resp.Header.Get("Date"))
		if err == nil {
			resp.Header.Set("Date", date.Add(by()).UTC().Format(http.TimeFormat))
		}
		return resp, nil
	})
}

func always(d time.Duration) func() time.Duration { return func() time.Duration { return d } }

// TestWallClockDoesNotMatter: DynamoDB's time is hours away from this machine's. Leases end
// when they would otherwise, and tokens are of DynamoDB's time.
func TestWallClockDoesNotMatter(t *testing.T) {
	t.Parallel()
	for name, by := range map[string]time.Duration{"behind": -3 * time.Hour, "ahead": 3 * time.Hour} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := sharedWorld(t)
			a, b := w.start(t), w.start(t)
			a.http.shift(always(by))
			b.http.shift(always(by))
			begin := time.Now()
			g := storetest.Acquire(t, a, storetest.Lasting(storetest.Request("k"), 6*time.Second))
			require.WithinDuration(t, begin.Add(by), time.UnixMicro(int64(g.Token)), time.Minute)
			storetest.Refused(t, b, storetest.Request("k"))
			time.Sleep(time.Until(g.Start.Add(g.TTL + b.Capabilities().ExpirySlack)))
			next := storetest.Acquire(t, b, storetest.Request("k"))
			require.Greater(t, next.Token, g.Token)
		})
	}
}

// TestTimeEstimatedTooEarly: what this process believed of DynamoDB's time was an hour too
// early, as after a sleep of the machine. The reply to its write tells, and the lease is
// stamped anew: a rival does not take over.
func TestTimeEstimatedTooEarly(t *testing.T) {
	t.Parallel()
	both(t, func(t *testing.T, mode func(lock.Request) lock.Request) {
		w := sharedWorld(t)
		p, rival := w.start(t), w.open(t)
		var wrong atomic.Bool
		wrong.Store(true)
		p.http.shift(func() time.Duration {
			if wrong.Load() {
				return -time.Hour
			}
			return 0
		})
		storetest.Inspect(t, p, "k")
		wrong.Store(false)
		g := storetest.Acquire(t, p, mode(storetest.Request("k")))
		storetest.Refused(t, rival, storetest.Request("k"))
		storetest.Holds(t, rival, g)
		w.stamped(t, g)

		wrong.Store(true)
		storetest.Inspect(t, p, "other")
		storetest.Inspect(t, p, "other")
		wrong.Store(false)
		g.TTL = 2 * time.Hour // by the wrong time too it ends later than before
		g = storetest.Renew(t, p, g)
		w.stamped(t, g)
		storetest.Refused(t, rival, storetest.Request("k"))
		storetest.Release(t, p, g)
	})
}

// stamped checks that an item's expiry is no earlier than its holder believes. DynamoDB
// Local's clock is this machine's.
func (w world) stamped(tb testing.TB, g lock.Grant) {
	tb.Helper()
	require.GreaterOrEqual(tb, w.expiry(tb, g), g.Start.Add(g.TTL).UnixMicro())
}

// expiry is that of a grant in the table.
func (w world) expiry(tb testing.TB, g lock.Grant) int64 {
	tb.Helper()
	it := w.items(tb)[g.Key]
	if g.Shared {
		it = it["reader:"+g.Owner].(*types.AttributeValueMemberM).Value
	}
	expiry, err := strconv.ParseInt(it["expiry"].(*types.AttributeValueMemberN).Value, 10, 64)
	require.NoError(tb, err)
	return expiry
}

// TestTooEarlyAndInterrupted: as above, and what takes the grant back fails at first, or the
// reply that would have told is lost. What was granted too early is not taken for the grant.
func TestTooEarlyAndInterrupted(t *testing.T) {
	t.Parallel()
	reset := &netError{io.ErrUnexpectedEOF}
	for name, interrupt := range map[string]func(operation string, writes int) bool{
		"first reply lost":  func(operation string, writes int) bool { return isWrite(operation) && writes == 1 },
		"read fails":        func(operation string, writes int) bool { return operation == "GetItem" && writes == 1 },
		"withdrawal's lost": func(operation string, writes int) bool { return isWrite(operation) && writes == 2 },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			both(t, func(t *testing.T, mode func(lock.Request) lock.Request) {
				w := sharedWorld(t)
				p, rival := w.start(t), w.open(t)
				p.http.shift(always(-time.Hour))
				storetest.Inspect(t, p, "k")
				writes, done := 0, false
				p.http.set(nil, func(operation string, resp *http.Response) (*http.Response, error) {
					if isWrite(operation) {
						writes++
					}
					if !done && interrupt(operation, writes) {
						done = true
						_ = resp.Body.Close()
						return nil, reset
					}
					return resp, nil
				})
				g := storetest.Acquire(t, p, mode(storetest.Request("k")))
				require.True(t, done)
				w.stamped(t, g)
				storetest.Refused(t, rival, storetest.Request("k"))
				storetest.Holds(t, rival, g)
				storetest.Release(t, p, g)
				require.Empty(t, storetest.Inspect(t, rival, "k").Holders)
			})
		})
	}
}

// TestRenewedTooLate: a renewal goes through because this process believes in a time that is
// an hour too early. The lease was over: nobody has taken the lock yet, but anybody may.
func TestRenewedTooLate(t *testing.T) {
	t.Parallel()
	for name, lost := range map[string]bool{"told by the reply": false, "reply lost": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			both(t, func(t *testing.T, mode func(lock.Request) lock.Request) {
				w := sharedWorld(t)
				p := w.start(t)
				p.http.shift(always(-time.Hour))
				g := storetest.Acquire(t, p, mode(storetest.Request("k")))
				writes := 0
				p.http.set(nil, func(operation string, resp *http.Response) (*http.Response, error) {
					if writes++; !lost || !isWrite(operation) || writes > 1 {
						return resp, nil
					}
					storetest.Inspect(t, p, "other") // tells the time
					_ = resp.Body.Close()
					return nil, &netError{io.ErrUnexpectedEOF}
				})
				_, err := p.Renew(storetest.Bounded(t), g)
				require.Equal(t, lock.ReasonExpired, storetest.Lost(t, err))
			})
		})
	}
}

// TestTakeoverByObservation: a dead holder's lease was stamped with a time an hour ahead.
// Who waits sees that it is not renewed, and takes over after as long as it lasts.
func TestTakeoverByObservation(t *testing.T) {
	t.Parallel()
	both(t, func(t *testing.T, mode func(lock.Request) lock.Request) {
		w := sharedWorld(t)
		p, rival := w.start(t), w.open(t)
		p.http.shift(always(time.Hour))
		g := storetest.Acquire(t, p, mode(storetest.Lasting(storetest.Request("k"), 2*time.Second)))
		next := storetest.Await(t, rival, storetest.Request("k"))
		require.True(t, next.Start.After(g.Start.Add(g.TTL)))
		require.Greater(t, next.Token, g.Token)
		storetest.Lost(t, p.Release(storetest.Bounded(t), g))
		storetest.Holds(t, rival, next)
	})
}

// TestObservationSeesRenewals: by the same rule, a holder that renews keeps the lock.
func TestObservationSeesRenewals(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	p, rival := w.start(t), w.open(t)
	p.http.shift(always(time.Hour))
	g := storetest.Acquire(t, p, storetest.Lasting(storetest.Request("k"), 8*time.Second))
	waits := storetest.Waits(t, rival, storetest.Request("k"))
	for begin := time.Now(); time.Since(begin) < 2*g.TTL; time.Sleep(g.TTL / 8) {
		g = storetest.Renew(t, p, g)
	}
	select {
	case <-waits.Done:
		require.Fail(t, "a living holder was succeeded")
	default:
	}
	storetest.Release(t, p, g)
	waits.Granted(t)
}

// TestTakeoverIsAtomic: the holder renews, or another takes over, between a rival's look at
// the item and its write.
func TestTakeoverIsAtomic(t *testing.T) {
	t.Parallel()
	both(t, func(t *testing.T, mode func(lock.Request) lock.Request) {
		w := sharedWorld(t)
		p, rival, third := w.open(t), w.open(t), w.open(t)
		g := storetest.Acquire(t, p, mode(storetest.Lasting(storetest.Request("k"), time.Second)))
		time.Sleep(time.Until(g.Start.Add(g.TTL + rival.Capabilities().ExpirySlack)))
		var next lock.Grant
		writes := 0
		rival.http.set(func(operation string) (*http.Response, error) {
			if writes++; isWrite(operation) && writes == 2 { // the first was refused
				next = storetest.Acquire(t, third, storetest.Request("k"))
			}
			return nil, nil
		}, nil)
		storetest.Refused(t, rival, storetest.Request("k"))
		require.GreaterOrEqual(t, writes, 2)
		storetest.Holds(t, third, next)
	})
}

// TestTimeOfAGateway: a gateway, whose clock is an hour ahead, answers for DynamoDB. Its Date is
// not believed: the next lease does not end an hour late. What looks like a success is none.
func TestTimeOfAGateway(t *testing.T) {
	t.Parallel()
	both(t, func(t *testing.T, mode func(lock.Request) lock.Request) {
		w := sharedWorld(t)
		p := w.open(t)
		for status, says := range map[int]string{
			http.StatusServiceUnavailable: "ServiceUnavailable", http.StatusOK: "no DynamoDB answers",
		} {
			p.http.set(func(string) (*http.Response, error) {
				resp := answer(status, "ServiceUnavailable")
				resp.Header.Set("Date", time.Now().Add(time.Hour).UTC().Format(http.TimeFormat))
				return resp, nil
			}, nil)
			_, err := p.Acquire(storetest.Bounded(t), storetest.Request("other"))
			require.ErrorContains(t, err, says)
			p.http.set(nil, nil)
			g := storetest.Acquire(t, p, mode(storetest.Request("k")))
			require.Less(t, w.expiry(t, g), g.Start.Add(g.TTL+time.Minute).UnixMicro())
			storetest.Release(t, p, g)
		}
	})
}

// TestNoTime: a client that drops the metadata of results is told of.
func TestNoTime(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	p := w.start(t)
	p.http.set(nil, func(_ string, resp *http.Response) (*http.Response, error) {
		resp.Header.Del("Date")
		return resp, nil
	})
	_, err := p.Acquire(storetest.Bounded(t), storetest.Request("k"))
	require.ErrorContains(t, err, "Date")
}

// TestTimeOfABrokenItem: the item that is read for the time is no lock. That is no other key's trouble.
func TestTimeOfABrokenItem(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	it := w.primary("time")
	it["holder"] = text("somebody")
	w.put(t, it)
	p := w.start(t)
	p.http.set(func(operation string) (*http.Response, error) {
		if strings.HasPrefix(operation, "Describe") { // it would tell the time
			return answer(400, "AccessDeniedException"), nil
		}
		return nil, nil
	}, nil)
	storetest.Release(t, p, storetest.Acquire(t, p, storetest.Request("k")))
}

// TestTokenAfterRestore: an item is replaced by an older one of itself, as by a table that
// was restored from a backup. Tokens are above those that it has forgotten.
func TestTokenAfterRestore(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	p := w.open(t)
	storetest.Release(t, p, storetest.Acquire(t, p, storetest.Request("k")))
	backup := w.items(t)["k"]
	last := storetest.Acquire(t, p, storetest.Request("k"))
	storetest.Release(t, p, last)
	w.put(t, backup)
	require.Greater(t, storetest.Acquire(t, p, storetest.Request("k")).Token, last.Token)
}

// TestTokenAheadOfTheTime: the last token is of a clock that was an hour ahead.
func TestTokenAheadOfTheTime(t *testing.T) {
	t.Parallel()
	both(t, func(t *testing.T, mode func(lock.Request) lock.Request) {
		w := sharedWorld(t)
		p := w.open(t)
		g := storetest.Acquire(t, p, storetest.Request("k"))
		storetest.Release(t, p, g)
		it := w.items(t)["k"]
		ahead := g.Token + lock.Token(time.Hour.Microseconds())
		it["barrier"] = &types.AttributeValueMemberN{Value: ahead.String()}
		w.put(t, it)
		for n := range lock.Token(3) {
			g := storetest.Acquire(t, p, mode(storetest.Request("k")))
			require.Equal(t, ahead+n+1, g.Token)
			storetest.Release(t, p, g)
		}
	})
}

func (w world) put(tb testing.TB, it map[string]types.AttributeValue) {
	tb.Helper()
	_, err := w.db.PutItem(storetest.Bounded(tb), &dynamodb.PutItemInput{TableName: aws.String(w.table), Item: it})
	require.NoError(tb, err)
}
