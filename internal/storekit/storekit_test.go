package storekit

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

func TestDoubts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var d Doubts
		require.False(t, d.Take("a"))
		d.Add("a")
		require.False(t, d.Take("b"))
		require.True(t, d.Take("a"))
		require.False(t, d.Take("a"))
		d.Add("a")
		time.Sleep(UndoLife + 1)
		d.Add("b") // forgets the others
		require.False(t, d.Take("a"))
		require.True(t, d.Take("b"))
	})
}

func TestRecent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := NewRecent(time.Second)
		require.False(t, r.Has("k"))
		r.Add("k")
		time.Sleep(time.Second - 1)
		require.True(t, r.Has("k"))
		time.Sleep(time.Nanosecond)
		require.False(t, r.Has("k"))
	})
}

func TestProcessName(t *testing.T) {
	require.Regexp(t, "^[A-Za-z0-9_-]{22}$", ProcessName())
	require.NotEqual(t, ProcessName(), ProcessName())
}
