package storetest

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/seed-215fdefa/lock"
)

// ClientClosedFirst closes the store's client, by closeIt, before the lock.Client on l that holds a
// key and waits for another. The wait ends, and so do new calls and Close, which names the keys that
// it has left: all with lock.ErrClosed, and long before their ctx ends.
func ClientClosedFirst(t *testing.T, l, other lock.Locker, closeIt func()) {
	ctx, cancel := context.WithTimeout(context.Background(), 4*Patience)
	defer cancel()
	Acquire(t, other, Request("taken"))
	lined := make(chan struct{})
	c := lock.New(l, lock.WithTTL(30*time.Second), lock.WithObserver(waits{lined}))
	_, err := c.Lock(ctx, "held")
	require.NoError(t, err)
	waited := make(chan error, 1)
	go func() {
		_, err := c.Lock(ctx, "taken")
		waited <- err
	}()
	<-lined
	closeIt()
	require.ErrorIs(t, <-waited, lock.ErrClosed)
	_, err = c.TryLock(ctx, "another")
	require.ErrorIs(t, err, lock.ErrClosed)
	require.ErrorContains(t, err, "client is closed")
	err = c.Close(ctx)
	require.ErrorIs(t, err, lock.ErrClosed)
	require.ErrorContains(t, err, "\"held\"")
	require.ErrorContains(t, err, "client is closed")
	require.NoError(t, ctx.Err(), "Close has waited")
}

// waits is an Observer that closes inLine when a wait begins.
type waits struct{ inLine chan struct{} }

func (w waits) Observe(_ context.Context, e lock.Event) {
	if e.Kind == lock.EventContended {
		close(w.inLine)
	}
}
