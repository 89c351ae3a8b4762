package zookeeper_test

import (
	"context"
	"fmt"
	"time"

	"github.com/go-zookeeper/zk"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/zookeeper"
)

// A Locker makes a Client, with which all the rest is done. The Locker must know the session
// timeout, since that is how long a dead process keeps its locks: the Dialer does.
func ExampleNew() {
	const sessionTimeout = 10 * time.Second
	dialer := zookeeper.NewDialer(sessionTimeout, nil)
	conn, _, err := zk.Connect(servers(), sessionTimeout, zk.WithLogInfo(false), zk.WithDialer(dialer.Dial))
	if err != nil {
		fmt.Println(err)
		return
	}
	defer conn.Close()
	locker := zookeeper.New(conn, zookeeper.WithDialer(dialer))
	defer locker.Close()
	client := lock.New(locker)
	defer client.Close(context.Background())

	err = client.Do(context.Background(), "order:123", func(_ context.Context, l *lock.Lease) error {
		fmt.Println("only one of us does this, with a token:", l.Token() > 0)
		return nil
	})
	fmt.Println(err)
	// Output:
	// only one of us does this, with a token: true
	// <nil>
}
