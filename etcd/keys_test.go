package etcd

import (
	"testing"

	"github.com/stretchr/testify/require"
	"go.etcd.io/etcd/api/v3/mvccpb"

	"github.com/seed-215fdefa/lock"
)

func TestParseName(t *testing.T) {
	for name, want := range map[string]bool{
		"lock/a/xp.0": true, "lock/a%2Fb/sp.1": true, "lock/a/yp.0": false, "lock/a": false, "lock/a/": false,
		"lock/%/xp.0": false, "lock/%2/xp.0": false, "lock/%zz/xp.0": false, "lock//xp.0": false, "other/a/xp.0": false,
		"lock/jobs/stock/xp.0": false, // of key stock, with the prefix lock/jobs/
	} {
		_, _, ok := parseName("lock/", name)
		require.Equal(t, want, ok, name)
	}
	key, shared, _ := parseName("lock/", "lock/a%2Fb/sp.1")
	require.Equal(t, "a/b", key)
	require.True(t, shared)
}

// TestNames: numbers are used again.
func TestNames(t *testing.T) {
	n := names{process: "p"}
	a, first := n.take("lock/k/", false)
	b, _ := n.take("lock/k/", false)
	r, _ := n.take("lock/r/", true)
	require.Equal(t, []string{"lock/k/xp.0", "lock/k/xp.1", "lock/r/sp.2"}, []string{a, b, r})
	n.free = append(n.free, first)
	again, _ := n.take("lock/k/", false)
	require.Equal(t, a, again)
}

// TestNextStands: a release hands over to whose entry stands in line behind it. A handover to one whose entry
// is gone would create it at the end of the line, and grant it the lock there.
func TestNextStands(t *testing.T) {
	held := &hold{name: "held", rev: 10}
	waits := &acquisition{h: new(hold)}
	l := &Locker{behind: map[string][]*acquisition{held.name: {waits}}}
	require.Nil(t, l.nextOf(held).a)
	waits.h.rev = 11
	require.Equal(t, waits, l.nextOf(held).a)
}

// TestReviveTakesTheName: Lockers use names again. What was known of the entry of another Locker that had a name
// goes when another owner's has it, and what this Locker uses a name for stays.
func TestReviveTakesTheName(t *testing.T) {
	l := &Locker{prefix: "lock/", ticking: true, byOwner: make(map[id]*hold), byName: make(map[string]*hold)}
	revive := func(name, owner string, rev int64) *hold {
		g := lock.Grant{Key: "k", Owner: owner, Token: lock.Token(rev)}
		return l.revive(g, entry{owner: owner, kv: &mvccpb.KeyValue{Key: []byte(name), CreateRevision: rev}})
	}
	first := revive("lock/k/xp.0", "a", 7)
	require.Same(t, first, revive("lock/k/xp.0", "a", 7))
	second := revive("lock/k/xp.0", "b", 9)
	require.Equal(t, map[id]*hold{{"k", "b"}: second}, l.byOwner)
	require.True(t, first.over)

	own := &hold{g: lock.Grant{Key: "k", Owner: "c"}}
	l.enroll(own)
	revive(own.name, "a", 8)
	require.Same(t, own, l.byName[own.name])
	require.NotContains(t, l.byOwner, id{"k", "a"})
}
