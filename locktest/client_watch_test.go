package locktest

import (
	"context"
	"errors"
	"iter"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"

	lock "github.com/seed-215fdefa/lock"
)

// refWatch is a Watch that goes on.
type refWatch struct {
	by  *refClient
	key string
}

// Watch implements [lock.Watcher].
func (c *refClient) Watch(ctx context.Context, key string, changed func()) error {
	if err := lock.CheckKey(key); err != nil {
		return err
	}
	told := make(chan struct{}, 1)
	c.s.mu.Lock()
	c.s.watches[told] = refWatch{c, key}
	c.s.mu.Unlock()
	defer func() {
		c.s.mu.Lock()
		defer c.s.mu.Unlock()
		delete(c.s.watches, told)
	}()
	for {
		c.s.mu.Lock()
		dead := c.dead
		c.s.mu.Unlock()
		if dead {
			return errBroken
		}
		changed()
		select {
		case <-told:
		case <-ctx.Done():
			return ctx.Err()
		}
		time.Sleep(c.s.latency())
	}
}

// changed tells those who watch key, or any if it is "". s.mu is held.
func (s *refServer) changed(key string) {
	for told, w := range s.watches {
		if w.by.deaf || key != "" && key != w.key {
			continue
		}
		select {
		case told <- struct{}{}:
		default:
		}
	}
}

// overheard is a store that tells of changes in a way of its own.
type overheard struct {
	lock.Locker
	watch   func(ctx context.Context, key string, changed func()) error
	inspect func(rec *lock.Record)
}

func (o overheard) Watch(ctx context.Context, key string, changed func()) error {
	return o.watch(ctx, key, changed)
}

func (o overheard) Inspect(ctx context.Context, key string) (lock.Record, error) {
	rec, err := o.Locker.Inspect(ctx, key)
	if o.inspect != nil {
		o.inspect(&rec)
	}
	return rec, err
}

// brokenWatches are Clients whose Watch has one thing wrong, or whose store's has.
func brokenWatches() []brokenClient {
	// filtered is a Watch that yields what keep lets pass.
	filtered := func(keep func() func(lock.Record, error) bool) func(c *fakeClient) {
		return func(c *fakeClient) {
			watch := c.watch
			c.watch = func(ctx context.Context, key string) iter.Seq2[lock.Record, error] {
				return func(yield func(lock.Record, error) bool) {
					keep := keep()
					for rec, err := range watch(ctx, key) {
						if keep(rec, err) && !yield(rec, err) {
							return
						}
					}
				}
			}
		}
	}
	told := func(watch func(w lock.Watcher, ctx context.Context, key string, changed func()) error) func(l lock.Locker) lock.Locker {
		return func(l lock.Locker) lock.Locker {
			w, _ := lock.As[lock.Watcher](l)
			return overheard{Locker: l, watch: func(ctx context.Context, key string, changed func()) error {
				return watch(w, ctx, key, changed)
			}}
		}
	}
	return []brokenClient{
		{
			what:   "Watch yields once",
			caught: in("Watch/Changes/exclusive", "Watch/Changes/shared", "Watch/Line/exclusive", "Watch/Freeze", "Watch/Restart", "Watch/Left"),
			client: filtered(func() func(lock.Record, error) bool {
				n := 0
				return func(_ lock.Record, err error) bool { n++; return n == 1 || err != nil }
			}),
		},
		{
			what:   "Watch leaves the first Record out",
			caught: in("Watch/Now/exclusive", "Watch/InvalidKey"),
			client: filtered(func() func(lock.Record, error) bool {
				n := 0
				return func(lock.Record, error) bool { n++; return n > 1 }
			}),
		},
		{
			what:   "Watch does not see the line",
			caught: in("Watch/Line/exclusive", "Watch/Line/shared"),
			client: filtered(func() func(lock.Record, error) bool {
				return func(r lock.Record, _ error) bool { return r.WaiterCount == 0 }
			}),
		},
		{
			what:   "Watch keeps errors to itself",
			caught: in("Watch/EndOfContext", "Watch/Close", "Watch/InvalidKey"),
			client: filtered(func() func(lock.Record, error) bool {
				return func(_ lock.Record, err error) bool { return err == nil }
			}),
		},
		{
			what:   "the store says that it tells of changes before it does",
			caught: in("Watch/LastState"),
			store: told(func(w lock.Watcher, ctx context.Context, key string, changed func()) error {
				changed()
				time.Sleep(100 * time.Millisecond)
				began := false
				return w.Watch(ctx, key, func() {
					if began {
						changed()
					}
					began = true
				})
			}),
		},
		{
			what:   "the store leaves out what changes soon after another change",
			caught: in("Watch/LastState"),
			store: told(func(w lock.Watcher, ctx context.Context, key string, changed func()) error {
				var last time.Time
				return w.Watch(ctx, key, func() {
					if time.Since(last) > 20*time.Millisecond {
						last = time.Now()
						changed()
					}
				})
			}),
		},
		{
			what:   "an expiry is neither told nor foreseen",
			caught: in("Watch/DeadHolder/exclusive", "Watch/DeadHolder/shared"),
			store: func(l lock.Locker) lock.Locker {
				w, _ := lock.As[lock.Watcher](l)
				return overheard{Locker: l, watch: w.Watch, inspect: func(rec *lock.Record) {
					for i := range rec.Holders {
						rec.Holders[i].ExpiresIn = -1
					}
				}}
			},
		},
	}
}

