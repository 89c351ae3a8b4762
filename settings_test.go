package lock

import (
	"math"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestSettings(t *testing.T) {
	f := newFake()
	f.caps.Shared = true
	c := New(f, WithTTL(time.Minute), WithMetadata(map[string]string{"host": "a"}))
	s, err := c.Settings()
	require.NoError(t, err)
	drift := time.Minute/100 + 2*time.Millisecond
	require.Equal(t, Settings{TTL: time.Minute, Wait: -1, Metadata: map[string]string{"host": "a"}, Drift: drift}, s)
	s.Metadata["host"] = "b" // is a copy

	s, err = c.Settings(WithTTL(time.Second), WithWait(0), WithShared(), WithMinHold(500*time.Millisecond), WithDrift(time.Millisecond))
	require.NoError(t, err)
	require.Equal(t, Settings{
		TTL: time.Second, Metadata: map[string]string{"host": "a"}, Shared: true,
		MinHold: 500 * time.Millisecond, Drift: time.Millisecond,
	}, s)

	for wait, want := range map[time.Duration]time.Duration{MaxTTL: MaxTTL, MaxTTL + 1: -1, math.MaxInt64: -1} {
		s, err = c.Settings(WithWait(wait))
		require.NoError(t, err)
		require.Equal(t, want, s.Wait)
	}

	_, err = c.Settings(WithDeadlockDetection(time.Second))
	require.ErrorIs(t, err, ErrUnsupported, "its store shows nobody who waits")
	_, err = c.Settings(WithTTL(-1))
	require.ErrorIs(t, err, ErrInvalid)
	_, err = (*Client)(nil).Settings()
	require.ErrorIs(t, err, ErrInvalid)
}
