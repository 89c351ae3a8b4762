package dynamo

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/seed-215fdefa/lock"
)

// TestLine: releases wake the first, and who is next becomes it.
func TestLine(t *testing.T) {
	var ls lines
	p, second := ls.enter("k"), ls.enter("k")
	at := func(p *place) [2]bool {
		first, hint := ls.first("k", p)
		return [2]bool{first, hint}
	}
	ls.released("other")
	require.Equal(t, [2]bool{true, false}, at(p))
	for range 2 {
		ls.released("k")
		ls.released("k")
		require.Equal(t, [2]bool{true, true}, at(p))
		require.Equal(t, [2]bool{true, false}, at(p), "one hint is enough")
	}
	require.Equal(t, [2]bool{false, false}, at(second))
	ls.leave("k", p, true)
	require.Equal(t, [2]bool{true, false}, at(second))
	ls.leave("k", second, true)
	require.Empty(t, ls.of)
}

// TestPassedOver: a line knows that the lock was handed on past it, but not if it had the
// lock itself meanwhile; and how long it has waited since.
func TestPassedOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var ls lines
		p := ls.enter("k")
		ls.enter("k")
		saw := func(token lock.Token) bool {
			passed, _ := ls.saw("k", lock.Record{Key: "k", Token: token})
			return passed
		}
		require.False(t, saw(1))
		require.False(t, saw(1))
		require.True(t, saw(2))
		require.False(t, saw(2))
		time.Sleep(time.Second)
		_, waited := ls.saw("k", lock.Record{Key: "k", Token: 2})
		require.Equal(t, time.Second, waited)
		ls.leave("k", p, true)
		require.False(t, saw(4))
		_, waited = ls.saw("k", lock.Record{Key: "k", Token: 4})
		require.Zero(t, waited)
	})
}
