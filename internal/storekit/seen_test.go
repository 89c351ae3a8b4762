package storekit

import (
	"strconv"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestSeen(t *testing.T) {
	s := NewSeen()
	require.False(t, s.Has(""))
	s.Add("k")
	s.Add("k")
	require.True(t, s.Has("k"))
	for i := range 100_000 {
		require.False(t, s.Has(strconv.Itoa(i)), "another key in its place")
	}
	for i := range 100_000 {
		s.Add(strconv.Itoa(i))
	}
	require.False(t, s.Has("k"), "others have taken its place")
	require.True(t, s.Has("99999"))
}
