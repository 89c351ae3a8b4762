package gocronlock_test

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-co-op/gocron/v2"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/contrib/gocronlock"
	"github.com/seed-215fdefa/lock/memory"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// replicas run a job of no duration every minute, by clocks that differ by a second and more,
// and return how often each has run it in ten minutes.
func replicas(t *testing.T, with func(c *lock.Client) gocron.SchedulerOption) (ran [3]int) {
	t.Helper()
	store := memory.New()
	var counts [3]atomic.Int64
	begin := time.Now().Add(time.Minute)
	for i := range counts {
		client := lock.New(store.Open())
		s, err := gocron.NewScheduler(with(client))
		require.NoError(t, err)
		_, err = s.NewJob(gocron.DurationJob(time.Minute), gocron.NewTask(func() { counts[i].Add(1) }),
			gocron.WithName("report"), gocron.WithStartAt(gocron.WithStartDateTime(begin.Add(time.Duration(i)*1200*time.Millisecond))))
		require.NoError(t, err)
		s.Start()
		defer func() {
			require.NoError(t, s.Shutdown())
			require.NoError(t, client.Close(context.Background()))
		}()
	}
	time.Sleep(10*time.Minute + 30*time.Second)
	synctest.Wait()
	for i := range counts {
		ran[i] = int(counts[i].Load())
	}
	return ran
}

// TestOnceEachTime: a short job runs on one of the replicas, and without a minimum hold on
// each of them.
func TestOnceEachTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ran := replicas(t, func(c *lock.Client) gocron.SchedulerOption {
			return gocron.WithDistributedLocker(gocronlock.NewLocker(c))
		})
		require.Equal(t, 10, ran[0]+ran[1]+ran[2], "%v", ran)
		ran = replicas(t, func(c *lock.Client) gocron.SchedulerOption {
			return gocron.WithDistributedLocker(gocronlock.NewLocker(c, lock.WithMinHold(0)))
		})
		require.Equal(t, [3]int{10, 10, 10}, ran)
	})
}

// TestOneLeads: all runs are of one replica.
func TestOneLeads(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ran := replicas(t, func(c *lock.Client) gocron.SchedulerOption {
			return gocron.WithDistributedElector(gocronlock.NewElector(c, "leader"))
		})
		require.Equal(t, [3]int{10, 0, 0}, ran)
	})
}

func TestLocker(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := memory.New()
		a, b := lock.New(store), lock.New(store.Open())
		here, there := gocronlock.NewLocker(a), gocronlock.NewLocker(b)
		l, err := here.Lock(t.Context(), "report")
		require.NoError(t, err)
		_, err = there.Lock(t.Context(), "report")
		require.ErrorIs(t, err, lock.ErrHeld)
		another, err := there.Lock(t.Context(), "other")
		require.NoError(t, err)
		require.NoError(t, another.Unlock(t.Context()))
		begin := time.Now()
		require.NoError(t, l.Unlock(t.Context()))
		require.Zero(t, time.Since(begin))
		time.Sleep(gocronlock.DefaultMinHold - 1)
		_, err = there.Lock(t.Context(), "report")
		require.ErrorIs(t, err, lock.ErrHeld)
		time.Sleep(2 * time.Nanosecond)
		synctest.Wait()
		l, err = there.Lock(t.Context(), "report")
		require.NoError(t, err)
		require.NoError(t, l.Unlock(t.Context()))
		time.Sleep(time.Minute)
		for _, c := range []*lock.Client{a, b} {
			require.NoError(t, c.Close(t.Context()))
		}
	})
}

// TestClientsMinHold: the Client's own minimum hold is not replaced by the default, but by that
// of the Locker.
func TestClientsMinHold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := lock.New(memory.New(), lock.WithMinHold(8*time.Second))
		for _, want := range []time.Duration{8 * time.Second, time.Second} {
			var opts []lock.Option
			if want < gocronlock.DefaultMinHold {
				opts = append(opts, lock.WithMinHold(want))
			}
			here := gocronlock.NewLocker(c, opts...)
			l, err := here.Lock(t.Context(), "report")
			require.NoError(t, err)
			require.NoError(t, l.Unlock(t.Context()))
			time.Sleep(want - 1)
			_, err = here.Lock(t.Context(), "report")
			require.ErrorIs(t, err, lock.ErrHeld)
			time.Sleep(time.Minute)
		}
		require.NoError(t, c.Close(t.Context()))
	})
}

