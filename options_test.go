package lock

import (
	"context"
	"math"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

func TestBadOptions(t *testing.T) {
	second := time.Second
	for name, c := range map[string]struct {
		opts []Option
		says []string
	}{
		"TTL zero":              {[]Option{WithTTL(0)}, []string{"TTL 0s", "positive"}},
		"TTL negative":          {[]Option{WithTTL(-1)}, []string{"TTL -1ns"}},
		"TTL below the store's": {[]Option{WithTTL(10), WithDrift(0)}, []string{"TTL 10ns", "store fake", "1ms"}},
		"drift negative":        {[]Option{WithDrift(-second)}, []string{"drift -1s"}},
		"drift the TTL":         {[]Option{WithTTL(second), WithDrift(second)}, []string{"drift 1s", "TTL 1s"}},
		"TTL above the most":    {[]Option{WithTTL(math.MaxInt64)}, []string{"TTL 2562047h47m16.854775807s", "at most 8784h0m0s"}},
		"wait negative":         {[]Option{WithWait(-second)}, []string{"wait -1s"}},
		"head start negative":   {[]Option{WithHeadStart(-second)}, []string{"head start -1s", "from 0 to 8784h0m0s"}},
		"head start too long":   {[]Option{WithHeadStart(MaxTTL + 1)}, []string{"head start 8784h0m0.000000001s", "to 8784h0m0s"}},
		"backoff zero":          {[]Option{WithBackoff(0, second)}, []string{"0s to 1s"}},
		"backoff upside down":   {[]Option{WithBackoff(2*second, second)}, []string{"2s to 1s"}},
		"observer nil":          {[]Option{WithObserver(nil)}, []string{"observer is nil"}},
		"option nil":            {[]Option{WithTTL(second), nil}, []string{"option 1 is nil"}},
		"metadata too large":    {[]Option{WithMetadata(map[string]string{"k": strings.Repeat("x", 4096)})}, []string{"4097 bytes", "4096"}},
		"metadata not UTF-8":    {[]Option{WithMetadata(map[string]string{"k": "\xff"})}, []string{"UTF-8"}},
		"the first is told":     {[]Option{WithWait(-1), WithDrift(-1)}, []string{"wait -1ns"}},
		"drift above the TTL":   {[]Option{WithDrift(2 * second), WithTTL(second)}, []string{"drift 2s", "TTL 1s"}},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFake()
			bad := New(f, c.opts...)
			require.ErrorIs(t, bad.Err(), ErrInvalid)
			_, err := bad.Lock(t.Context(), "k")
			require.ErrorIs(t, err, ErrInvalid, "reported by every call")
			failedAs(t, "lock", "k", err)
			_, err = bad.Inspect(t.Context(), "k")
			require.ErrorIs(t, err, ErrInvalid)
			require.ErrorIs(t, bad.Close(t.Context()), ErrInvalid)

			_, callErr := New(f).Lock(t.Context(), "k", c.opts...)
			failedAs(t, "lock", "k", callErr)
			for _, err := range []error{bad.Err(), err, callErr} {
				require.ErrorIs(t, err, ErrInvalid)
				for _, s := range c.says {
					require.ErrorContains(t, err, s)
				}
			}
			require.Empty(t, f.log, "before any I/O")
		})
	}
}

func TestOptionsThatDoNotFit(t *testing.T) {
	f := newFake()
	f.caps.Priority = true
	c := New(f)
	require.ErrorContains(t, New(f, WithShared()).Err(), "WithShared given to New")
	require.ErrorIs(t, New(f, WithShared()).Err(), ErrInvalid)
	for name, err := range map[string]error{
		"WithWait(1s) on trylock":          errOf(c.TryLock(t.Context(), "k", WithWait(time.Second))),
		"WithWait(0s) on trydo":            c.TryDo(t.Context(), "k", never2, WithWait(0)),
		"WithHeadStart(1s) on trydo":       c.TryDo(t.Context(), "k", never2, WithHeadStart(time.Second)),
		"WithHeadStart(2s) on trylock":     errOf(c.TryLock(t.Context(), "k", WithHeadStart(2*time.Second))),
		"WithHeadStart(3s) on lock":        errOf(c.Lock(t.Context(), "k", WithHeadStart(3*time.Second), WithWait(0))),
		"WithHeadStart(4s) on do":          New(f, WithWait(0)).Do(t.Context(), "k", never2, WithHeadStart(4*time.Second)),
		"WithReentrant(true) on lock":      errOf(c.Lock(t.Context(), "k", WithReentrant(true))),
		"WithReentrant(true) on trylock":   errOf(c.TryLock(t.Context(), "k", WithReentrant(true))),
		"fn is nil":                        c.Do(t.Context(), "k", nil),
		"key is empty":                     c.Do(t.Context(), "", never2),
		"has 513 bytes":                    c.Do(t.Context(), strings.Repeat("k", 513), never2),
		"not valid UTF-8":                  errOf(c.Lock(t.Context(), "\xff")),
		"ctx is nil":                       errOf(c.Lock(nil, "k")), //nolint:staticcheck // that is the test
		"Locker is nil":                    New(nil).Err(),
		"Client is nil or was not made by": (*Client)(nil).Do(t.Context(), "k", never2),
		"was not made by New":              new(Client).TryDo(t.Context(), "k", never2),
	} {
		require.ErrorIs(t, err, ErrInvalid, name)
		require.ErrorContains(t, err, name)
	}
	require.Empty(t, f.log, "before any I/O")
	require.ErrorIs(t, New(nil).Do(t.Context(), "k", never2), ErrInvalid)
	require.ErrorIs(t, (*Client)(nil).Close(t.Context()), ErrInvalid)
}

