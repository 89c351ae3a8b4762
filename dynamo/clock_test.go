package dynamo

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// hear lets c learn of a reply that took some time, half of it on the way there, from a
// server whose clock is ahead of this one's.
func hear(c *clock, took, ahead time.Duration) {
	sent := time.Now()
	time.Sleep(took / 2)
	date := time.Now().Add(ahead).Truncate(time.Second)
	time.Sleep(took - took/2)
	c.learn(sent, time.Now(), date, 0)
}

// TestClockBounds: the server's clock is between the bounds at all times, whatever it is
// to this machine's, and they come near each other.
func TestClockBounds(t *testing.T) {
	for _, ahead := range []time.Duration{0, 400 * time.Millisecond, -time.Hour, 5*time.Hour + 999*time.Millisecond} {
		synctest.Test(t, func(t *testing.T) {
			var c clock
			_, ok := c.now()
			require.False(t, ok, "before the first reply")
			for n := range 40 {
				hear(&c, 10*time.Millisecond, ahead)
				time.Sleep(37 * time.Millisecond)
				m, ok := c.now()
				require.True(t, ok)
				now := time.Now().Add(ahead).UnixMicro()
				require.LessOrEqual(t, m.lower, now)
				require.GreaterOrEqual(t, m.upper, now)
				require.LessOrEqual(t, m.upper-m.lower, int64(1_020_000))
				if n == 39 {
					require.Less(t, m.upper-m.lower, int64(70_000), "a second's turn has been seen")
				}
			}
		})
	}
}

// TestClockIsNotTrustedForLong without a reply.
func TestClockIsNotTrustedForLong(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var c clock
		hear(&c, time.Millisecond, 0)
		time.Sleep(staleAfter - time.Second)
		m, ok := c.now()
		require.True(t, ok)
		now := time.Now().UnixMicro()
		require.LessOrEqual(t, m.lower, now-100_000, "widened by the drift")
		require.GreaterOrEqual(t, m.upper, now+100_000)
		time.Sleep(2 * time.Second)
		_, ok = c.now()
		require.False(t, ok)
		hear(&c, time.Millisecond, 0)
		_, ok = c.now()
		require.True(t, ok)
	})
}

// TestClockAfterASleepOfTheMachine: the monotonic clock stood still, and the wall clock
// tells. The bounds of before are not used, and the next reply makes new ones.
func TestClockAfterASleepOfTheMachine(t *testing.T) {
	var c clock
	sent := time.Now()
	c.learn(sent, sent, sent, 0)
	_, ok := c.now()
	require.True(t, ok)
	c.wall = c.wall.Add(-time.Minute) // as if the last reply had come a minute earlier
	_, ok = c.now()
	require.False(t, ok)
	c.learn(sent, sent, sent.Add(time.Minute), 0)
	m, ok := c.now()
	require.True(t, ok)
	require.GreaterOrEqual(t, m.lower, sent.Add(time.Minute).UnixMicro())
}

// TestClockAfterASleepInARequest: the reply's Date may be of before the sleep, so the time is asked for
// anew.
func TestClockAfterASleepInARequest(t *testing.T) {
	for _, jump := range []time.Duration{time.Minute, -time.Minute} {
		var c clock
		now := time.Now()
		c.learn(now, now, now, 0)
		c.learn(now, now, now, jump)
		_, ok := c.now()
		require.False(t, ok)
		c.learn(now, now, now.Add(time.Minute), hostSkew)
		m, ok := c.now()
		require.True(t, ok)
		require.GreaterOrEqual(t, m.lower, now.Add(time.Minute).UnixMicro())
	}
}

// TestClockThatContradicts its own bounds, as when DynamoDB's clock was set: they are made
// anew, in either direction.
func TestClockThatContradicts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var c clock
		for _, ahead := range []time.Duration{0, time.Hour, -time.Hour, 3 * time.Second, 0} {
			hear(&c, time.Millisecond, ahead)
			m, ok := c.now()
			require.True(t, ok)
			now := time.Now().Add(ahead).UnixMicro()
			require.LessOrEqual(t, m.lower, now)
			require.GreaterOrEqual(t, m.upper, now)
		}
	})
}

// TestMomentOff: a reply written after the upper bound shows that this was wrong.
func TestMomentOff(t *testing.T) {
	now := time.Now()
	m := moment{local: now, lower: now.UnixMicro(), upper: now.Add(time.Second).UnixMicro()}
	require.False(t, m.off(now, now))
	require.False(t, m.off(now, now.Add(time.Second)))
	require.False(t, m.off(now, time.Time{}), "no reply")
	require.True(t, m.off(now, now.Add(2*time.Second)))
	require.False(t, m.off(now.Add(5*time.Second), now.Add(6*time.Second)), "so long on its way")
	require.False(t, m.over(m.lower-hostSkew.Microseconds()+1))
	require.True(t, m.over(m.lower-hostSkew.Microseconds()))
}
