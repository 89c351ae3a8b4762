package lock_test

import (
	"context"
	"fmt"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/memory"
)

// An operator lists what is held, and ends the hold of a process that hangs. Only fenced
// resources are safe from that process then.
func ExampleAs() {
	var store lock.Locker = memory.New()
	ctx := context.Background()
	l, err := lock.New(store).Lock(ctx, "job:1", lock.WithMetadata(map[string]string{"host": "web-1"}))
	if err != nil {
		fmt.Println(err)
		return
	}

	admin, ok := lock.As[lock.Admin](store)
	if !ok {
		fmt.Println("this store has no Admin")
		return
	}
	for r, err := range admin.List(ctx, "job:") {
		if err != nil {
			fmt.Println(err)
			return
		}
		h := r.Holders[0]
		fmt.Println(r.Key, "held by", h.Metadata["host"])
		fmt.Println(admin.ForceRelease(ctx, r.Key, h.Owner))
	}
	<-l.Context().Done()
	// Output:
	// job:1 held by web-1
	// <nil>
}
