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