// The default drift leaves something of any TTL, and a wait is bounded only if it can end.
func TestExtremeDurations(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		c := client(t, f)
		for _, ttl := range []time.Duration{time.Millisecond, 2 * time.Millisecond, 3 * time.Millisecond, MaxTTL} {
			l, err := c.TryLock(t.Context(), "k", WithTTL(ttl), WithRenewal(false))
			require.NoError(t, err, ttl)
			require.GreaterOrEqual(t, time.Until(l.Deadline()), ttl/2)
			require.NoError(t, l.Release(t.Context()))
		}
		for _, wait := range []time.Duration{math.MaxInt64, MaxTTL + 1, MaxTTL} {
			l := mustLock(t, c, "k")
			time.AfterFunc(time.Hour, func() { _ = l.Release(context.Background()) })
			start := time.Now()
			l, err := c.Lock(t.Context(), "k", WithWait(wait))
			require.NoError(t, err, wait)
			require.Equal(t, time.Hour, time.Since(start))
			require.NoError(t, l.Release(t.Context()))
		}
	})
}

// A store may grant a shorter TTL than it was asked for, of which the drift leaves nothing.
func TestDriftAboveTheGrantedTTL(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		f.onAcquire(func(ctx context.Context, r Request, acquire acquireFunc) (Grant, error) {
			r.TTL = 4 * time.Second
			return acquire(ctx, r)
		})
		c := client(t, f, WithTTL(30*time.Second), WithDrift(5*time.Second))
		err := c.Do(t.Context(), "k", never2)
		require.ErrorIs(t, err, ErrInvalid)
		require.ErrorContains(t, err, "drift 5s with TTL 4s as granted by store fake, asked for 30s")
		require.Len(t, f.sent("acquire"), 1)
		time.Sleep(time.Nanosecond)
		require.False(t, f.held("k"), "given back")
	})
}

// A store that grants an absurd TTL must not make a time overflow.
func TestGrantedTTLIsCapped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		f.onAcquire(func(ctx context.Context, r Request, acquire acquireFunc) (Grant, error) {
			g, err := acquire(ctx, r)
			g.TTL = math.MaxInt64
			return g, err
		})
		l := mustLock(t, client(t, f), "k", WithRenewal(false))
		require.NoError(t, l.Err())
		require.Less(t, time.Until(l.Deadline()), MaxTTL)
	})
}

func TestOnAStoreWithout(t *testing.T) {
	f := newFake()
	f.caps.Shared, f.caps.Priority = false, false
	for says, o := range map[string]Option{"shared mode": WithShared(), "head starts": WithHeadStart(time.Second)} {
		_, err := New(f).Lock(t.Context(), "k", o)
		require.ErrorIs(t, err, ErrUnsupported)
		require.ErrorContains(t, err, "store fake does not have "+says)
	}
	require.ErrorIs(t, New(f, WithHeadStart(1)).Err(), ErrUnsupported)
	require.NoError(t, New(f, WithHeadStart(0)).Err())
	require.Empty(t, f.log)
}

// New's head start is for those who wait, an inner call's for a wait that it does not need.
func TestHeadStart(t *testing.T) {
	f := newFake()
	f.caps.Priority = true
	c := client(t, f, WithHeadStart(time.Minute), WithReentrant(true))
	sent := func(op string) time.Duration { return f.sent(op)[len(f.sent(op))-1].req.HeadStart }
	l, err := c.TryLock(t.Context(), "k")
	require.NoError(t, err)
	require.Zero(t, sent("acquire"))
	require.NoError(t, l.Release(t.Context()))
	require.NoError(t, c.TryDo(t.Context(), "k", func(context.Context, *Lease) error { return nil }))
	require.Zero(t, sent("acquire"))
	require.NoError(t, c.Do(t.Context(), "k", func(ctx context.Context, _ *Lease) error {
		require.Equal(t, time.Minute, sent("acquire"))
		return c.Do(ctx, "k", func(context.Context, *Lease) error { return nil }, WithHeadStart(time.Hour))
	}))
	l, err = c.Lock(t.Context(), "k", WithHeadStart(MaxTTL))
	require.NoError(t, err)
	require.Equal(t, MaxTTL, sent("acquire"))
	require.NoError(t, l.Release(t.Context()))
	l, err = c.Lock(t.Context(), "k", WithWait(0))
	require.NoError(t, err)
	require.Zero(t, sent("acquire"))
	require.NoError(t, l.Release(t.Context()))
}

