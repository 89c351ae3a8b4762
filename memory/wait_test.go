package memory_test

import (
	"context"
	"fmt"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/memory"
)

func TestFIFO(t *testing.T) {
	bubble(t, func(t *testing.T, l *memory.Locker) {
		const n = 300
		held := acquire(t, l, request("k"))
		var order []int
		var tokens []lock.Token
		done := make(chan error, n)
		for i := range n {
			p := l.Open()
			go func() {
				g, err := p.Acquire(t.Context(), request("k", waiting))
				if err == nil {
					// The lock itself protects order and tokens: -race tells.
					order, tokens = append(order, i), append(tokens, g.Token)
					err = p.Release(t.Context(), g)
				}
				done <- err
			}()
			synctest.Wait()
		}
		release(t, l, held)
		for range n {
			require.NoError(t, <-done)
		}
		require.True(t, slices.IsSorted(order), "order of arrival")
		require.True(t, slices.IsSorted(tokens), "tokens rise in that order")
		require.Len(t, order, n)
	})
}

func TestHandOverIsDirect(t *testing.T) {
	bubble(t, func(t *testing.T, l *memory.Locker) {
		held := acquire(t, l, request("k"))
		req := request("k")
		c := start(t.Context(), l, req)
		// The waiter cannot run between the two, and has the key all the same.
		require.NoError(t, l.Release(t.Context(), held))
		rec := refused(t, l, request("k"))
		require.Equal(t, req.Owner, rec.Holders[0].Owner)
		g := granted(t, c)
		require.Equal(t, rec.Token, g.Token)
		release(t, l, g)
	})
}

func TestNobodyOvertakes(t *testing.T) {
	bubble(t, func(t *testing.T, l *memory.Locker) {
		reader := acquire(t, l, request("k", shared))
		writer := start(t.Context(), l, request("k"))
		refused(t, l, request("k", shared))
		late := start(t.Context(), l, request("k", shared))
		release(t, l, reader)
		g := granted(t, writer)
		pending(t, late)
		// A try at the very moment of expiry may not be quicker than the line's timer.
		time.Sleep(ttl)
		refused(t, l, request("k"))
		r := granted(t, late)
		gone(t, lock.ReasonTaken, l.Release(t.Context(), g))
		release(t, l, r)
	})
}

func TestSharedGoTogether(t *testing.T) {
	bubble(t, func(t *testing.T, l *memory.Locker) {
		held := acquire(t, l, request("k"))
		r1 := start(t.Context(), l, request("k", shared))
		r2 := start(t.Context(), l, request("k", shared))
		w := start(t.Context(), l, request("k"))
		r3 := start(t.Context(), l, request("k", shared))

		release(t, l, held)
		g1, g2 := granted(t, r1), granted(t, r2)
		require.Greater(t, g1.Token, held.Token)
		require.Greater(t, g2.Token, held.Token)
		pending(t, w)
		pending(t, r3)

		release(t, l, g1)
		pending(t, w)
		release(t, l, g2)
		gw := granted(t, w)
		require.Greater(t, gw.Token, max(g1.Token, g2.Token))
		pending(t, r3)
		release(t, l, gw)
		release(t, l, granted(t, r3))
	})
}

func TestReadersExpireAlone(t *testing.T) {
	bubble(t, func(t *testing.T, l *memory.Locker) {
		var reasons []lock.LostReason
		acquire(t, l, request("k", shared, onLost(func(r lock.LostReason) { reasons = append(reasons, r) })))
		kept := acquire(t, l, request("k", shared))
		third := acquire(t, l, request("k", shared, withTTL(time.Second)))
		w := start(t.Context(), l, request("k"))
		time.Sleep(ttl / 2)
		kept, err := l.Renew(t.Context(), kept)
		require.NoError(t, err)
		gone(t, lock.ReasonTaken, l.Release(t.Context(), third))
		time.Sleep(ttl / 2)
		synctest.Wait()
		require.Equal(t, []lock.LostReason{lock.ReasonExpired}, reasons)
		pending(t, w)
		time.Sleep(ttl / 2)
		release(t, l, granted(t, w))
		gone(t, lock.ReasonExpired, l.Release(t.Context(), kept))
	})
}

