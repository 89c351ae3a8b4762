package lock

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestErrorMessages(t *testing.T) {
	holder := func(owner string) Holder { return Holder{Owner: owner, Held: -1, ExpiresIn: -1} }
	for want, err := range map[string]error{
		`lock: do "k": held`:  &Error{"do", "k", ErrHeld},
		`lock: lock "a b": x`: &Error{"lock", "a b", errors.New("x")},
		`lock: held`:          &HeldError{},
		`lock: held: context canceled; 1`: &HeldError{
			Err: errors.New("context canceled; 1"),
		},
		`lock: held by me (shared, token 7, for 1.5s, expires in 2s, a="1", b="x\ny"); 2 in line: over`: &HeldError{
			Record: Record{
				Holders: []Holder{{
					Owner: "me", Token: 7, Shared: true, Held: 1500 * time.Millisecond,
					ExpiresIn: 2 * time.Second, Metadata: map[string]string{"b": "x\ny", "a": "1"},
				}},
				Waiters: make([]Waiter, 2),
			},
			Err: errors.New("lock: over"),
		},
		`lock: held by a, b, c and 2 more`: &HeldError{Record: Record{Holders: []Holder{
			holder("a"), holder("b"), holder("c"), holder("d"), holder("e"),
		}}},
		`lock: lost`:                                   &LostError{},
		`lock: lost: unreachable (token 3): x`:         &LostError{ReasonUnreachable, 3, errors.New("x")},
		`lock: stale token 3 for "k": 4 has been seen`: &StaleError{"k", 3, 4},
	} {
		require.EqualError(t, err, want)
	}
}

func TestErrorsAre(t *testing.T) {
	err := error(&Error{"do", "k", &HeldError{Err: context.Canceled}})
	require.ErrorIs(t, err, ErrHeld)
	require.ErrorIs(t, err, context.Canceled)
	require.NotErrorIs(t, err, ErrLost)
	err = &Error{"do", "k", &LostError{Err: errIO}}
	require.ErrorIs(t, err, ErrLost)
	require.ErrorIs(t, err, errIO)
	require.NotErrorIs(t, err, ErrHeld)
	require.ErrorIs(t, &StaleError{}, ErrStale)
	require.NotErrorIs(t, &StaleError{}, ErrLost)
}

func TestLostReasonString(t *testing.T) {
	for r, want := range map[LostReason]string{
		0: "unknown", ReasonExpired: "expired", ReasonTaken: "taken", ReasonForced: "forced", ReasonUnreachable: "unreachable", 99: "unknown",
	} {
		require.Equal(t, want, r.String())
	}
}

func TestSurvivalString(t *testing.T) {
	require.Equal(t, "none", Survival(0).String())
	require.Equal(t, "release", SurvivesRelease.String())
	require.Equal(t, "expiry|record loss|failover", (SurvivesExpiry | SurvivesRecordLoss | SurvivesFailover).String())
	require.True(t, (SurvivesExpiry | SurvivesRestart).Has(SurvivesRestart))
	require.False(t, SurvivesExpiry.Has(SurvivesExpiry|SurvivesRestart))
}

type wrapper struct{ Locker }

func (w wrapper) Unwrap() Locker { return w.Locker }

func TestAs(t *testing.T) {
	f := newFake()
	got, ok := As[*fake](wrapper{wrapper{f}})
	require.True(t, ok)
	require.Same(t, f, got)
	_, ok = As[Admin](wrapper{f})
	require.False(t, ok)
	_, ok = As[Admin](nil)
	require.False(t, ok)
	w, ok := As[wrapper](wrapper{f})
	require.True(t, ok, "itself first")
	require.Equal(t, wrapper{f}, w)
}
