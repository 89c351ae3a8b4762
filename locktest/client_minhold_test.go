package locktest

import (
	"context"
	"time"

	lock "github.com/seed-215fdefa/lock"
)

// brokenMinHolds are Clients whose minimum hold has one thing wrong.
func brokenMinHolds() []brokenClient {
	none := lock.WithMinHold(0)
	return []brokenClient{
		{what: "no minimum hold", caught: in("MinHold/KeepsTheKey/exclusive", "MinHold/LongerThanTheTTL", "MinHold/LossIsToldToTheObserver/shared"), client: func(c *fakeClient) {
			do := c.do
			c.do = func(ctx context.Context, key string, fn doFunc, opts ...lock.Option) error {
				return do(ctx, key, fn, append(opts, none)...)
			}
		}},
		{what: "Release does not keep", caught: in("MinHold/KeepsTheKey/shared"), client: func(c *fakeClient) {
			take := c.lock
			c.lock = func(ctx context.Context, key string, opts ...lock.Option) (lease, error) {
				return take(ctx, key, append(opts, none)...)
			}
		}},
		{what: "Do returns when the minimum hold is over", caught: in("MinHold/KeepsTheKey/exclusive"), client: func(c *fakeClient) {
			do := c.do
			c.do = func(ctx context.Context, key string, fn doFunc, opts ...lock.Option) error {
				err := do(ctx, key, fn, opts...)
				time.Sleep(3 * time.Second)
				return err
			}
		}},
		{what: "a minimum hold that never ends", caught: in("MinHold/KeepsTheKey/exclusive", "MinHold/LossIsToldToTheObserver/exclusive"), store: func(l lock.Locker) lock.Locker {
			return under{Locker: l, release: func(context.Context, lock.Grant) error { return errWork }}
		}},
		{what: "Close releases what is kept", caught: in("MinHold/CloseLeavesIt/exclusive", "MinHold/CloseLeavesIt/shared"), client: func(c *fakeClient) {
			c.do = func(ctx context.Context, key string, fn doFunc, opts ...lock.Option) error {
				l, err := c.client.Lock(ctx, key, append(opts, none)...)
				if err != nil {
					return err
				}
				ended := newFakeLease(l)
				err = fn(ctx, ended)
				ended.err = func() error { return lock.ErrReleased }
				return err
			}
		}},
	}
}
