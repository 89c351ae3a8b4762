package storetest

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/seed-215fdefa/lock"
)

// Ahead is Request with a head start.
func Ahead(key string, d time.Duration) lock.Request {
	req := Request(key)
	req.HeadStart = d
	return req
}

// HeadStartOfAFreeKey has a key free while the first in line, at deaf, has not heard of it. Who
// comes with a head start that puts it in front has the key at once; others stand in line.
func HeadStartOfAFreeKey(t *testing.T, deaf, other lock.Locker, deafen func() (heal func())) {
	Fastest(t, "a grant at once, not at the next look", time.Second, func() time.Duration {
		g := Acquire(t, other, Request("k"))
		first := Waits(t, deaf, Request("k"))
		defer deafen()()
		Release(t, other, g)
		time.Sleep(10 * time.Millisecond)
		behind := Waits(t, other, Ahead("k", time.Millisecond))
		begun, front := time.Now(), make(chan lock.Grant, 1)
		req := Ahead("k", time.Hour)
		req.Wait = true
		go func() {
			g, err := other.Acquire(context.Background(), req)
			if err != nil {
				t.Error(err)
			}
			front <- g
		}()
		var took time.Duration
		select {
		case g := <-front:
			took = time.Since(begun)
			Release(t, other, g)
			Release(t, deaf, first.Granted(t))
		case <-first.Done: // it has looked by itself
			took = Patience
			Release(t, deaf, first.Granted(t))
			Release(t, other, Receive(t, front))
		}
		Release(t, other, behind.Granted(t))
		return took
	})
}

// HeadStartOfAReader has a reader pass a waiting writer, beside those who hold the key: at once.
func HeadStartOfAReader(t *testing.T, a, b lock.Locker) {
	first := Acquire(t, a, Shared(Request("k")))
	writer := Waits(t, b, Request("k"))
	Fastest(t, "a grant at once, not at the next look", time.Second, func() time.Duration {
		req := Shared(Ahead("k", time.Hour))
		req.Wait = true
		begun := time.Now()
		g := Acquire(t, b, req)
		took := time.Since(begun)
		Release(t, b, g)
		return took
	})
	Release(t, a, first)
	Release(t, b, writer.Granted(t))
}

// HeadStartTies has the first of a line hold a place that is an hour in the future, as after the
// server's clock was set back by that: future does that to owner's. Two with one head start, which
// would have one place, are served in the order in which they came, whatever their names; who
// comes without one is the last.
func HeadStartTies(t *testing.T, l lock.Locker, future func(owner string)) {
	g := Acquire(t, l, Request("k"))
	late := Waits(t, l, Request("k"))
	future(late.Owner)
	var want []string
	var line []*Waiting
	for _, owner := range []string{"zzz", "mmm", "aaa"} {
		req := Ahead("k", time.Hour)
		req.Owner = owner
		line, want = append(line, Waits(t, l, req)), append(want, owner)
	}
	last := Waits(t, l, Request("k"))
	line, want = append(line, late, last), append(want, late.Owner, last.Owner)
	var seen []string
	for _, w := range Inspect(t, l, "k").Waiters {
		seen = append(seen, w.Owner)
	}
	require.Equal(t, want, seen)
	for _, w := range line {
		Release(t, l, g)
		g = w.Granted(t)
	}
	Release(t, l, g)
}
