package bench

import (
	"context"
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/memory"
)

// TestDoAll compares a DoAll of three keys with a Do of one, uncontended.
func TestDoAll(t *testing.T) {
	s := scales()
	s.slice /= 10
	s.rounds *= 10
	embedded := lock.New(memory.New())
	defer func() { require.NoError(t, embedded.Close(context.Background())) }()
	_, redis := connect(t)
	out := table{title: "`DoAll` of three keys, one caller", head: []string{"store", "µs", "`Do`, µs", "ratio"}}
	for _, m := range []struct {
		store string
		c     *lock.Client
	}{{"embedded", embedded}, {"Redis", redis}} {
		one, three, ratio := pairs(s, 1, do(m.c), doAll(m.c))
		out.add(m.store, fmt.Sprintf("%.1f", 1e6/three), fmt.Sprintf("%.1f", 1e6/one), fmt.Sprintf("%.2f", ratio))
	}
	out.print()
}

func do(c *lock.Client) func(int, int) {
	return func(int, int) {
		if err := c.Do(context.Background(), "b", nothing); err != nil {
			panic(err)
		}
	}
}

func doAll(c *lock.Client) func(int, int) {
	keys := []string{"a", "b", "c"}
	return func(int, int) {
		if err := c.DoAll(context.Background(), keys, func(context.Context, []*lock.Lease) error { return nil }); err != nil {
			panic(err)
		}
	}
}
