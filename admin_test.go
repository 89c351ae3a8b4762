package lock

import (
	"context"
	"errors"
	"iter"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// fakeAdmin is a fake with an Admin.
type fakeAdmin struct {
	*fake
	err error
}

func (f *fakeAdmin) List(_ context.Context, prefix string) iter.Seq2[Record, error] {
	return func(yield func(Record, error) bool) {
		for _, key := range []string{prefix + "a", prefix + "b"} {
			if !yield(Record{Key: key}, nil) {
				return
			}
		}
		if f.err != nil {
			yield(Record{}, f.err)
		}
	}
}

func (f *fakeAdmin) ForceRelease(_ context.Context, key, owner string) error {
	f.mu.Lock()
	holds := f.live(key)
	f.mu.Unlock()
	if len(holds) == 0 || holds[0].grant.Owner != owner {
		return ErrLost
	}
	f.force(key, true)
	return f.err
}

func TestHeld(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		c := client(t, f)
		keys := func() []string {
			names := []string{}
			for l := range c.Held() {
				names = append(names, l.Key())
			}
			return names
		}
		require.Empty(t, keys())
		a, b := mustLock(t, c, "a"), mustLock(t, c, "b")
		require.NoError(t, c.Do(t.Context(), "c", func(context.Context, *Lease) error {
			require.ElementsMatch(t, []string{"a", "b", "c"}, keys())
			for range c.Held() {
				break
			}
			for l := range c.Held() {
				_ = l.Err() // under no mutex
			}
			return nil
		}))
		f.force("a", true)
		require.Equal(t, []string{"b"}, keys())
		f.onRelease(failRelease)
		_ = b.Release(t.Context())
		require.Empty(t, keys())
		require.NotEqual(t, a.Owner(), b.Owner())
		require.Equal(t, f.sent("acquire")[0].req.Owner, a.Owner())
	})
}

func TestAdminOfAClient(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeAdmin{fake: newFake()}
		c := New(wrapper{f})
		require.Equal(t, f.caps, c.Capabilities())
		l := mustLock(t, c, "k")
		require.NoError(t, c.ForceRelease(t.Context(), "k", l.Owner()))
		lostAs(t, ReasonForced, l.Err())
		err := c.ForceRelease(t.Context(), "k", l.Owner())
		failedAs(t, "force", "k", err)
		require.ErrorIs(t, err, ErrLost)
		err = c.ForceRelease(t.Context(), "k", "?")
		require.ErrorIs(t, err, ErrInvalid)

		var keys []string
		for r, err := range c.List(t.Context(), "x:") {
			require.NoError(t, err)
			keys = append(keys, r.Key)
		}
		require.Equal(t, []string{"x:a", "x:b"}, keys)
		for _, err := range c.List(t.Context(), "x:") {
			require.NoError(t, err)
			break
		}
		f.err = errIO
		n := 0
		for _, err = range c.List(t.Context(), "x:") {
			n++
		}
		require.Equal(t, 3, n)
		failedAs(t, "list", "x:", err)
		require.ErrorIs(t, err, ErrUnavailable)
		l = mustLock(t, c, "k")
		require.ErrorIs(t, c.ForceRelease(t.Context(), "k", l.Owner()), ErrUnavailable)

		require.NoError(t, c.Close(t.Context()))
		require.ErrorIs(t, c.ForceRelease(t.Context(), "k", l.Owner()), ErrClosed)
		require.ErrorIs(t, firstError(c.List(t.Context(), "")), ErrClosed)
	})
}

func firstError(seq iter.Seq2[Record, error]) error {
	for _, err := range seq {
		return err
	}
	return errors.New("it yields nothing")
}

func TestAdminOfAStoreWithout(t *testing.T) {
	c := client(t, newFake())
	for _, err := range []error{firstError(c.List(t.Context(), "")), c.ForceRelease(t.Context(), "k", "o")} {
		require.ErrorIs(t, err, ErrUnsupported)
		require.ErrorContains(t, err, "store fake does not have List and ForceRelease")
	}
	var none *Client
	require.Zero(t, none.Capabilities())
	for range none.Held() {
		t.Error("it has no leases")
	}
	require.ErrorIs(t, firstError(none.List(t.Context(), "")), ErrInvalid)
	require.ErrorIs(t, none.ForceRelease(t.Context(), "k", "o"), ErrInvalid)
	require.ErrorIs(t, c.ForceRelease(nil, "k", "o"), ErrInvalid) //nolint:staticcheck // that is the test
	ended, cancel := context.WithTimeout(t.Context(), -time.Second)
	defer cancel()
	require.ErrorIs(t, firstError(c.List(ended, "")), context.DeadlineExceeded)
}
