package storekit

import (
	"context"
	"errors"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"
	"unicode/utf8"
	"unsafe"

	"github.com/stretchr/testify/require"

	"github.com/seed-215fdefa/lock"
)

func TestDoubts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var d Doubts
		require.False(t, d.Take("a"))
		for range 2 { // as often as it likes
			d.Add("a")
		}
		require.False(t, d.Take("b"))
		require.True(t, d.Take("a"))
		require.False(t, d.Take("a"))

		d.Add("a")
		d.Add("b")
		time.Sleep(UndoLife)
		d.Add("c")
		require.True(t, d.Take("a"))
		time.Sleep(UndoLife)
		d.Add("d")
		require.True(t, d.Take("c"), "it is as old as may be")
		time.Sleep(UndoLife + 1)
		d.Add("e")
		require.False(t, d.Take("b"))
		for range 3 {
			time.Sleep(2*UndoLife + 1)
			d.Add("f") // again, so it stays
			require.Len(t, d.young, 1)
			require.Empty(t, d.old)
		}
		require.True(t, d.Take("f"))
	})
}

// TestManyDoubts adds owners none of whom can be forgotten yet: each costs the same, so all are
// added at once. Where each looks at all others it takes minutes.
func TestManyDoubts(t *testing.T) {
	const owners = 50_000
	var d Doubts
	begun := time.Now()
	for i := range owners {
		d.Add(strconv.Itoa(i))
	}
	require.Less(t, time.Since(begun), 10*time.Second)
	for i := range owners {
		require.True(t, d.Take(strconv.Itoa(i)))
	}
}

// TestTried: after ErrHeld without ctx's error nothing is left to undo.
func TestTried(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	req := lock.Request{Key: "k", Owner: "o", TTL: time.Second}
	broken, full := errors.New("broken"), errors.New("full")
	held := &lock.HeldError{Record: lock.Record{Key: "k"}, Err: full}
	undone := 0
	undo := func(result error) func(context.Context, lock.Grant) error {
		return func(_ context.Context, g lock.Grant) error {
			require.Equal(t, lock.Grant{Key: "k", Owner: "o"}, g)
			undone++
			return result
		}
	}
	require.NoError(t, Tried(ctx, req, nil, true, undo(nil)))
	require.Equal(t, broken, Tried(ctx, req, broken, true, undo(nil)))
	require.Equal(t, held, Tried(ctx, req, held, false, undo(nil)))
	require.Zero(t, undone)

	require.Equal(t, held, Tried(ctx, req, held, true, undo(nil)))
	require.Equal(t, 1, undone)
	err := Tried(ctx, req, held, true, undo(broken))
	require.ErrorIs(t, err, broken)
	require.NotErrorIs(t, err, lock.ErrHeld)

	cancel()
	err = Tried(ctx, req, held, true, undo(ctx.Err()))
	for _, target := range []error{lock.ErrHeld, full, context.Canceled} {
		require.ErrorIs(t, err, target)
	}
}

// TestLossIsToldIfUndoFails: what a release returns is all that its caller hears of a loss.
func TestLossIsToldIfUndoFails(t *testing.T) {
	var d Doubts
	g, failed := lock.Grant{Key: "k", Owner: "o", Token: 1}, errors.New("no connection")
	returns := func(err error) func(context.Context, lock.Grant) error {
		return func(context.Context, lock.Grant) error { return err }
	}
	d.Add("o")
	err := d.Release(t.Context(), g, returns(&lock.LostError{Reason: lock.ReasonForced}), returns(failed))
	var lost *lock.LostError
	require.ErrorAs(t, err, &lost)
	require.Equal(t, lock.ReasonForced, lost.Reason)
	require.ErrorIs(t, err, failed)
	require.True(t, d.Take("o"), "the next release tries again")
}

// TestTriedBeforeAWait leaves the doubt to the release: who stands in line next must not be refused.
func TestTriedBeforeAWait(t *testing.T) {
	var d Doubts
	req, held := lock.Request{Key: "k", Owner: "o", TTL: time.Second}, &lock.HeldError{}
	undone := 0
	undo := func(context.Context, lock.Grant) error { undone++; return nil }
	ctx := ReuseOwner(t.Context())
	require.Equal(t, held, d.Tried(ctx, req, held, false, undo))
	require.False(t, d.Take("o"))
	require.Equal(t, held, d.Tried(ctx, req, held, true, undo))
	require.True(t, d.Take("o"))
	require.Zero(t, undone)
	require.Equal(t, held, d.Tried(t.Context(), req, held, true, undo))
	require.False(t, d.Take("o"))
	require.Equal(t, 1, undone)
}

func TestRecent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := NewRecent(time.Second)
		require.False(t, r.Has("k"))
		r.Add("k")
		time.Sleep(time.Second - 1)
		require.True(t, r.Has("k"))
		time.Sleep(time.Nanosecond)
		require.False(t, r.Has("k"))
	})
}

func TestProcessName(t *testing.T) {
	require.Regexp(t, "^[A-Za-z0-9_-]{22}$", ProcessName())
	require.NotEqual(t, ProcessName(), ProcessName())
}

// slept is t as a machine sees it that was suspended for d since: its monotonic clock is
// behind by that.
func slept(t time.Time, d time.Duration) time.Time {
	(*struct {
		wall uint64
		mono int64
	})(unsafe.Pointer(&t)).mono += int64(d)
	return t
}

