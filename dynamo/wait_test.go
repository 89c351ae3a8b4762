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
	p, _ := ls.enter("k")
	second, _ := ls.enter("k")
	ls.released("other", 1)
	require.Empty(t, p.wake)
	for range 2 {
		ls.released("k", 1)
		ls.released("k", 2)
		require.Equal(t, lock.Token(2), <-p.wake, "the last hint is enough")
		require.Empty(t, p.wake)
	}
	require.Empty(t, second.wake)
	ls.leave("k", p, true)
	<-second.first
	ls.leave("k", second, true)
	require.Empty(t, ls.of)
}

// TestPassedOver: a line knows that the lock was handed on past it, but not if it had the
// lock itself meanwhile; and how long it has waited since.
func TestPassedOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var ls lines
		p, _ := ls.enter("k")
		_, _ = ls.enter("k")
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

// TestStaleHint: a hint of a release is no news if another has had the lock since.
func TestStaleHint(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := &acquisition{l: &Locker{done: make(chan struct{})}, last: lock.Record{Token: 5}}
		for token, news := range map[lock.Token]bool{0: true, 4: false, 5: true, 6: true} {
			p := &place{wake: make(chan lock.Token, 1)}
			p.wake <- token
			woken, err := a.idle(t.Context(), p, time.Second)
			require.NoError(t, err)
			require.Equal(t, news, woken, token)
		}
	})
}
