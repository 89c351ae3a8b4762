package lock_test

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/memory"
)

// A customer who waits passes the jobs of the night, unless those have waited for a minute.
func ExampleWithHeadStart() {
	c := lock.New(memory.New())
	ctx := context.Background()
	l, err := c.Lock(ctx, "report")
	if err != nil {
		fmt.Println(err)
		return
	}
	var all sync.WaitGroup
	line := func(who string, opts ...lock.Option) {
		inLine := make(chan struct{})
		opts = append(opts, lock.WithObserver(contended(inLine)))
		all.Go(func() {
			_ = c.Do(ctx, "report", func(context.Context, *lock.Lease) error {
				fmt.Println(who)
				return nil
			}, opts...)
		})
		<-inLine
	}
	line("night job 1")
	line("night job 2")
	line("customer", lock.WithHeadStart(time.Minute))
	_ = l.Release(ctx)
	all.Wait()
	// Output:
	// customer
	// night job 1
	// night job 2
}

// contended is an Observer that is closed when a wait begins.
type contended chan struct{}

func (c contended) Observe(_ context.Context, e lock.Event) {
	if e.Kind == lock.EventContended {
		close(c)
	}
}