// TestShortTTL: the default suits any TTL, and any drift.
func TestShortTTL(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, opt := range []lock.Option{lock.WithTTL(time.Second), lock.WithDrift(12 * time.Second)} {
			c := lock.New(memory.New(), opt)
			l, err := gocronlock.NewLocker(c).Lock(t.Context(), "report")
			require.NoError(t, err)
			require.NoError(t, l.Unlock(t.Context()))
			time.Sleep(time.Minute)
			require.NoError(t, c.Close(t.Context()))
		}
	})
}

func TestBadInput(t *testing.T) {
	for _, l := range []*gocronlock.Locker{
		gocronlock.NewLocker(nil),
		gocronlock.NewLocker(lock.New(memory.New()), lock.WithTTL(-1)),
	} {
		got, err := l.Lock(t.Context(), "report")
		require.ErrorIs(t, err, lock.ErrInvalid)
		require.Nil(t, got)
	}
	require.ErrorIs(t, gocronlock.NewElector(nil, "leader").IsLeader(t.Context()), lock.ErrInvalid)
}

func TestElector(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := memory.New()
		a, b := lock.New(store), lock.New(store.Open())
		here, there := gocronlock.NewElector(a, "leader"), gocronlock.NewElector(b, "leader")
		require.NoError(t, there.Close(t.Context()), "it does not lead")
		require.NoError(t, here.IsLeader(t.Context()))
		time.Sleep(time.Hour)
		require.NoError(t, here.IsLeader(t.Context()))
		require.ErrorIs(t, there.IsLeader(t.Context()), lock.ErrHeld)
		require.Nil(t, there.Lease())
		old := here.Lease()
		require.NoError(t, store.ForceRelease(t.Context(), "leader", old.Owner()))
		synctest.Wait()
		require.Nil(t, here.Lease(), "lost")
		require.NoError(t, there.IsLeader(t.Context()))
		require.Greater(t, there.Lease().Token(), old.Token())
		require.ErrorIs(t, here.IsLeader(t.Context()), lock.ErrHeld)
		require.NoError(t, there.Close(t.Context()))
		require.NoError(t, here.IsLeader(t.Context()))
		require.NoError(t, here.Close(t.Context()))
		for _, c := range []*lock.Client{a, b} {
			require.NoError(t, c.Close(t.Context()))
		}
	})
}

// TestAskedTogether: all who ask while the store does not answer have one answer, within one TTL,
// and neither Lease nor a ctx that ends waits for it.
func TestAskedTogether(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := memory.NewFaulty()
		c := lock.New(store)
		e := gocronlock.NewElector(c, "leader")
		ask := func(ctx context.Context, errs chan<- error) { errs <- e.IsLeader(ctx) }

		store.Freeze()
		begin, errs := time.Now(), make(chan error, 3)
		for range cap(errs) {
			go ask(t.Context(), errs)
		}
		synctest.Wait()
		require.Nil(t, e.Lease())
		short, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		require.ErrorIs(t, e.IsLeader(short), context.DeadlineExceeded)
		require.ErrorIs(t, e.Close(short), context.DeadlineExceeded)
		require.Equal(t, time.Second, time.Since(begin))
		for range cap(errs) {
			require.ErrorIs(t, <-errs, lock.ErrUnavailable)
		}
		require.Equal(t, lock.DefaultTTL, time.Since(begin))

		// The one who asks gives up: that is no answer for the others.
		ctx, giveUp := context.WithCancel(t.Context())
		asker := make(chan error, 1)
		go ask(ctx, asker)
		synctest.Wait()
		for range cap(errs) {
			go ask(t.Context(), errs)
		}
		synctest.Wait()
		giveUp()
		require.ErrorIs(t, <-asker, context.Canceled)
		synctest.Wait()
		require.Empty(t, errs)
		store.Heal()
		for range cap(errs) {
			require.NoError(t, <-errs)
		}
		require.NoError(t, e.Close(t.Context()))
		require.NoError(t, c.Close(t.Context()))
	})
}

func ExampleNewLocker() {
	client := lock.New(memory.New()) // on a store that the replicas share
	s, err := gocron.NewScheduler(gocron.WithDistributedLocker(gocronlock.NewLocker(client)))
	if err != nil {
		fmt.Println(err)
		return
	}
	done := make(chan struct{})
	_, err = s.NewJob(gocron.OneTimeJob(gocron.OneTimeJobStartImmediately()), gocron.NewTask(func() {
		fmt.Println("runs on one replica")
		close(done)
	}), gocron.WithName("report"))
	s.Start()
	<-done
	fmt.Println(errors.Join(err, s.Shutdown(), client.Close(context.Background())))
	// Output:
	// runs on one replica
	// <nil>
}