func TestExpiryHandsOver(t *testing.T) {
	bubble(t, func(t *testing.T, l *memory.Locker) {
		g := acquire(t, l, request("k"))
		c := start(t.Context(), l, request("k"))
		time.Sleep(ttl / 2)
		g, err := l.Renew(t.Context(), g)
		require.NoError(t, err)
		next := grantedAfter(t, ttl, c)
		require.Equal(t, time.Now(), next.Start)
		gone(t, lock.ReasonTaken, l.Release(t.Context(), g))
		release(t, l, next)
	})
}

func TestStartIsTheHandOver(t *testing.T) {
	bubble(t, func(t *testing.T, l *memory.Locker) {
		held := acquire(t, l, request("k"))
		c := start(t.Context(), l, request("k"))
		time.Sleep(3 * time.Second)
		at := time.Now()
		release(t, l, held)
		time.Sleep(time.Second)
		g := granted(t, c)
		require.Equal(t, at, g.Start)
		rec, err := l.Inspect(t.Context(), "k")
		require.NoError(t, err)
		require.Equal(t, time.Second, rec.Holders[0].Held)
		require.Equal(t, ttl-time.Second, rec.Holders[0].ExpiresIn)
		release(t, l, g)
	})
}

// nosyContext is a ctx that asks something of the store whenever it is asked.
type nosyContext struct {
	context.Context
	ask func()
}

func (c *nosyContext) Err() error { c.ask(); return c.Context.Err() }

// A ctx is not asked while the store's mutex is held: it may ask the store.
func TestContextThatAsksTheStore(t *testing.T) {
	l := memory.New()
	held := acquire(t, l, request("k"))
	ctx := &nosyContext{t.Context(), func() { _, _ = l.Inspect(context.Background(), "k") }}
	c, waits := make(chan outcome, 1), make(chan struct{})
	go func() {
		req := request("k", waiting)
		req.Waiting = func(lock.Record) { close(waits) }
		g, err := l.Acquire(ctx, req)
		c <- outcome{g, err}
	}()
	<-waits
	release(t, l, held)
	select {
	case o := <-c:
		require.NoError(t, o.err)
		release(t, l, o.grant)
	case <-time.After(time.Minute):
		t.Fatal("it waits for itself")
	}
}

// TestOverBeforeTheOther: an owner waits by two requests. By one it has the lock, and releases it before
// the other has noticed that its turn has come. That one is not granted anything: nobody would end it.
func TestOverBeforeTheOther(t *testing.T) {
	bubble(t, func(t *testing.T, l *memory.Locker) {
		h, req := acquire(t, l, request("k")), request("k", waiting)
		gate := make(chan struct{})
		var late atomic.Bool
		slow := &nosyContext{t.Context(), func() {
			if late.Load() {
				<-gate
			}
		}}
		first, second := make(chan lock.Grant, 1), make(chan error, 1)
		go func() {
			g, err := l.Acquire(t.Context(), req)
			if err != nil {
				t.Error(err)
			}
			first <- g
		}()
		go func() { _, err := l.Acquire(slow, req); second <- err }()
		synctest.Wait()
		late.Store(true)
		release(t, l, h)
		release(t, l, <-first)
		close(gate)
		require.ErrorIs(t, <-second, lock.ErrReleased)
		rec, err := l.Inspect(t.Context(), "k")
		require.NoError(t, err)
		require.Empty(t, rec.Holders)
	})
}

// TestOverBeforeItsWait: likewise, if the other request came when the first had its turn already.
func TestOverBeforeItsWait(t *testing.T) {
	bubble(t, func(t *testing.T, l *memory.Locker) {
		h, req := acquire(t, l, request("k")), request("k", waiting)
		gate := make(chan struct{})
		var late atomic.Bool
		slow := &nosyContext{t.Context(), func() {
			if late.Load() {
				<-gate
			}
		}}
		waits := make(chan error, 1)
		go func() { _, err := l.Acquire(slow, req); waits <- err }()
		synctest.Wait()
		late.Store(true)
		release(t, l, h)
		synctest.Wait()
		req.Wait = false
		release(t, l, acquire(t, l, req))
		close(gate)
		require.ErrorIs(t, <-waits, lock.ErrReleased)
		rec, err := l.Inspect(t.Context(), "k")
		require.NoError(t, err)
		require.Empty(t, rec.Holders)
	})
}