func TestDefaultsAndOverrides(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		require.Equal(t, 15*time.Second, New(f).cfg.ttl)
		c := New(f, WithTTL(time.Minute), WithWait(time.Second), WithReentrant(true), WithRenewal(false),
			WithMetadata(map[string]string{"a": "1"}))
		l, err := c.TryLock(t.Context(), "k")
		require.NoError(t, err, "New's wait and reentrancy do not concern a TryLock")
		require.Equal(t, time.Minute, f.sent("acquire")[0].req.TTL)
		start := time.Now()
		_, err = c.Lock(t.Context(), "k")
		require.ErrorIs(t, err, ErrHeld)
		require.Equal(t, time.Second, time.Since(start))
		_, err = c.Lock(t.Context(), "k", WithWait(2*time.Second), WithTTL(time.Hour),
			WithMetadata(map[string]string{"b": "2"}), WithDrift(0), WithReentrant(false))
		require.ErrorIs(t, err, ErrHeld)
		require.Equal(t, 3*time.Second, time.Since(start))
		req := f.sent("acquire")[2].req
		require.Equal(t, time.Hour, req.TTL)
		require.Equal(t, map[string]string{"b": "2"}, req.Metadata)
		require.Equal(t, map[string]string{"a": "1"}, c.cfg.metadata)
		require.NoError(t, l.Release(t.Context()))
		require.NoError(t, c.Close(t.Context()))
	})
}

func TestObserversOfCallsDoNotMix(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		all, a, b := new(recorder), new(recorder), new(recorder)
		c := client(t, newFake(), WithObserver(all), WithObserver(all), WithObserver(all))
		la := mustLock(t, c, "a", WithObserver(a))
		lb := mustLock(t, c, "b", WithObserver(b))
		require.NoError(t, la.Release(t.Context()))
		require.NoError(t, lb.Release(t.Context()))
		require.Equal(t, []string{"granted", "released"}, a.kinds())
		require.Equal(t, []string{"granted", "released"}, b.kinds())
		require.Len(t, all.kinds(), 12)
	})
}

func TestPauses(t *testing.T) {
	c := defaults()
	for range 30 {
		for n := range 100 {
			p := c.pause(n, DefaultTTL)
			require.Positive(t, p)
			require.LessOrEqual(t, p, min(shortestPause<<min(n, 10), longestPause))
			require.LessOrEqual(t, c.pause(n, 100*time.Millisecond), 10*time.Millisecond, "a tenth of the TTL")
			require.GreaterOrEqual(t, c.pause(n, 1), time.Duration(0))
		}
	}
}

func TestInspect(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := client(t, newFake())
		l := mustLock(t, c, "k", WithMetadata(map[string]string{"who": "me"}))
		r, err := c.Inspect(t.Context(), "k")
		require.NoError(t, err)
		require.Equal(t, l.Token(), r.Holders[0].Token)
		require.Equal(t, "me", r.Holders[0].Metadata["who"])
		_, err = c.Inspect(t.Context(), "")
		require.ErrorIs(t, err, ErrInvalid)
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		_, err = c.Inspect(ctx, "k")
		require.ErrorIs(t, err, context.Canceled)
		failedAs(t, "inspect", "k", err)
	})
}

func TestDefaultClient(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := client(t, newFake())
		t.Cleanup(func() { SetDefault(nil) })
		ops := map[string]func() error{
			"do":      func() error { return Do(t.Context(), "k", func(context.Context, *Lease) error { return errWork }) },
			"trydo":   func() error { return TryDo(t.Context(), "k", func(context.Context, *Lease) error { return errWork }) },
			"lock":    func() error { return errOf(Lock(t.Context(), "lock")) },
			"trylock": func() error { return errOf(TryLock(t.Context(), "trylock")) },
		}
		for name, op := range ops {
			SetDefault(nil)
			require.Nil(t, Default())
			err := op()
			require.ErrorIs(t, err, ErrNoDefault)
			failedAs(t, name, map[bool]string{true: "k", false: name}[name[len(name)-1] == 'o'], err)
			SetDefault(c)
			require.Same(t, c, Default())
			if err := op(); err != nil {
				require.Equal(t, errWork, err)
			}
		}
	})
}
