package lock_test

import (
	"context"
	"errors"
	"fmt"

	"github.com/seed-215fdefa/lock"
)

// A Guard refuses the holder that froze, lost its lock and woke up again. It must see the
// reads too: the first write below would otherwise undo the second holder's.
func ExampleGuard() {
	var g lock.Guard
	ctx := context.Background()
	stock := 10
	read := func(t lock.Token) (n int, err error) {
		err = g.Do(ctx, "stock", t, func(context.Context) error { n = stock; return nil })
		return n, err
	}
	write := func(t lock.Token, n int) error {
		return g.Do(ctx, "stock", t, func(context.Context) error { stock = n; return nil })
	}

	first, _ := read(1) // the holder of token 1 freezes here
	second, _ := read(2)
	fmt.Println("token 2:", write(2, second-1))
	err := write(1, first-1) // and wakes up here
	fmt.Println("token 1:", err, errors.Is(err, lock.ErrStale))
	fmt.Println("stock:", stock)
	// Output:
	// token 2: <nil>
	// token 1: lock: stale token 1 for "stock": 2 has been seen true
	// stock: 9
}
