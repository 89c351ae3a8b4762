package dynamo

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// TestTurns: releases wake the first in line, but after keepTurn one does not, so that
// waiters of others have their chance.
func TestTurns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var ls lines
		p, _ := ls.enter("k")
		second, _ := ls.enter("k")
		ls.released("other")
		woken := func() bool {
			ls.released("k")
			select {
			case <-p.wake:
				return true
			default:
				return false
			}
		}
		for range 2 {
			for range 10 {
				require.True(t, woken())
				time.Sleep(keepTurn / 10)
			}
			time.Sleep(time.Millisecond)
			require.False(t, woken(), "it is the others' turn")
		}
		require.Empty(t, second.wake)
		ls.leave("k", p, true)
		<-second.first
		ls.leave("k", second, true)
		require.Empty(t, ls.of)
	})
}
