package storetest

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/seed-215fdefa/lock"
)

// WatchIsQuiet has a Client over a watch a key. It must make no request, as sent counts them,
// for longer than two heartbeats of any TTL, and yet show at once when b takes the key.
func WatchIsQuiet(t *testing.T, a, b lock.Locker, sent func() int64) {
	t.Helper()
	c := lock.New(a)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	const some = 10
	records, done := make(chan lock.Record, some), make(chan error, 1)
	go func() {
		var last error
		for rec, err := range c.Watch(ctx, "k") {
			if last = err; err == nil {
				records <- rec
			}
		}
		done <- last
	}()
	require.Empty(t, Receive(t, records).Holders)

	const quiet = 11 * time.Second
	before := int64(-1)
	Eventually(t, "no request for a while", func() bool {
		was := before
		before = sent()
		if was == before {
			return true
		}
		time.Sleep(quiet)
		return false
	})
	g := Acquire(t, b, Request("k"))
	require.Equal(t, g.Owner, Receive(t, records).Holders[0].Owner)
	Release(t, b, g)
	require.Empty(t, Receive(t, records).Holders)
	cancel()
	require.ErrorIs(t, Receive(t, done), context.Canceled)
	require.NoError(t, c.Close(context.Background()))
}