func TestElapsedKnowsOfSleep(t *testing.T) {
	now := time.Now().Add(-time.Second)
	asleep := slept(now, time.Hour)
	require.Less(t, time.Since(asleep), -time.Minute, "the monotonic clock does not")
	require.InDelta(t, time.Second, Elapsed(asleep), float64(time.Minute))
	require.InDelta(t, time.Hour, Elapsed(slept(now, -time.Hour)), float64(time.Minute), "a wall clock that was set back")

	g := lock.Grant{Start: slept(time.Now().Add(-2*time.Second), time.Hour), TTL: time.Second}
	require.Equal(t, lock.ReasonExpired, Vanished(g))
	g.TTL = time.Hour
	require.Zero(t, Vanished(g), "it cannot have expired")
	require.Zero(t, Vanished(lock.Grant{TTL: time.Hour}), "nobody knows when it began")
	require.Zero(t, Vanished(lock.Grant{Start: time.Now()}), "nobody knows how long it was to last")
}

func TestMetadata(t *testing.T) {
	for _, m := range []map[string]string{
		nil, {"": ""}, {"who": "me"}, {"ü": "日本", "\x00": "\x7f\u2028", "😀": `"\<>&`},
	} {
		s := EncodeMetadata(m)
		require.NotRegexp(t, `[^\x20-\x7e]`, s)
		back, ok := DecodeMetadata(s)
		require.True(t, ok, s)
		require.Equal(t, m, back)
	}
	require.Empty(t, EncodeMetadata(map[string]string{}))
	for _, s := range []string{"null", "[]", "{", `{"a":1}`, "x"} {
		_, ok := DecodeMetadata(s)
		require.False(t, ok, s)
	}
}

func TestNote(t *testing.T) {
	long := strings.Repeat("o", lock.MaxOwnerLen)
	for _, under := range [][]string{nil, {"o"}, {"a-b_c", "0", long}, slices.Repeat([]string{long}, lock.MaxRecord)} {
		for _, m := range []map[string]string{nil, {"who": "me"}, {"]": "[", ",": `"\]{`}} {
			note := EncodeNote(&lock.Request{Metadata: m, Under: under})
			if under == nil {
				require.Equal(t, EncodeMetadata(m), note, "as it was before there was Under")
			}
			back, owners, ok := DecodeNote(note)
			require.True(t, ok, note)
			require.Equal(t, m, back)
			require.Equal(t, under, owners)
		}
	}
	for _, s := range []string{"[", "[]", "[o", "[o,]", "[o]x", "[o]null", "null", "x", `["o"]{`} {
		_, _, ok := DecodeNote(s)
		require.False(t, ok, s)
	}
}

func TestBound(t *testing.T) {
	r := lock.Record{Holders: make([]lock.Holder, 20), Waiters: make([]lock.Waiter, 3), WaiterCount: 5}
	Bound(&r)
	require.Len(t, r.Holders, lock.MaxRecord)
	require.Equal(t, 20, r.HolderCount)
	require.Len(t, r.Waiters, 3)
	require.Equal(t, 5, r.WaiterCount)
}

func TestCheckRenewal(t *testing.T) {
	g := lock.Grant{Key: "k", Owner: "o", TTL: lock.MaxTTL}
	require.NoError(t, CheckRenewal(g))
	for _, ttl := range []time.Duration{0, -1, lock.MaxTTL + 1, 1<<63 - 1} {
		g.TTL = ttl
		require.ErrorIs(t, CheckRenewal(g), lock.ErrInvalid)
		require.ErrorContains(t, CheckRenewal(g), ttl.String())
	}
	require.ErrorIs(t, CheckRenewal(lock.Grant{Owner: "o", TTL: 1}), lock.ErrInvalid)
}

func FuzzEscaping(f *testing.F) {
	letters := NewEscaping(func(b byte) bool { return 'a' <= b && b <= 'z' || b == '%' })
	tags := NewEscaping(func(b byte) bool { return b != '{' && b != '}' })
	f.Add("a/b", "a")
	f.Add("%2F", "%")
	f.Add("{ü}", "%7b")
	f.Fuzz(func(t *testing.T, a, b string) {
		for _, e := range []*Escaping{letters, tags} {
			back, ok := e.Decode(e.Encode(a))
			require.Equal(t, a != "", ok)
			require.Equal(t, a, back)
			require.Equal(t, utf8.ValidString(a) || e == letters, utf8.ValidString(e.Encode(a)))
			require.Equal(t, strings.HasPrefix(a, b), strings.HasPrefix(e.Encode(a), e.Encode(b)))
			if key, ok := e.Decode(b); ok {
				require.Equal(t, b, e.Encode(key), "only what it makes is decoded")
			}
		}
		require.NotContains(t, tags.Encode(a), "{")
	})
}

func TestIsNil(t *testing.T) {
	var p *strings.Builder
	var f func()
	for _, v := range []any{nil, p, f, map[string]int(nil), chan int(nil), error(nil)} {
		require.True(t, IsNil(v), "%T", v)
	}
	for _, v := range []any{new(int), 0, struct{}{}, "", func() {}} {
		require.False(t, IsNil(v), "%T", v)
	}
}
