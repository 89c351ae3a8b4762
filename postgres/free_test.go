package postgres

import (
	"strconv"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestFreeKeys(t *testing.T) {
	f := newFreeKeys()
	require.False(t, f.has(""))
	f.add("k")
	f.add("k")
	require.True(t, f.has("k"))
	f.remove("other")
	require.True(t, f.has("k"))
	f.remove("k")
	require.False(t, f.has("k"))
	f.add("k")
	for i := range 100_000 {
		require.False(t, f.has(strconv.Itoa(i)), "another key in its place")
	}
	for i := range 100_000 {
		f.add(strconv.Itoa(i))
	}
	require.False(t, f.has("k"), "others have taken its place")
	require.True(t, f.has("99999"))
}
