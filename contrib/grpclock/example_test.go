package grpclock_test

import (
	"context"
	"fmt"
	"net"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/contrib/grpclock"
	"github.com/seed-215fdefa/lock/contrib/grpclock/lockv1"
	"github.com/seed-215fdefa/lock/memory"
)

func Example() {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		fmt.Println(err)
		return
	}
	locks := grpclock.NewServer(memory.New()) // several replicas have a store that they share, such as redis
	server := grpc.NewServer(grpclock.ServerOptions()...)
	lockv1.RegisterLockServiceServer(server, locks)
	go func() { _ = server.Serve(listener) }()
	defer server.GracefulStop()
	defer locks.Close()

	// A program that uses it.
	conn, err := grpc.NewClient(listener.Addr().String(),
		append(grpclock.DialOptions(), grpc.WithTransportCredentials(insecure.NewCredentials()))...)
	if err != nil {
		fmt.Println(err)
		return
	}
	defer func() { _ = conn.Close() }()
	remote := grpclock.New(conn)
	defer func() { _ = remote.Close() }()
	ctx := context.Background()
	if err := remote.Connect(ctx); err != nil { // learns what the store can do
		fmt.Println(err)
		return
	}
	err = lock.New(remote).Do(ctx, "report", func(context.Context, *lock.Lease) error {
		fmt.Println("building the report")
		return nil
	})
	fmt.Println(err)
	// Output:
	// building the report
	// <nil>
}
