package lock

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// TestAnswerAtTheDeadline: the answer to a renewal and the end of the lease come in the same
// instant. Whichever the engine sees first, the lease has ended.
func TestAnswerAtTheDeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		c := client(t, f, WithRenewal(false))
		for range 20 {
			l := mustLock(t, c, "k")
			deadline := l.Deadline()
			f.onRenew(func(_ context.Context, g Grant, renew renewFunc) (Grant, error) {
				time.Sleep(time.Until(deadline))
				return renew(context.Background(), g)
			})
			require.ErrorIs(t, l.Renew(context.Background()), ErrLost)
			require.ErrorIs(t, l.Err(), ErrLost)
			time.Sleep(time.Minute)
		}
	})
}

// TestLostBeforeItIsHeld: the store tells a loss, and only then does Acquire return. The grant
// that it returns may be one that it made anew when it sent the request again: nobody gets it,
// so it is released, and a call that waits does not wait for itself.
func TestLostBeforeItIsHeld(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		anew := func(ctx context.Context, req Request, acquire acquireFunc) (Grant, error) {
			if g, err := acquire(ctx, req); err != nil {
				return g, err
			}
			f.force("k", true)
			return acquire(ctx, req)
		}
		f.onAcquire(anew)
		c := client(t, f)
		_, err := c.TryLock(t.Context(), "k")
		lostAs(t, ReasonForced, err)
		synctest.Wait()
		require.False(t, f.held("k"))

		first := true
		f.onAcquire(func(ctx context.Context, req Request, acquire acquireFunc) (Grant, error) {
			if first {
				first = false
				return anew(ctx, req, acquire)
			}
			return acquire(ctx, req)
		})
		begun := time.Now()
		_, err = c.Lock(t.Context(), "k")
		require.NoError(t, err)
		require.Less(t, time.Since(begun), ttlTen/2)
	})
}

// TestRenewedAfterTheLoss: a loss is told while a renewal is on its way, which succeeds all
// the same. What it has prolonged nobody holds any more.
func TestRenewedAfterTheLoss(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		f.onRenew(func(_ context.Context, g Grant, renew renewFunc) (Grant, error) {
			f.sent("acquire")[0].req.Lost(ReasonTaken)
			return renew(context.Background(), g)
		})
		l := mustLock(t, client(t, f), "k")
		lostAs(t, ReasonTaken, l.Renew(t.Context()))
		synctest.Wait()
		require.False(t, f.held("k"))
	})
}

// The store keeps the grant from others for the drift, in which its holder may still be stopping.
func TestLostLeaseIsGivenBackAfterItsDrift(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		c := client(t, f, WithDrift(3*time.Second))
		f.onRenew(func(context.Context, Grant, renewFunc) (Grant, error) { return Grant{}, errIO })
		begun := time.Now()
		err := c.Do(t.Context(), "k", func(ctx context.Context, _ *Lease) error {
			<-ctx.Done()
			require.Equal(t, ttlTen-3*time.Second, time.Since(begun))
			time.Sleep(2 * time.Second)
			require.Empty(t, f.sent("release"))
			return nil
		})
		lostAs(t, ReasonUnreachable, err)
		time.Sleep(time.Second)
		synctest.Wait()
		require.Len(t, f.sent("release"), 1)
	})
}
