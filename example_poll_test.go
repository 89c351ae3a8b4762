package lock_test

import (
	"context"
	"fmt"
	"time"

	"github.com/seed-215fdefa/lock"
)

// A store that cannot wake its waiters has its Acquire poll.
func ExamplePoll() {
	tries := 0
	try := func(context.Context) (lock.Grant, error) {
		start := time.Now() // before the request is sent
		if tries++; tries < 3 {
			return lock.Grant{}, lock.ErrHeld
		}
		return lock.Grant{Token: 1, TTL: time.Second, Start: start}, nil
	}
	req := lock.Request{Key: "k", Wait: true, Waiting: func(lock.Record) { fmt.Println("waiting") }}
	g, err := lock.Poll(context.Background(), req, time.Millisecond, 10*time.Millisecond, try)
	fmt.Println(g.Token, err, "after", tries, "tries")
	// Output:
	// waiting
	// 1 <nil> after 3 tries
}
