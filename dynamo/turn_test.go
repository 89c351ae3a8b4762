package dynamo

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/seed-215fdefa/lock"
)

// TestYield: who is asked for a lock leaves it to others, and forgets that in time.
func TestYield(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var ls lines
		require.False(t, ls.yield("k", false, time.Second), "nobody else waits")
		require.Zero(t, ls.resting("k"))
		require.True(t, ls.yield("k", true, time.Second))
		require.True(t, ls.yield("other", true, time.Minute))
		require.Equal(t, time.Second, ls.resting("k"))
		time.Sleep(time.Second)
		require.Zero(t, ls.resting("k"))
		require.Equal(t, 59*time.Second, ls.resting("other"))
		require.False(t, ls.yield("k", false, time.Second), "nobody has asked again")
		ls.yield("third", true, time.Second)
		require.Contains(t, ls.turns, "third")
		time.Sleep(maxTurnAge + time.Second)
		ls.yield("fourth", true, time.Second)
		require.Len(t, ls.turns, 1)
	})
}

// TestBrokenTurn: others were quicker at a hand-over. The turn is over, and the line waits from
// when it had the lock last.
func TestBrokenTurn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var ls lines
		p := ls.enter("k")
		ls.enter("k")
		saw := func(token lock.Token) (waited time.Duration) {
			_, waited = ls.saw("k", lock.Record{Key: "k", Token: token})
			return waited
		}
		saw(1)
		time.Sleep(time.Second)
		require.Equal(t, time.Second, saw(2))
		ls.leave("k", p, true)
		require.Contains(t, ls.turns, "k")
		saw(3)
		time.Sleep(keepTurn / 2)
		require.Equal(t, keepTurn/2, saw(4))
		require.NotContains(t, ls.turns, "k")
	})
}

// TestKeepTurn: a line that has seen others have the lock keeps it for its turn only, asked or
// not, and no shorter. One that has not keeps it for good.
func TestKeepTurn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var ls lines
		grant := func(tokens ...lock.Token) {
			p := ls.enter("k")
			for _, token := range tokens {
				ls.saw("k", lock.Record{Key: "k", Token: token})
			}
			ls.leave("k", p, true)
		}
		for range 3 {
			grant(1)
			require.False(t, ls.yield("k", false, time.Second))
			time.Sleep(keepTurn)
		}
		for range 2 {
			grant(1, 2)
			time.Sleep(keepTurn / 2)
			require.False(t, ls.yield("k", true, time.Second), "its turn has just begun")
			grant()
			time.Sleep(keepTurn / 2)
			require.True(t, ls.yield("k", false, time.Second))
			require.Equal(t, time.Second, ls.resting("k"))

			ls.enter("k")
			ls.rested("k") // others have it
			require.LessOrEqual(t, ls.resting("k"), time.Duration(0))
			p := ls.enter("k")
			ls.leave("k", p, true)
			time.Sleep(keepTurn)
			require.True(t, ls.yield("k", false, time.Second))
			delete(ls.of, "k")
		}
		grant(1, 2)
		time.Sleep(2 * keepTurn) // and it was released at once
		grant()
		require.False(t, ls.yield("k", false, time.Second))
	})
}
