package lock

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

func TestNestedCallIsDeadlock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		c := client(t, f)
		require.NoError(t, c.Do(t.Context(), "k", func(ctx context.Context, _ *Lease) error {
			return c.Do(ctx, "l", func(ctx context.Context, _ *Lease) error {
				for op, err := range map[string]error{
					"do":      c.Do(ctx, "k", never2),
					"trydo":   c.TryDo(ctx, "k", never2, WithReentrant(false)),
					"lock":    errOf(c.Lock(ctx, "k")),
					"trylock": errOf(c.TryLock(ctx, "l", WithShared())),
				} {
					require.ErrorIs(t, err, ErrDeadlock, op)
					var e *Error
					require.ErrorAs(t, err, &e)
					require.Equal(t, op, e.Op)
				}
				require.Len(t, f.sent("acquire"), 2, "nothing is sent")
				return nil
			})
		}))
	})
}

func errOf(_ *Lease, err error) error { return err }

func TestOtherClientIsNoDeadlock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		c, other := client(t, f), client(t, f)
		require.NoError(t, c.Do(t.Context(), "k", func(ctx context.Context, _ *Lease) error {
			require.ErrorIs(t, other.TryDo(ctx, "k", never2), ErrHeld)
			return nil
		}))
	})
}

func TestReentrant(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		c := client(t, f)
		ran := 0
		err := c.Do(t.Context(), "k", func(ctx context.Context, outer *Lease) error {
			for _, do := range []func(context.Context, string, func(context.Context, *Lease) error, ...Option) error{
				c.Do, c.TryDo,
			} {
				err := do(ctx, "k", func(inner context.Context, l *Lease) error {
					ran++
					require.Same(t, outer, l)
					require.NoError(t, inner.Err())
					require.ErrorIs(t, c.Do(inner, "k", never2), ErrDeadlock)
					return errWork
				}, WithReentrant(true))
				require.Equal(t, errWork, err)
			}
			require.NoError(t, outer.Err(), "the inner one must not release it")
			require.NoError(t, ctx.Err())
			require.NoError(t, c.Do(ctx, "k", func(context.Context, *Lease) error {
				return nil
			}, WithReentrant(true), WithShared()), "shared inside exclusive is safe")
			return nil
		})
		require.NoError(t, err)
		require.Equal(t, 2, ran)
		require.Len(t, f.sent("acquire"), 1)
		require.Len(t, f.sent("release"), 1)
	})
}

func TestExclusiveInsideShared(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := client(t, newFake(), WithReentrant(true))
		require.NoError(t, c.Do(t.Context(), "k", func(ctx context.Context, _ *Lease) error {
			require.ErrorIs(t, c.Do(ctx, "k", never2), ErrDeadlock)
			return c.Do(ctx, "k", func(context.Context, *Lease) error { return nil }, WithShared())
		}, WithShared()))
	})
}

func TestReentrantUnderALostLease(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		c := client(t, f, WithReentrant(true))
		err := c.Do(t.Context(), "k", func(ctx context.Context, _ *Lease) error {
			err := c.Do(ctx, "k", func(ctx context.Context, _ *Lease) error {
				f.force("k", true)
				lostAs(t, ReasonForced, context.Cause(ctx))
				return nil
			})
			lostAs(t, ReasonForced, err)
			lostAs(t, ReasonForced, c.Do(ctx, "k", never2))
			lostAs(t, ReasonForced, c.Do(context.WithoutCancel(ctx), "k", never2))
			return nil
		})
		lostAs(t, ReasonForced, err)
	})
}

func TestReentrantEndsWithTheLeaseWhateverItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		c := client(t, f, WithReentrant(true))
		_ = c.Do(t.Context(), "k", func(ctx context.Context, _ *Lease) error {
			return c.Do(context.WithoutCancel(ctx), "k", func(ctx context.Context, _ *Lease) error {
				f.force("k", true)
				select {
				case <-ctx.Done():
					lostAs(t, ReasonForced, context.Cause(ctx))
				case <-time.After(time.Minute):
					t.Error("ctx does not end with the lease")
				}
				return nil
			})
		})
	})
}

func TestContextOfAFinishedDo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		c := client(t, f)
		var kept context.Context
		require.NoError(t, c.Do(t.Context(), "k", func(ctx context.Context, _ *Lease) error {
			kept = context.WithoutCancel(ctx)
			return nil
		}))
		require.NoError(t, c.Do(kept, "k", func(context.Context, *Lease) error { return nil }))
		require.Len(t, f.sent("acquire"), 2)
	})
}
