package memory_test

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/memory"
)

func TestInspect(t *testing.T) {
	bubble(t, func(t *testing.T, l *memory.Locker) {
		rec, err := l.Inspect(t.Context(), "k")
		require.NoError(t, err)
		require.Equal(t, lock.Record{Key: "k"}, rec)

		meta := map[string]string{"host": "a"}
		a := request("k", shared, func(r *lock.Request) { r.Metadata = meta })
		ga := acquire(t, l, a)
		meta["host"] = "changed by the caller"
		time.Sleep(time.Second)
		b := request("k", shared)
		gb := acquire(t, l, b)
		w := request("k", func(r *lock.Request) { r.Metadata = map[string]string{"n": "1"} })
		c := start(t.Context(), l, w)
		time.Sleep(2 * time.Second)

		want := lock.Record{
			Key:   "k",
			Token: gb.Token,
			Holders: []lock.Holder{
				{
					Owner: a.Owner, Token: ga.Token, Shared: true,
					Held: 3 * time.Second, ExpiresIn: ttl - 3*time.Second,
					Metadata: map[string]string{"host": "a"},
				},
				{Owner: b.Owner, Token: gb.Token, Shared: true, Held: 2 * time.Second, ExpiresIn: ttl - 2*time.Second},
			},
			Waiters: []lock.Waiter{
				{Owner: w.Owner, Waited: 2 * time.Second, Metadata: map[string]string{"n": "1"}},
			},
			HolderCount: 2,
			WaiterCount: 1,
		}
		for range 2 {
			rec, err = l.Inspect(t.Context(), "k")
			require.NoError(t, err)
			require.Equal(t, want, rec)
			rec.Holders[0].Metadata["host"] = "changed by the reader"
			rec.Waiters[0].Metadata["n"] = "changed by the reader"
		}

		_, err = l.Renew(t.Context(), gb)
		require.NoError(t, err)
		rec, err = l.Inspect(t.Context(), "k")
		require.NoError(t, err)
		require.Equal(t, 2*time.Second, rec.Holders[1].Held, "since the grant, not the renewal")
		require.Equal(t, ttl, rec.Holders[1].ExpiresIn)

		release(t, l, ga)
		release(t, l, gb)
		release(t, l, granted(t, c))
	})
}

func TestInspectKeepsTheNewestToken(t *testing.T) {
	bubble(t, func(t *testing.T, l *memory.Locker) {
		a, b := acquire(t, l, request("k", shared)), acquire(t, l, request("k", shared))
		release(t, l, b)
		rec, err := l.Inspect(t.Context(), "k")
		require.NoError(t, err)
		require.Equal(t, b.Token, rec.Token)
		release(t, l, a)
	})
}

func TestInspectSeesExpiry(t *testing.T) {
	bubble(t, func(t *testing.T, l *memory.Locker) {
		acquire(t, l, request("k"))
		time.Sleep(ttl - 1)
		rec, err := l.Inspect(t.Context(), "k")
		require.NoError(t, err)
		require.Len(t, rec.Holders, 1)
		time.Sleep(time.Nanosecond)
		rec, err = l.Inspect(t.Context(), "k")
		require.NoError(t, err)
		require.Empty(t, rec.Holders)
	})
}

func TestList(t *testing.T) {
	bubble(t, func(t *testing.T, l *memory.Locker) {
		var grants []lock.Grant
		for i := range 10 {
			grants = append(grants, acquire(t, l, request(fmt.Sprint("a/", i))))
		}
		grants = append(grants, acquire(t, l, request("b")), acquire(t, l, request("A/0")))
		acquire(t, l, request("a/over", withTTL(time.Second)))
		time.Sleep(time.Second)

		list := func(prefix string) (keys []string) {
			for rec, err := range l.List(t.Context(), prefix) {
				require.NoError(t, err)
				require.Len(t, rec.Holders, 1)
				memory.Stall(l)() // no mutex is held here
				keys = append(keys, rec.Key)
			}
			slices.Sort(keys)
			return keys
		}
		require.Len(t, list("a/"), 10)
		require.Len(t, list(""), 12)
		require.Equal(t, []string{"A/0"}, list("A"))
		require.Empty(t, list("none"))
		for _, err := range l.List(t.Context(), "") {
			require.NoError(t, err)
			break // an early end is no error
		}
		for _, g := range grants {
			release(t, l, g)
		}
	})
}
