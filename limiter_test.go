package lock

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestLimiter(t *testing.T) {
	var m limiter
	require.False(t, m.full(0))
	calls := make([]slot, maxYoung+1)
	for i := range calls[:maxYoung] {
		require.False(t, m.full(0), i)
		m.begin(&calls[i], time.Duration(i))
		calls[i].inStore.Store(true)
	}
	require.True(t, m.full(youngFor-1))
	require.Equal(t, youngFor, m.freeAt(0), "when the first has run for long enough")
	m.end(&calls[7])
	require.False(t, m.full(youngFor-1), "one has returned")
	m.begin(&calls[maxYoung], youngFor-1) // which waits for a processor
	require.True(t, m.full(youngFor-1))
	require.False(t, m.full(youngFor), "the first counts no more")
	m.end(&calls[0])
	m.end(&calls[0])
	require.Equal(t, maxYoung-1, m.young, "a call is given back once")
	require.False(t, m.full(time.Hour))
	require.Equal(t, 1, m.young, "all but the one that is not in the store")
	require.Equal(t, time.Hour+time.Millisecond, m.freeAt(time.Hour))
	calls[maxYoung].inStore.Store(true)
	require.False(t, m.full(time.Hour))
	require.Zero(t, m.young)
	require.Empty(t, m.slots)
}
