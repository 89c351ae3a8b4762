package etcd

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/seed-215fdefa/lock"
)

func FuzzEncode(f *testing.F) {
	for _, s := range []string{"", "a", "a/b", "%", "%2F", "\x00", "..", "é", " ", "\x7f"} {
		f.Add(s, s+"a")
		f.Add(s, "/"+s)
	}
	f.Fuzz(func(t *testing.T, a, b string) {
		x, y := encode(a), encode(b)
		back, ok := decode(x)
		require.True(t, ok)
		require.Equal(t, a, back)
		require.NotContains(t, x, "/")
		require.Equal(t, a == b, x == y)
		require.Equal(t, strings.HasPrefix(a, b), strings.HasPrefix(x, y))
	})
}

func TestParseName(t *testing.T) {
	for name, want := range map[string]bool{
		"lock/a/xp.0": true, "lock/a%2Fb/sp.1": true, "lock/a/yp.0": false, "lock/a": false, "lock/a/": false,
		"lock/%/xp.0": false, "lock/%2/xp.0": false, "lock/%zz/xp.0": false, "lock//xp.0": false, "other/a/xp.0": false,
	} {
		_, _, ok := parseName("lock/", name)
		require.Equal(t, want, ok, name)
	}
	key, shared, _ := parseName("lock/", "lock/a%2Fb/sp.1")
	require.Equal(t, "a/b", key)
	require.True(t, shared)
}

// TestSlots: names are used again, but not those that a late request may yet create.
func TestSlots(t *testing.T) {
	s := slots{process: "p"}
	ask := func(owner string, shared bool) *slot {
		return s.take("lock/k/", lock.Request{Key: "k", Owner: owner, Shared: shared})
	}
	a, b, r := ask("a", false), ask("b", false), ask("r", true)
	require.Equal(t, []string{"lock/k/xp.0", "lock/k/xp.1", "lock/k/sp.0"}, []string{a.name, b.name, r.name})
	require.Same(t, a, s.of("k", "a"))
	require.Nil(t, s.of("other", "a"))
	require.False(t, s.free(a))
	require.False(t, s.free(a))
	require.Nil(t, s.of("k", "a"))
	c := ask("c", false)
	require.Equal(t, a.name, c.name)
	s.doubt(c)
	require.True(t, s.free(c))
	require.Equal(t, "lock/k/xp.2", ask("d", false).name)
	require.False(t, s.free(b))
	require.False(t, s.free(r))
}
