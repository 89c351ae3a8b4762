package locktest

import (
	"context"
	"errors"
	"fmt"
	"time"

	lock "github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/semaphore"
)

// fakePermits is a semaphore with methods of its own before those of a real one.
type fakePermits struct {
	do, tryDo func(ctx context.Context, weight int, fn permitFunc) error
}

func (p *fakePermits) Do(ctx context.Context, weight int, fn permitFunc) error {
	return p.do(ctx, weight, fn)
}

func (p *fakePermits) TryDo(ctx context.Context, weight int, fn permitFunc) error {
	return p.tryDo(ctx, weight, fn)
}

// alterPermits makes semaphores that are sound, except for what change does.
func alterPermits(change func(p *fakePermits)) func(*env, *lock.Client, string, int) permits {
	return func(_ *env, c *lock.Client, key string, n int) permits {
		s := semaphore.New(c, key, n)
		p := &fakePermits{s.Do, s.TryDo}
		change(p)
		return p
	}
}

// polled is a Do that tries until it succeeds.
func polled(tryDo func(context.Context, int, permitFunc) error) func(context.Context, int, permitFunc) error {
	return func(ctx context.Context, weight int, fn permitFunc) error {
		for {
			err := tryDo(ctx, weight, fn)
			if !errors.Is(err, lock.ErrHeld) {
				return err
			}
			select {
			case <-time.After(time.Millisecond):
			case <-ctx.Done():
				return errors.Join(ctx.Err(), lock.ErrHeld)
			}
		}
	}
}

func brokenSemaphores() []brokenClient {
	return []brokenClient{
		{what: "one permit too many", explored: true, caught: in("Semaphore/AtMostN", "Semaphore/AtMostNAfterSever", "Semaphore/AtMostNDuringAFreeze", "Semaphore/AtMostNDuringARestart"), permits: func(_ *env, c *lock.Client, key string, n int) permits {
			return semaphore.New(c, key, n+1)
		}},
		{what: "no line for permits", explored: true, caught: in("Semaphore/HeavyIsNotStarved"), permits: alterPermits(func(p *fakePermits) { p.do = polled(p.tryDo) })},
		{what: "permits of the dead stay", explored: true, caught: in("Semaphore/DeadPermitsPass"), permits: func(e *env, c *lock.Client, key string, n int) permits {
			return semaphore.New(c, key, n, lock.WithTTL(e.long()))
		}},
		{what: "a wait for one slot alone", explored: true, caught: in("Semaphore/WhicheverIsFreeFirst"), permits: func(_ *env, c *lock.Client, key string, n int) permits {
			s := semaphore.New(c, key, n)
			return &fakePermits{func(ctx context.Context, weight int, fn permitFunc) error {
				err := s.TryDo(ctx, weight, fn)
				if !errors.Is(err, lock.ErrHeld) {
					return err
				}
				return c.Do(ctx, key+"#semaphore/line", func(ctx context.Context, _ *lock.Lease) error {
					return c.Do(ctx, fmt.Sprintf("%s#semaphore/slot/%d", key, n-1), func(ctx context.Context, l *lock.Lease) error {
						return fn(ctx, []semaphore.Permit{{Slot: n - 1, Lease: l}})
					})
				})
			}, s.TryDo}
		}},
		{what: "a wait for permits goes on when it was canceled", explored: true, caught: in("Semaphore/CancelLeavesNothing"), permits: alterPermits(func(p *fakePermits) {
			do := p.do
			p.do = func(ctx context.Context, weight int, fn permitFunc) error {
				done := make(chan error, 1)
				go func() {
					done <- do(context.WithoutCancel(ctx), weight, func(inner context.Context, ps []semaphore.Permit) error {
						if ctx.Err() != nil {
							<-inner.Done()
							return nil
						}
						return fn(inner, ps)
					})
				}()
				select {
				case err := <-done:
					return err
				case <-ctx.Done():
					return ctx.Err()
				}
			}
		})},
		{what: "a permit is not given back", explored: true, caught: in("Semaphore/AtMostN"), permits: alterPermits(func(p *fakePermits) {
			do := p.do
			p.do = func(ctx context.Context, weight int, fn permitFunc) error {
				done := make(chan error, 2)
				go func() {
					done <- do(ctx, weight, func(ctx context.Context, ps []semaphore.Permit) error {
						done <- fn(ctx, ps)
						<-ps[0].Lease.Context().Done()
						return nil
					})
				}()
				return <-done
			}
		})},
		{what: "n is not compared", caught: in("Semaphore/AnotherN"), permits: alterPermits(func(p *fakePermits) {
			do, tryDo := p.do, p.tryDo
			p.do = func(ctx context.Context, weight int, fn permitFunc) error {
				if err := do(ctx, weight, fn); !errors.Is(err, lock.ErrInvalid) {
					return err
				}
				return fn(ctx, nil)
			}
			p.tryDo = func(ctx context.Context, weight int, fn permitFunc) error {
				if err := tryDo(ctx, weight, fn); !errors.Is(err, lock.ErrInvalid) {
					return err
				}
				return fn(ctx, nil)
			}
		})},
		{what: "a weight is cut to what there is", caught: in("Semaphore/Weight"), permits: func(_ *env, c *lock.Client, key string, n int) permits {
			s := semaphore.New(c, key, n)
			return &fakePermits{func(ctx context.Context, weight int, fn permitFunc) error {
				return s.Do(ctx, max(1, min(weight, n)), fn)
			}, s.TryDo}
		}},
		{what: "a lost permit leaves the function's ctx", explored: true, caught: in("Semaphore/LossOfAPermit", "Semaphore/EndsInTimeDuringAFreeze"), permits: alterPermits(func(p *fakePermits) {
			do := p.do
			p.do = func(ctx context.Context, weight int, fn permitFunc) error {
				return do(ctx, weight, func(_ context.Context, ps []semaphore.Permit) error { return fn(ctx, ps) })
			}
		})},
		{what: "TryDo waits for permits", explored: true, caught: in("Semaphore/TryDo"), permits: alterPermits(func(p *fakePermits) { p.tryDo = p.do })},
		{what: "a nested Do waits for permits", caught: in("Semaphore/Deadlock"), permits: alterPermits(func(p *fakePermits) {
			do := p.do
			p.do = func(ctx context.Context, weight int, fn permitFunc) error { return do(unnested{ctx}, weight, fn) }
		})},
	}
}
