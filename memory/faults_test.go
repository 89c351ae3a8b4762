package memory_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/memory"
)

var errDown = errors.New("connection refused")

// inFaulty runs test in a bubble, with a Client of 10 s on a Faulty.
func inFaulty(t *testing.T, test func(t *testing.T, f *memory.Faulty, c *lock.Client)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		f := memory.NewFaulty()
		c := lock.New(f, lock.WithTTL(10*time.Second))
		test(t, f, c)
		f.Heal()
		require.NoError(t, c.Close(context.Background()))
		require.NoError(t, f.Close())
	})
}

func TestFaultyLoss(t *testing.T) {
	inFaulty(t, func(t *testing.T, f *memory.Faulty, c *lock.Client) {
		err := c.Do(t.Context(), "k", func(ctx context.Context, _ *lock.Lease) error {
			require.Equal(t, 1, f.Lose("k"))
			require.Error(t, ctx.Err(), "told at once")
			return nil
		})
		var lost *lock.LostError
		require.ErrorAs(t, err, &lost)
		require.Equal(t, lock.ReasonForced, lost.Reason)
		require.Zero(t, f.Lose("k"))

		// In trouble the notice does not arrive: the lease ends by its own deadline.
		l, err := c.Lock(t.Context(), "k")
		require.NoError(t, err)
		f.Freeze()
		require.Equal(t, 1, f.Lose("k"))
		require.NoError(t, l.Err())
		<-l.Context().Done()
		require.ErrorAs(t, l.Err(), &lost)
		require.Equal(t, lock.ReasonUnreachable, lost.Reason)
	})
}

// TestFaultyLossOfMany: more readers than a Record shows. Who gets the key by it keeps it.
func TestFaultyLossOfMany(t *testing.T) {
	inFaulty(t, func(t *testing.T, f *memory.Faulty, c *lock.Client) {
		const readers = lock.MaxRecord + 4
		var leases []*lock.Lease
		for range readers {
			l, err := c.Lock(t.Context(), "k", lock.WithShared())
			require.NoError(t, err)
			leases = append(leases, l)
		}
		next := start(t.Context(), f, request("k"))
		require.Equal(t, readers, f.Lose("k"))
		for _, l := range leases {
			require.ErrorIs(t, l.Err(), lock.ErrLost)
		}
		require.NoError(t, f.Release(t.Context(), granted(t, next)))
	})
}

func TestFaultyContention(t *testing.T) {
	inFaulty(t, func(t *testing.T, f *memory.Faulty, c *lock.Client) {
		free, err := f.Occupy("k")
		require.NoError(t, err)
		_, err = f.Occupy("k")
		require.ErrorIs(t, err, lock.ErrHeld)
		_, err = c.TryLock(t.Context(), "k")
		require.True(t, lock.Refused(err, "k"))
		require.ErrorContains(t, err, "Faulty.Occupy")
		time.AfterFunc(time.Hour, free)
		start := time.Now()
		_, err = c.Lock(t.Context(), "k")
		require.NoError(t, err)
		require.Equal(t, time.Hour, time.Since(start))
		free()
		f.Lose("k")
		free, err = f.Occupy("k")
		require.NoError(t, err)
		free()
	})
}

func TestFaultyOutage(t *testing.T) {
	inFaulty(t, func(t *testing.T, f *memory.Faulty, c *lock.Client) {
		l, err := c.Lock(t.Context(), "held")
		require.NoError(t, err)
		f.Fail(errDown)
		_, err = c.TryLock(t.Context(), "k")
		require.ErrorIs(t, err, lock.ErrUnavailable)
		require.ErrorIs(t, err, errDown)
		_, err = c.Inspect(t.Context(), "k")
		require.ErrorIs(t, err, errDown)
		require.ErrorIs(t, c.ForceRelease(t.Context(), "k", "o"), errDown)
		for _, err := range c.List(t.Context(), "") {
			require.ErrorIs(t, err, errDown)
		}
		time.Sleep(5 * time.Second)
		f.Heal()
		time.Sleep(5 * time.Second)
		require.NoError(t, l.Err(), "an outage shorter than the TTL costs nothing")

		f.Freeze()
		f.Freeze()
		start := time.Now()
		_, err = c.Lock(t.Context(), "k", lock.WithWait(time.Second))
		require.ErrorIs(t, err, lock.ErrUnavailable)
		require.Equal(t, time.Second, time.Since(start))
		time.AfterFunc(time.Second, f.Heal)
		l, err = c.Lock(t.Context(), "k")
		require.NoError(t, err)
		require.Equal(t, 2*time.Second, time.Since(start))
		require.NoError(t, l.Release(t.Context()))
		n := 0
		for r, err := range c.List(t.Context(), "") {
			require.NoError(t, err)
			require.Equal(t, "held", r.Key)
			n++
		}
		require.Equal(t, 1, n)
		require.ErrorIs(t, errOf(f.Acquire(t.Context(), lock.Request{})), lock.ErrInvalid)

		f.Freeze()
		start = time.Now()
		_, err = c.Lock(t.Context(), "k")
		require.ErrorIs(t, err, lock.ErrUnavailable)
		require.Equal(t, lock.Patience, time.Since(start))
	})
}

