package lock

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

const (
	pollShortest = 10 * time.Millisecond
	pollLongest  = time.Second
)

func TestPollGrants(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var at []time.Time
		told := 0
		req := Request{Key: "k", Wait: true, Waiting: func(r Record) {
			told++
			require.Len(t, at, 1, "when the first try has found the key held")
			require.Equal(t, "k", r.Key)
		}}
		g, err := Poll(t.Context(), req, pollShortest, pollLongest, func(context.Context) (Grant, error) {
			if at = append(at, time.Now()); len(at) < 200 {
				return Grant{}, ErrHeld
			}
			return Grant{Token: 7}, nil
		})
		require.NoError(t, err)
		require.Equal(t, Token(7), g.Token)
		require.Equal(t, 1, told)
		var late time.Duration
		for i := range at[1:] {
			pause := at[i+1].Sub(at[i])
			require.Greater(t, pause, pollShortest)
			require.LessOrEqual(t, pause, min(pollShortest+pollShortest<<min(i, 20), pollLongest))
			if i >= 100 {
				late += pause
			}
		}
		require.InDelta(t, pollLongest/2, late/99, float64(pollLongest/5), "full jitter")
	})
}

func TestPollWithoutWait(t *testing.T) {
	n := 0
	_, err := Poll(t.Context(), Request{}, pollShortest, pollLongest, func(context.Context) (Grant, error) {
		n++
		return Grant{}, ErrHeld
	})
	require.Equal(t, ErrHeld, err)
	require.Equal(t, 1, n)
}

func TestPollEndsWithOtherErrors(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := 0
		_, err := Poll(t.Context(), Request{Wait: true}, pollShortest, pollLongest, func(context.Context) (Grant, error) {
			if n++; n < 3 {
				return Grant{}, ErrHeld
			}
			return Grant{}, errIO
		})
		require.Equal(t, errIO, err)
	})
}

func TestPollEndsWithContext(t *testing.T) {
	held := &HeldError{Record: Record{Holders: []Holder{{Owner: "me", ExpiresIn: -1}}}}
	for name, try := range map[string]func(context.Context) (Grant, error){
		"in a pause": func(context.Context) (Grant, error) { return Grant{}, held },
		"in a try": func() func(context.Context) (Grant, error) {
			n := 0
			return func(ctx context.Context) (Grant, error) {
				if n++; n == 1 {
					return Grant{}, held
				}
				<-ctx.Done()
				return Grant{}, ctx.Err()
			}
		}(),
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
				defer cancel()
				start := time.Now()
				_, err := Poll(ctx, Request{Wait: true}, pollShortest, pollLongest, try)
				require.Equal(t, 10*time.Second, time.Since(start))
				require.ErrorIs(t, err, context.DeadlineExceeded)
				require.ErrorIs(t, err, ErrHeld)
				var h *HeldError
				require.True(t, errors.As(err, &h))
				require.Equal(t, held.Record, h.Record)
			})
		})
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := Poll(ctx, Request{Wait: true}, pollShortest, pollLongest, func(ctx context.Context) (Grant, error) {
		return Grant{}, ctx.Err()
	})
	require.ErrorIs(t, err, context.Canceled)
	require.NotErrorIs(t, err, ErrHeld, "it was not seen held")
}

func TestPollDoesNotOversleepAKnownEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		end := time.Now().Add(100 * time.Second)
		n := 0
		_, err := Poll(t.Context(), Request{Wait: true}, time.Hour, time.Hour, func(context.Context) (Grant, error) {
			n++
			if left := time.Until(end); left > 0 {
				return Grant{}, &HeldError{Record: Record{Holders: []Holder{
					{ExpiresIn: -1}, {ExpiresIn: left}, {ExpiresIn: left + time.Hour},
				}}}
			}
			return Grant{}, nil
		})
		require.NoError(t, err)
		require.Equal(t, 2, n)
		require.Less(t, time.Since(end), time.Hour)
	})
}

// A holder whose end is past is no reason to ask all the time.
func TestPollBesideAHolderPastItsEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var last time.Time
		n := 0
		_, err := Poll(t.Context(), Request{Wait: true}, pollShortest, pollLongest, func(context.Context) (Grant, error) {
			if now := time.Now(); !last.IsZero() {
				require.Greater(t, now.Sub(last), pollShortest)
			}
			if last = time.Now(); n == 100 {
				return Grant{}, nil
			}
			n++
			return Grant{}, &HeldError{Record: Record{Holders: []Holder{{ExpiresIn: 0}}}}
		})
		require.NoError(t, err)
	})
}

func TestPollBounds(t *testing.T) {
	for _, c := range [][2]time.Duration{{0, 1}, {-1, 1}, {2, 1}} {
		_, err := Poll(t.Context(), Request{}, c[0], c[1], nil)
		require.ErrorIs(t, err, ErrInvalid)
	}
}

func FuzzBackoff(f *testing.F) {
	f.Add(0, int64(1), int64(1))
	f.Add(70, int64(1), int64(1)<<62)
	f.Add(3, int64(1)<<61, int64(1)<<62)
	f.Add(5, int64(0), int64(0))
	f.Fuzz(func(t *testing.T, n int, shortest, longest int64) {
		if n < 0 || shortest < 0 || longest < shortest {
			t.Skip()
		}
		p := backoff(n, time.Duration(shortest), time.Duration(longest))
		require.GreaterOrEqual(t, p, time.Duration(0))
		require.LessOrEqual(t, p, time.Duration(longest))
		if shortest > 0 {
			require.Positive(t, p)
		}
	})
}
