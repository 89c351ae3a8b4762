package zookeeper_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/seed-215fdefa/lock/zookeeper"
)

func TestKeysEncode(t *testing.T) {
	for key, name := range map[string]string{
		"order:123": "order:123", "a/b": "a%2Fb", ".": "%2E", "..": "%2E%2E", "%": "%25", "\x00": "%00",
		"é": "%C3%A9", "zookeeper": "zookeeper", "a b": "a%20b",
	} {
		require.Equal(t, name, zookeeper.Encode(key))
	}
	for _, name := range []string{"", "%", "%2", "%2f", "%41", "a/b", "%ZZ", "."} {
		_, ok := zookeeper.Decode(name)
		require.False(t, ok, name)
	}
}

func FuzzKeys(f *testing.F) {
	f.Add("a/b%\x00é")
	f.Fuzz(func(t *testing.T, key string) {
		name := zookeeper.Encode(key)
		require.False(t, strings.ContainsFunc(name, func(r rune) bool { return r <= ' ' || r > '~' || r == '/' || r == '.' }))
		back, ok := zookeeper.Decode(name)
		require.Equal(t, key != "", ok)
		require.Equal(t, key, back)
	})
}

// TestLineOfSpentNumbers: who is to go since its number tells nothing is not in front meanwhile.
func TestLineOfSpentNumbers(t *testing.T) {
	owners, holding := zookeeper.Line("xc.-2147483648", "xa.2147483646", "xb.2147483647")
	require.Equal(t, []string{"a", "b", "c"}, owners)
	require.Equal(t, 1, holding)
}

func TestLineModes(t *testing.T) {
	for _, c := range []struct {
		names   string
		holding int
	}{
		{"", 0},
		{"xa.0000000001", 1},
		{"xa.0000000001 sb.0000000002", 1},
		{"sa.0000000001 sb.0000000002 xc.0000000003 sd.0000000004", 2},
		{"sb.0000000002 sa.0000000001", 2},
	} {
		_, holding := zookeeper.Line(strings.Fields(c.names)...)
		require.Equal(t, c.holding, holding, c.names)
	}
	names := strings.Fields("sa.0000000001 xb.0000000002 sc.0000000003 sd.0000000004 xe.0000000005")
	for name, want := range map[string]string{
		"sa.0000000001": "", "xb.0000000002": "sa.0000000001", "sc.0000000003": "xb.0000000002",
		"sd.0000000004": "xb.0000000002", "xe.0000000005": "sd.0000000004",
	} {
		front, present := zookeeper.Ahead(name, names...)
		require.True(t, present)
		require.Equal(t, want, front, name)
	}
	_, present := zookeeper.Ahead("xz.0000000001", names...)
	require.False(t, present)
	owners, _ := zookeeper.Line("", "x", "xa", "xa.", "xa.1", "ya.0000000001", "x.0000000001", "xa.00000000zz", "xb.99999999999", "something else")
	require.Empty(t, slices.Compact(owners))
}

// TestFirstTry: only tries may be about to leave. Readers are in no reader's way.
func TestFirstTry(t *testing.T) {
	for _, c := range []struct {
		shared      bool
		names, want string
	}{
		{false, "", ""},
		{false, "Xa.0000000001 Sb.0000000002", "Xa.0000000001"},
		{false, "Xa.0000000001 xb.0000000002", ""},
		{false, "sa.0000000001 Xb.0000000002", ""},
		{true, "sa.0000000001 Xb.0000000002 Xc.0000000003", "Xb.0000000002"},
		{true, "Sa.0000000001 xb.0000000002 Xc.0000000003", ""},
	} {
		require.Equal(t, c.want, zookeeper.FirstTry(c.shared, strings.Fields(c.names)...), c.names)
	}
}