func errOf(_ lock.Grant, err error) error { return err }

// TestFaultyFailNil: Fail(nil) ends an outage for Watch too, and disturbs no Watch when there
// was none.
func TestFaultyFailNil(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := memory.NewFaulty()
		f.Fail(errDown)
		require.ErrorIs(t, f.Watch(t.Context(), "k", func() {}), errDown)
		f.Fail(nil)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		time.AfterFunc(time.Second/2, func() { f.Fail(nil) })
		require.ErrorIs(t, f.Watch(ctx, "k", func() {}), context.DeadlineExceeded)
	})
}

// waitFor is a Lock of k that waits, through c; its lease is given back.
func waitFor(c *lock.Client, opts ...lock.Option) <-chan error {
	done := make(chan error, 1)
	go func() {
		l, err := c.Lock(context.Background(), "k", opts...)
		if err == nil {
			err = l.Release(context.Background())
		}
		done <- err
	}()
	synctest.Wait()
	return done
}

// TestFaultyWait: a wait in line ends when the trouble has lasted for Patience, whatever happens
// to the key meanwhile. It outlives shorter trouble, and keeps its place.
func TestFaultyWait(t *testing.T) {
	for name, trouble := range map[string]func(*memory.Faulty){
		"freeze": (*memory.Faulty).Freeze,
		"fail":   func(f *memory.Faulty) { f.Fail(errDown) },
		"both":   func(f *memory.Faulty) { f.Fail(errDown); f.Freeze() },
	} {
		t.Run(name, func(t *testing.T) {
			inFaulty(t, func(t *testing.T, f *memory.Faulty, c *lock.Client) {
				free, err := f.Occupy("k")
				require.NoError(t, err)
				first := waitFor(c)
				for range 2 { // the patience begins anew
					trouble(f)
					time.Sleep(lock.Patience - time.Second)
					f.Heal()
					time.Sleep(time.Hour)
				}
				second := waitFor(c)
				require.Empty(t, first)
				trouble(f)
				time.Sleep(10 * time.Second)
				free()
				synctest.Wait()
				require.Empty(t, first, "granted in trouble")
				f.Heal()
				synctest.Wait()
				require.NoError(t, <-first)
				require.NoError(t, <-second)

				for _, freed := range []bool{false, true} {
					free, err := f.Occupy("k")
					require.NoError(t, err)
					kept, bounded, begin := waitFor(c), waitFor(c, lock.WithWait(20*time.Second)), time.Now()
					ctx, cancel := context.WithCancel(t.Context())
					canceled := start(ctx, f, request("k"))
					trouble(f)
					cancel()
					o := <-canceled
					require.ErrorIs(t, o.err, lock.ErrHeld)
					require.ErrorIs(t, o.err, context.Canceled)
					err = <-bounded
					require.ErrorIs(t, err, lock.ErrHeld)
					if name != "freeze" {
						require.ErrorIs(t, err, errDown)
					}
					if freed {
						free()
					}
					err = <-kept
					require.Equal(t, lock.Patience, time.Since(begin))
					require.ErrorIs(t, err, lock.ErrUnavailable)
					if name != "freeze" {
						require.ErrorIs(t, err, errDown)
					}
					f.Heal()
					free()
					require.NoError(t, <-waitFor(c))
				}

				// After trouble without end the next is endured again.
				l, err := c.Lock(t.Context(), "k")
				require.NoError(t, err)
				last := waitFor(c)
				trouble(f)
				time.Sleep(5 * time.Second)
				f.Heal()
				require.NoError(t, l.Release(t.Context()))
				require.NoError(t, <-last)
			})
		})
	}
}
