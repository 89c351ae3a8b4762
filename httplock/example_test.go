package httplock_test

import (
	"context"
	"fmt"
	"net/http/httptest"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/httplock"
	"github.com/seed-215fdefa/lock/memory"
)

func Example() {
	store := memory.New() // a service with several replicas has one that they share, such as redis
	handler := httplock.NewHandler(store)
	defer handler.Close()
	server := httptest.NewServer(handler)
	defer server.Close()

	remote := httplock.New(server.URL)
	defer func() { _ = remote.Close() }()
	ctx := context.Background()
	if err := remote.Connect(ctx); err != nil { // learns what the store can do
		fmt.Println(err)
		return
	}
	client := lock.New(remote)
	err := client.Do(ctx, "report", func(context.Context, *lock.Lease) error {
		fmt.Println("building the report")
		return nil
	})
	fmt.Println(err)
	// Output:
	// building the report
	// <nil>
}
