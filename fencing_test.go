package lock

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

func TestParseToken(t *testing.T) {
	for s, want := range map[string]Token{"1": 1, "42": 42, "9007199254740991": MaxToken} {
		got, err := ParseToken(s)
		require.NoError(t, err)
		require.Equal(t, want, got)
		require.Equal(t, s, got.String())
	}
	for _, s := range []string{
		"", "0", "-1", "+1", " 1", "1 ", "01", "1.0", "1e3", "0x1", "1_0", "9007199254740992",
		"18446744073709551616", "1.79e+15", "١", strings.Repeat("9", 1000),
	} {
		_, err := ParseToken(s)
		require.ErrorIs(t, err, ErrInvalid, "%q", s)
		require.Less(t, len(err.Error()), 200)
	}
}

func TestTokenBinary(t *testing.T) {
	for _, want := range []Token{0, 1, MaxToken} {
		b, err := want.MarshalBinary()
		require.NoError(t, err)
		require.Equal(t, want.String(), string(b))
		got := Token(99)
		require.NoError(t, got.UnmarshalBinary(b))
		require.Equal(t, want, got)
	}
	got := Token(99)
	require.ErrorIs(t, got.UnmarshalBinary([]byte("x")), ErrInvalid)
	require.Equal(t, Token(99), got)
}

func FuzzParseToken(f *testing.F) {
	for _, s := range []string{"1", "0", "007", "-5", "9007199254740991", "9007199254740992", "1e9", "\x00", "½"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		v, err := ParseToken(s)
		if err != nil {
			require.ErrorIs(t, err, ErrInvalid)
			require.Zero(t, v)
			return
		}
		require.True(t, v >= 1 && v <= MaxToken)
		require.Equal(t, s, v.String(), "one token has one form")
		var u Token
		require.NoError(t, u.UnmarshalBinary([]byte(s)))
		require.Equal(t, v, u)
	})
}

func TestGuard(t *testing.T) {
	var g Guard
	ran := 0
	write := func(context.Context) error { ran++; return nil }
	require.NoError(t, g.Do(t.Context(), "k", 5, write))
	require.NoError(t, g.Do(t.Context(), "k", 5, write), "the same holder may write again")
	require.NoError(t, g.Do(t.Context(), "l", 1, write), "keys are apart")
	err := g.Do(t.Context(), "k", 4, write)
	var stale *StaleError
	require.ErrorAs(t, err, &stale)
	require.ErrorIs(t, err, ErrStale)
	require.Equal(t, StaleError{Key: "k", Token: 4, Newest: 5}, *stale)
	require.Equal(t, 3, ran)
	require.Equal(t, errWork, g.Do(t.Context(), "k", 6, func(context.Context) error { return errWork }))
	require.ErrorIs(t, g.Do(t.Context(), "k", 5, write), ErrStale, "the mark stays raised")
	require.Panics(t, func() { _ = g.Do(t.Context(), "k", 7, func(context.Context) error { panic("boom") }) })
	require.ErrorIs(t, g.Do(t.Context(), "k", 6, write), ErrStale)
	require.NoError(t, g.Do(t.Context(), "k", 7, write), "and the key is free")
	for _, bad := range []Token{0, MaxToken + 1} {
		require.ErrorIs(t, g.Do(t.Context(), "k", bad, write), ErrInvalid)
	}
	require.ErrorIs(t, g.Do(t.Context(), "k", 8, nil), ErrInvalid)
	require.NoError(t, g.Do(t.Context(), "k", 7, write), "a nil write raises nothing")
}

func TestGuardUnderConcurrency(t *testing.T) {
	var g Guard
	var wg sync.WaitGroup
	newest := make([]Token, 4) // guarded by g, as is the order of its writes
	var stale atomic.Int32
	for range 8 {
		wg.Go(func() {
			for range 1000 {
				k, tok := rand.N(len(newest)), Token(1+rand.N(1000))
				err := g.Do(t.Context(), fmt.Sprint(k), tok, func(context.Context) error {
					if tok < newest[k] {
						return errors.New("written by a stale holder")
					}
					newest[k] = tok
					return nil
				})
				if errors.Is(err, ErrStale) {
					stale.Add(1)
				} else if err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	require.Positive(t, stale.Load())
}

// A holder that froze between its read and its write must not undo its successor's.
func TestGuardedReadModifyWrite(t *testing.T) {
	var g Guard
	n := 0
	read := func(tok Token) (v int, err error) {
		err = g.Do(t.Context(), "k", tok, func(context.Context) error { v = n; return nil })
		return v, err
	}
	write := func(tok Token, v int) error {
		return g.Do(t.Context(), "k", tok, func(context.Context) error { n = v; return nil })
	}
	old, err := read(1)
	require.NoError(t, err)
	_, err = read(2) // the successor has only read so far
	require.NoError(t, err)
	require.ErrorIs(t, write(1, old+1), ErrStale)
}

func FuzzGuard(f *testing.F) {
	f.Add([]byte{1, 2, 3, 2, 1})
	f.Fuzz(func(t *testing.T, tokens []byte) {
		var g Guard
		var newest Token
		for _, b := range tokens {
			tok := Token(b)
			ran := false
			err := g.Do(t.Context(), "k", tok, func(context.Context) error { ran = true; return nil })
			require.Equal(t, tok != 0 && tok >= newest, ran)
			require.Equal(t, ran, err == nil)
			if ran {
				newest = tok
			}
		}
	})
}

// A step inside a step of the same key would wait for itself.
func TestGuardInsideItself(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g, other Guard
		nothing := func(context.Context) error { return nil }
		require.NoError(t, g.Do(t.Context(), "k", 1, func(ctx context.Context) error {
			require.NoError(t, g.Do(ctx, "l", 1, func(ctx context.Context) error {
				require.ErrorIs(t, g.Do(ctx, "k", 2, nothing), ErrDeadlock)
				return nil
			}), "another key")
			require.NoError(t, other.Do(ctx, "k", 1, nothing), "another Guard")
			short, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			require.ErrorIs(t, g.Do(short, "k", 2, nothing), context.DeadlineExceeded, "with the outer ctx it waits")
			return nil
		}))
		ended, cancel := context.WithCancel(t.Context())
		cancel()
		require.ErrorIs(t, g.Do(ended, "k", 3, nothing), context.Canceled)
		require.NoError(t, g.Do(t.Context(), "k", 1, nothing), "nothing of these raised the mark")
		require.ErrorIs(t, g.Do(nil, "k", 1, nothing), ErrInvalid) //nolint:staticcheck // that is the test
	})
}