// brokenWatchers are stores whose Watch has one thing wrong.
func brokenWatchers() []broken {
	watching := func(watch func(ctx context.Context, c *refClient, key string, changed func()) error) func(*refClient) lock.Locker {
		return alter(func(a *altered, c *refClient) {
			a.watch = func(ctx context.Context, key string, changed func()) error { return watch(ctx, c, key, changed) }
		})
	}
	return []broken{
		{what: "Watch tells of the first change only", caught: in("Watcher/Holders/exclusive", "Watcher/Holders/shared"), wrap: watching(func(ctx context.Context, c *refClient, key string, changed func()) error {
			n := 0
			return c.Watch(ctx, key, func() {
				if n++; n <= 2 {
					changed()
				}
			})
		})},
		{what: "Watch calls before it listens", caught: in("Watcher/AtOnce"), wrap: watching(func(ctx context.Context, c *refClient, key string, changed func()) error {
			changed()
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-time.After(50 * time.Millisecond):
			}
			first := true
			return c.Watch(ctx, key, func() {
				if !first {
					changed()
				}
				first = false
			})
		})},
		{what: "Watch tells of nothing", caught: in("Watcher/Forced/exclusive", "Watcher/Forced/shared"), wrap: watching(func(ctx context.Context, _ *refClient, _ string, changed func()) error {
			changed()
			<-ctx.Done()
			return ctx.Err()
		})},
		{what: "Watch does not tell of the line", caught: in("Watcher/Line/exclusive", "Watcher/Line/shared"), wrap: watching(func(ctx context.Context, c *refClient, key string, changed func()) error {
			var last lock.Record
			return c.Watch(ctx, key, func() {
				rec, err := c.Inspect(ctx, key)
				if err != nil || last.Key == "" || len(rec.Holders) != len(last.Holders) || len(rec.Holders) > 0 && rec.Token != last.Token {
					changed()
				}
				last = rec
			})
		})},
		{what: "Watch tells of every key", caught: in("Watcher/AnotherKey"), wrap: watching(func(ctx context.Context, _ *refClient, _ string, changed func()) error {
			for {
				changed()
				select {
				case <-ctx.Done():
					return ctx.Err()
				case <-time.After(10 * time.Millisecond):
				}
			}
		})},
		{what: "Watch takes any key", caught: in("Watcher/InvalidKey"), wrap: watching(func(ctx context.Context, c *refClient, key string, changed func()) error {
			return c.Watch(ctx, "key:"+key, changed)
		})},
		{what: "Watch goes on when its connection is gone", caught: in("Watcher/Severed"), wrap: watching(func(ctx context.Context, c *refClient, key string, changed func()) error {
			err := c.Watch(ctx, key, changed)
			if errors.Is(err, errBroken) {
				<-ctx.Done()
				return ctx.Err()
			}
			return err
		})},
		{what: "Watch ends without an error", caught: in("Watcher/EndOfContext", "CancelIsPrompt/Freeze/exclusive"), wrap: watching(func(ctx context.Context, c *refClient, key string, changed func()) error {
			_ = c.Watch(ctx, key, changed)
			return nil
		})},
	}
}

// TestWatchWithoutPush: a Client looks by itself where the store does not tell.
func TestWatchWithoutPush(t *testing.T) {
	t.Parallel()
	h := refHarness(flaws{}, nil)
	h.newClient = func(e *env, l lock.Locker, seen lock.Observer) client {
		return newClient(e, under{Locker: l}, seen)
	}
	for _, c := range watches().cases() {
		t.Run(c.path, func(t *testing.T) {
			t.Parallel()
			assert.Empty(t, record(t, h, c).failures)
		})
	}
}
