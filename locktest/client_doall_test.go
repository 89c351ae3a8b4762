package locktest

import (
	"context"
	"errors"
	"slices"

	lock "github.com/seed-215fdefa/lock"
)

// brokenDoAlls are Clients whose DoAll has one thing wrong.
func brokenDoAlls() []brokenClient {
	type doAll func(ctx context.Context, keys []string, fn doAllFunc, opts ...lock.Option) error
	// nest is a DoAll out of Dos, one inside the other.
	var nest func(c client, ls []lease) doAll
	nest = func(c client, ls []lease) doAll {
		return func(ctx context.Context, keys []string, fn doAllFunc, opts ...lock.Option) error {
			if len(keys) == 0 {
				return fn(ctx, ls)
			}
			return c.Do(ctx, keys[0], func(ctx context.Context, l lease) error {
				return nest(c, append(ls, l))(ctx, keys[1:], fn, opts...)
			}, opts...)
		}
	}
	// byHand is a DoAll out of Lock and Release, without a defer.
	byHand := func(c client, giveBack bool) doAll {
		return func(ctx context.Context, keys []string, fn doAllFunc, opts ...lock.Option) error {
			var ls []lease
			release := func() {
				for _, l := range ls {
					_ = l.Release(context.WithoutCancel(ctx))
				}
			}
			for _, key := range slices.Compact(slices.Sorted(slices.Values(keys))) {
				l, err := c.Lock(ctx, key, opts...)
				if err != nil {
					if giveBack {
						release()
					}
					return err
				}
				ls = append(ls, l)
			}
			err := fn(ctx, ls)
			release()
			return err
		}
	}
	// changed is a DoAll that is called another way.
	changed := func(change func(do doAll) doAll) func(c *fakeClient) {
		return func(c *fakeClient) { c.doAll = change(c.doAll) }
	}
	return []brokenClient{
		{what: "DoAll takes keys as they are given", explored: true, caught: in("DoAll/NeverDeadlocks"), client: func(c *fakeClient) {
			c.doAll = nest(c.client, nil)
		}},
		{what: "DoAll is a Do in a Do", explored: true, caught: in("DoAll/WaitBoundsTheWhole/exclusive", "DoAll/BeginsAgainAfterALoss/exclusive", "DoAll/NoKeys"), client: func(c *fakeClient) {
			c.doAll = func(ctx context.Context, keys []string, fn doAllFunc, opts ...lock.Option) error {
				return nest(c.client, nil)(ctx, slices.Compact(slices.Sorted(slices.Values(keys))), fn, opts...)
			}
		}},
		{what: "DoAll releases without a defer", explored: true, caught: in("DoAll/ReleasesAfterPanicAndGoexit/exclusive", "DoAll/LossIsJoinedOnce/exclusive"), client: func(c *fakeClient) {
			c.doAll = byHand(c.client, true)
		}},
		{what: "DoAll keeps what it has when it does not get the rest", explored: true, caught: in("DoAll/AllOrNone/exclusive"), client: func(c *fakeClient) {
			c.doAll = byHand(c.client, false)
		}},
		{what: "DoAll returns when its ctx ends, before the work does", caught: in("DoAll/HoldsAll/shared"), client: changed(func(do doAll) doAll {
			return func(ctx context.Context, keys []string, fn doAllFunc, opts ...lock.Option) error {
				return do(ctx, keys, func(ctx context.Context, ls []lease) error {
					done := make(chan error, 1)
					go func() {
						var err error
						defer func() { _ = recover(); done <- err }()
						err = fn(ctx, ls)
					}()
					select {
					case err := <-done:
						return err
					case <-ctx.Done():
						return context.Cause(ctx)
					}
				}, opts...)
			}
		})},
		{what: "DoAll gives leases in the order in which it took them", explored: true, caught: in("DoAll/LeasesAreInOrder/shared"), client: changed(func(do doAll) doAll {
			return func(ctx context.Context, keys []string, fn doAllFunc, opts ...lock.Option) error {
				return do(ctx, slices.Sorted(slices.Values(keys)), fn, opts...)
			}
		})},
		{what: "the loss of one lease leaves the ctx of DoAll's function", explored: true, caught: in("DoAll/LossIsJoinedOnce/exclusive"), client: changed(func(do doAll) doAll {
			return func(ctx context.Context, keys []string, fn doAllFunc, opts ...lock.Option) error {
				return do(ctx, keys, func(_ context.Context, ls []lease) error { return fn(ctx, ls) }, opts...)
			}
		})},
		{what: "DoAll names the first key", caught: in("DoAll/AllOrNone/shared"), client: changed(func(do doAll) doAll {
			return func(ctx context.Context, keys []string, fn doAllFunc, opts ...lock.Option) error {
				err := do(ctx, keys, fn, opts...)
				var of *lock.Error
				if errors.As(err, &of) && len(keys) > 0 {
					return &lock.Error{Op: of.Op, Key: keys[0], Err: of.Err}
				}
				return err
			}
		})},
		{what: "DoAll does not renew", explored: true, caught: in("DoAll/RenewsWhileItWaits/exclusive", "DoAll/RenewsWhileItWaits/shared"), opts: []lock.Option{lock.WithRenewal(false)}},
		{what: "DoAll joins every loss", caught: in("DoAll/LossIsJoinedOnce/shared"), client: changed(func(do doAll) doAll {
			return func(ctx context.Context, keys []string, fn doAllFunc, opts ...lock.Option) error {
				var all []lease
				err := do(ctx, keys, func(ctx context.Context, ls []lease) error {
					all = ls
					return fn(ctx, ls)
				}, opts...)
				for _, l := range all {
					if errors.Is(l.Err(), lock.ErrLost) {
						err = errors.Join(err, l.Err())
					}
				}
				return err
			}
		})},
		{what: "a nested DoAll does not know what its ctx holds", caught: in("DoAll/OutOfOrderIsDeadlock/exclusive"), client: changed(func(do doAll) doAll {
			return func(ctx context.Context, keys []string, fn doAllFunc, opts ...lock.Option) error {
				return do(unnested{ctx}, keys, fn, opts...)
			}
		})},
	}
}
