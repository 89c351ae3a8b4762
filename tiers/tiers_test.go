package tiers_test

import (
	"context"
	"errors"
	"reflect"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/internal/faulty"
	"github.com/seed-215fdefa/lock/locktest"
	"github.com/seed-215fdefa/lock/memory"
	"github.com/seed-215fdefa/lock/tiers"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// harness is that of two memory stores. The keys of the suite, key-1 and the like and odd
// ones, go to either.
func harness() locktest.Harness {
	return locktest.Harness{
		TTL:    time.Second,
		Around: synctest.Test,
		Faults: faulty.Faults(),
		New: func(tb testing.TB) func() lock.Locker {
			first, second := memory.New(), memory.New()
			return func() lock.Locker {
				l := tiers.New(tiers.Prefix("key-1", first.Open()), tiers.Prefix("a", first.Open()), tiers.Default(second.Open()))
				f := faulty.New(l)
				tb.Cleanup(func() {
					f.Sever()
					_ = l.Close()
				})
				return f
			}
		},
	}
}

func TestSuite(t *testing.T)       { locktest.Run(t, harness()) }
func TestClientSuite(t *testing.T) { locktest.RunClient(t, harness()) }

func request(key string) lock.Request {
	return lock.Request{Key: key, Owner: "owner", TTL: time.Minute}
}

// TestRoutes: the longest prefix wins, whatever the order, and keys go as they are.
func TestRoutes(t *testing.T) {
	t.Parallel()
	a, ab, rest := memory.New(), memory.New(), memory.New()
	l := tiers.New(tiers.Default(rest), tiers.Prefix("a", a), tiers.Prefix("ab", ab))
	require.NoError(t, l.Err())
	for key, want := range map[string]*memory.Locker{"a": a, "ac": a, "ab": ab, "abc": ab, "b": rest, "A": rest} {
		g, err := l.Acquire(t.Context(), request(key))
		require.NoError(t, err)
		for _, store := range []*memory.Locker{a, ab, rest} {
			rec, err := store.Inspect(t.Context(), key)
			require.NoError(t, err)
			require.Len(t, rec.Holders, map[bool]int{true: 1}[store == want], key)
		}
		rec, err := l.Inspect(t.Context(), key)
		require.NoError(t, err)
		require.Equal(t, "owner", rec.Holders[0].Owner)
		_, err = l.Renew(t.Context(), g)
		require.NoError(t, err)
		require.NoError(t, l.Release(t.Context(), g))
	}
}

func TestNoTier(t *testing.T) {
	t.Parallel()
	l := tiers.New(tiers.Prefix("a:", memory.New()), tiers.Prefix("b:", memory.New()))
	admin, ok := lock.As[lock.Admin](l)
	require.True(t, ok)
	_, acquire := l.Acquire(t.Context(), request("c:1"))
	_, renew := l.Renew(t.Context(), lock.Grant{Key: "c:1", Owner: "owner"})
	release := l.Release(t.Context(), lock.Grant{Key: "c:1", Owner: "owner"})
	_, inspect := l.Inspect(t.Context(), "c:1")
	watch := l.Watch(t.Context(), "c:1", func() {})
	force := admin.ForceRelease(t.Context(), "c:1", "owner")
	for _, err := range []error{acquire, renew, release, inspect, watch, force} {
		require.ErrorIs(t, err, lock.ErrInvalid)
		require.ErrorContains(t, err, `key "c:1" begins with none of the prefixes "a:", "b:"`)
	}
}

func TestBadTiers(t *testing.T) {
	t.Parallel()
	m := memory.New()
	for says, l := range map[string]*tiers.Locker{
		"no tiers":                       tiers.New(),
		`the store of prefix "a" is nil`: tiers.New(tiers.Prefix("b", m), tiers.Prefix("a", nil)),
		`prefix "a" is given twice`:      tiers.New(tiers.Prefix("a", m), tiers.Prefix("a", m)),
		`prefix "" is given twice`:       tiers.New(tiers.Default(m), tiers.Prefix("", m)),
		"a key has 1 to 512":             tiers.New(tiers.Prefix(strings.Repeat("a", 513), m)),
		`key "\xff" is not valid UTF-8`:  tiers.New(tiers.Prefix("\xff", m)),
	} {
		_, err := l.Acquire(t.Context(), request("a"))
		errs := []error{l.Err(), err, l.Watch(t.Context(), "a", func() {})}
		c := lock.New(l)
		for _, err := range c.List(t.Context(), "") {
			errs = append(errs, err)
		}
		errs = append(errs, c.ForceRelease(t.Context(), "a", "owner"))
		assert.Len(t, errs, 5)
		for _, err := range errs {
			assert.ErrorIs(t, err, lock.ErrInvalid, says)
			assert.ErrorContains(t, err, says)
		}
		assert.NoError(t, c.Close(t.Context()))
	}
}

// capable is a store that declares caps, and does nothing.
type capable struct{ caps lock.Capabilities }

func (c capable) Acquire(_ context.Context, req lock.Request) (lock.Grant, error) {
	if req.Lost != nil {
		return lock.Grant{}, errors.New("Lost is passed on to a store that does not declare it")
	}
	return lock.Grant{}, nil
}
func (c capable) Renew(context.Context, lock.Grant) (lock.Grant, error) { return lock.Grant{}, nil }
func (c capable) Release(context.Context, lock.Grant) error             { return nil }
func (c capable) Inspect(context.Context, string) (lock.Record, error)  { return lock.Record{}, nil }
func (c capable) Capabilities() lock.Capabilities                       { return c.caps }

func lesser() lock.Locker {
	return capable{lock.Capabilities{
		Store: "lesser", MinTTL: time.Second, ExpirySlack: time.Hour,
		TokenSurvives: lock.SurvivesRelease | lock.SurvivesFailover, HoldSurvives: lock.SurvivesRestart,
	}}
}

// TestWhatAllHave: each capability, those to come included, is what both stores have.
func TestWhatAllHave(t *testing.T) {
	t.Parallel()
	caps := lock.Capabilities{}
	v := reflect.ValueOf(&caps).Elem()
	for i := range v.NumField() {
		switch f := v.Field(i); f.Kind() {
		case reflect.Bool:
			f.SetBool(true)
		case reflect.Int64:
			f.SetInt(int64(time.Minute))
		case reflect.Uint8:
			f.SetUint(0b11011)
		case reflect.String:
			f.SetString("full")
		default:
			require.Fail(t, "a kind of capability that is not known", v.Type().Field(i).Name)
		}
	}
	want := lock.Capabilities{
		Store: "tiers(full, lesser)", MinTTL: time.Minute, ExpirySlack: time.Hour,
		TokenSurvives: lock.SurvivesRelease | lock.SurvivesFailover, HoldSurvives: lock.SurvivesRestart & 0b11011,
	}
	full := capable{caps}
	require.Equal(t, want, tiers.New(tiers.Prefix("a", full), tiers.Prefix("b", lesser())).Capabilities())
	want.Store = "tiers(lesser, full)"
	require.Equal(t, want, tiers.New(tiers.Prefix("b", lesser()), tiers.Prefix("a", full)).Capabilities())
	caps.Store = "tiers(full)"
	require.Equal(t, caps, tiers.New(tiers.Default(full)).Capabilities())
}

// TestNotMoreThanAllHave: what one store lacks is refused for the keys of the others too.
func TestNotMoreThanAllHave(t *testing.T) {
	t.Parallel()
	l := tiers.New(tiers.Prefix("a", memory.New()), tiers.Prefix("b", lesser()))
	req := request("a")
	req.Shared = true
	_, err := l.Acquire(t.Context(), req)
	require.ErrorIs(t, err, lock.ErrUnsupported)
	req = request("a")
	req.TTL = time.Millisecond
	_, err = l.Acquire(t.Context(), req)
	require.ErrorIs(t, err, lock.ErrInvalid)
	req = request("b")
	req.Lost = func(lock.LostReason) {}
	_, err = l.Acquire(t.Context(), req)
	require.NoError(t, err)
	_, ok := lock.As[lock.Admin](l)
	require.False(t, ok, "one of the stores has none")
	_, ok = lock.As[*memory.Locker](l)
	require.False(t, ok, "it would be one of several")
	require.ErrorIs(t, l.Watch(t.Context(), "b", func() {}), lock.ErrUnsupported)
	require.ErrorIs(t, lock.New(l).ForceRelease(t.Context(), "a", "owner"), lock.ErrUnsupported)
}

// TestList: each key once, from the store that it belongs to, by prefixes that are shorter
// or longer than those of the tiers.
func TestList(t *testing.T) {
	t.Parallel()
	a, ab := memory.New(), memory.New()
	l := tiers.New(tiers.Prefix("a", a), tiers.Prefix("ab", ab), tiers.Prefix("x", a))
	c := lock.New(l)
	for _, key := range []string{"a", "a1", "ab", "ab1", "abc", "x"} {
		_, err := l.Acquire(t.Context(), request(key))
		require.NoError(t, err)
	}
	for _, stray := range []string{"ab1", "y"} { // not that tier's
		_, err := a.Acquire(t.Context(), request(stray))
		require.NoError(t, err)
	}
	for prefix, want := range map[string][]string{
		"": {"a", "a1", "ab", "ab1", "abc", "x"}, "a": {"a", "a1", "ab", "ab1", "abc"}, "a1": {"a1"},
		"ab": {"ab", "ab1", "abc"}, "abc": {"abc"}, "x": {"x"}, "y": nil,
	} {
		var got []string
		for rec, err := range c.List(t.Context(), prefix) {
			require.NoError(t, err)
			got = append(got, rec.Key)
		}
		slices.Sort(got)
		require.Equal(t, want, got, prefix)
	}
	for _, err := range c.List(t.Context(), "") {
		require.NoError(t, err)
		break // as a consumer may
	}
	require.NoError(t, c.ForceRelease(t.Context(), "ab1", "owner"))
	require.ErrorIs(t, c.ForceRelease(t.Context(), "ab1", "owner"), lock.ErrLost)
}

// TestListError: an error of one store ends the list, and is told once.
func TestListError(t *testing.T) {
	t.Parallel()
	broken, why := memory.NewFaulty(), errors.New("down")
	broken.Fail(why)
	admin, ok := lock.As[lock.Admin](tiers.New(tiers.Prefix("a", broken), tiers.Prefix("bb", broken)))
	require.True(t, ok)
	times := 0
	for _, err := range admin.List(t.Context(), "") {
		require.ErrorIs(t, err, why)
		times++
	}
	require.Equal(t, 1, times)
}

// closing is a store that counts its Close.
type closing struct {
	*memory.Locker
	times int
	err   error
}

func (c *closing) Close() error { c.times++; return c.err }

func TestClose(t *testing.T) {
	t.Parallel()
	a, b := &closing{Locker: memory.New(), err: errors.New("a")}, &closing{Locker: memory.New()}
	l := tiers.New(tiers.Prefix("a", a), tiers.Prefix("aa", a), tiers.Prefix("b", b), tiers.Prefix("c", lesser()))
	require.ErrorIs(t, l.Close(), a.err)
	require.Equal(t, 1, a.times)
	require.Equal(t, 1, b.times)
}
