package memory_test

import (
	"context"
	"errors"
	"fmt"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/memory"
)

// A holder that was succeeded while it froze cannot undo its successor's work.
func ExampleValue() {
	ctx := context.Background()
	store := memory.New()
	frozen, next := lock.New(store), lock.New(store.Open())
	stock := memory.NewValue("stock", 10)

	a, err := frozen.Lock(ctx, "stock")
	if err != nil {
		fmt.Println(err)
		return
	}
	n, _ := stock.Load(a.Token())

	// Here it freezes, and somebody takes the lock from it.
	holder, _ := next.Inspect(ctx, "stock")
	if err := store.ForceRelease(ctx, "stock", holder.Holders[0].Owner); err != nil {
		fmt.Println(err)
	}
	err = next.Do(ctx, "stock", func(_ context.Context, l *lock.Lease) error {
		m, err := stock.Load(l.Token())
		if err != nil {
			return err
		}
		return stock.Store(l.Token(), m-1)
	})
	fmt.Println("successor:", err)

	err = stock.Store(a.Token(), n-1)
	fmt.Println("refused:", errors.Is(err, lock.ErrStale))
	// Output:
	// successor: <nil>
	// refused: true
}