func TestCancelIsPrompt(t *testing.T) {
	bubble(t, func(t *testing.T, l *memory.Locker) {
		held := acquire(t, l, request("k", func(r *lock.Request) { r.Metadata = map[string]string{"job": "x"} }))
		first, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		c1 := start(first, l, request("k"))
		c2 := start(t.Context(), l, request("k"))
		begin := time.Now()
		o := <-c1
		require.Equal(t, time.Second, time.Since(begin))
		require.Zero(t, o.grant)
		require.ErrorIs(t, o.err, context.DeadlineExceeded)
		require.ErrorIs(t, o.err, lock.ErrHeld)
		var e *lock.HeldError
		require.ErrorAs(t, o.err, &e)
		require.Equal(t, "x", e.Record.Holders[0].Metadata["job"])
		require.Len(t, e.Record.Waiters, 1, "itself has left")
		release(t, l, held)
		release(t, l, granted(t, c2))
	})
}

// A writer that gives up must let those behind it go, who waited for it alone.
func TestCanceledWriterFreesReaders(t *testing.T) {
	bubble(t, func(t *testing.T, l *memory.Locker) {
		reader := acquire(t, l, request("k", shared))
		ctx, cancel := context.WithCancel(t.Context())
		w := start(ctx, l, request("k"))
		r := start(t.Context(), l, request("k", shared))
		cancel()
		require.ErrorIs(t, (<-w).err, context.Canceled)
		release(t, l, granted(t, r))
		release(t, l, reader)
	})
}

func TestCancelAnywhereInLine(t *testing.T) {
	for canceled := range 5 {
		bubble(t, func(t *testing.T, l *memory.Locker) {
			held := acquire(t, l, request("k"))
			ctx, cancel := context.WithCancel(t.Context())
			var line []<-chan outcome
			for i := range 5 {
				if i == canceled {
					line = append(line, start(ctx, l, request("k")))
				} else {
					line = append(line, start(t.Context(), l, request("k")))
				}
			}
			cancel()
			require.ErrorIs(t, (<-line[canceled]).err, context.Canceled)
			_, _, waiters := memory.Size(l)
			require.Equal(t, 4, waiters)
			release(t, l, held)
			for i, c := range line {
				if i != canceled {
					release(t, l, granted(t, c))
				}
			}
		})
	}
}

func TestTimerEndsWithTheLine(t *testing.T) {
	bubble(t, func(t *testing.T, l *memory.Locker) {
		held := acquire(t, l, request("k"))
		require.Nil(t, memory.Timer(l, "k"), "nobody waits")
		c := start(t.Context(), l, request("k"))
		timer := memory.Timer(l, "k")
		require.NotNil(t, timer)
		release(t, l, held)
		require.False(t, timer.Stop(), "it ran on")
		release(t, l, granted(t, c))
	})
}

func TestWaitingIsToldOnce(t *testing.T) {
	bubble(t, func(t *testing.T, l *memory.Locker) {
		held := acquire(t, l, request("k"))
		first := start(t.Context(), l, request("k"))
		var told []lock.Record
		tell := func(r *lock.Request) {
			r.Waiting = func(rec lock.Record) {
				// Under no mutex: the store may be used here.
				_, err := l.Inspect(t.Context(), "k")
				require.NoError(t, err)
				told = append(told, rec)
			}
		}
		c := start(t.Context(), l, request("k", tell))
		require.Len(t, told, 1)
		require.Equal(t, held.Owner, told[0].Holders[0].Owner)
		require.Len(t, told[0].Waiters, 1, "who is in front")
		release(t, l, held)
		release(t, l, granted(t, first))
		release(t, l, granted(t, c))
		release(t, l, acquire(t, l, request("k", tell, waiting)))
		require.Len(t, told, 1, "no wait, no notice")
	})
}

func TestManyKeysManyWaiters(t *testing.T) {
	bubble(t, func(t *testing.T, l *memory.Locker) {
		const keys, each = 10, 20
		counts := make([]int, keys)
		done := make(chan error)
		for k := range keys {
			for range each {
				go func() {
					g, err := l.Acquire(t.Context(), request(fmt.Sprint(k), waiting))
					if err == nil {
						counts[k]++
						time.Sleep(time.Millisecond)
						err = l.Release(t.Context(), g)
					}
					done <- err
				}()
			}
		}
		for range keys * each {
			require.NoError(t, <-done)
		}
		for _, n := range counts {
			require.Equal(t, each, n)
		}
	})
}
