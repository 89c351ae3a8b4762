// Optimistic adds to a number in Redis from many writers at once: each tries three times
// without a lock, and takes it if others were faster each time.
//
//	go run ./examples/optimistic -redis localhost:6379 -writers 1    # needs no lock
//	go run ./examples/optimistic -redis localhost:6379 -writers 20
//
// What keeps the number right is Redis, which refuses a write to what has changed since it was
// read. The lock only brings order: where writers are few, nobody pays for it, and where they
// are many they stand in line instead of doing most of their work in vain.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"sync"
	"time"

	goredis "github.com/redis/go-redis/v9"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/redis"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "optimistic:", err)
		os.Exit(1)
	}
}

type config struct {
	redis   string
	number  string
	writers int
	adds    int
	takes   time.Duration
}

func (c *config) flags() *flag.FlagSet {
	addr := os.Getenv("REDIS_ADDR")
	if addr == "" {
		addr = "127.0.0.1:6379"
	}
	f := flag.NewFlagSet("optimistic", flag.ContinueOnError)
	f.StringVar(&c.redis, "redis", addr, "address of the server; the default is $REDIS_ADDR if that is set")
	f.StringVar(&c.number, "number", "number:1", "name of the number")
	f.IntVar(&c.writers, "writers", 10, "how many writers there are in this process")
	f.IntVar(&c.adds, "adds", 5, "how often each of them adds one")
	f.DurationVar(&c.takes, "takes", 2*time.Millisecond, "how long a writer thinks between its read and its write")
	return f
}

func run(ctx context.Context, args []string, out io.Writer) error {
	var c config
	if err := c.flags().Parse(args); err != nil {
		return err
	}
	rdb := goredis.NewClient(&goredis.Options{Addr: c.redis})
	defer rdb.Close()
	store := redis.New(rdb)
	defer store.Close()
	client := lock.New(store)
	defer func() {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		_ = client.Close(ctx) // what it could not release ends with its TTL
	}()

	w := &writer{config: &c, rdb: rdb, client: client}
	failed := make([]error, c.writers)
	var all sync.WaitGroup
	for i := range failed {
		all.Go(func() {
			for n := 0; n < c.adds && failed[i] == nil; n++ {
				failed[i] = w.add(ctx)
			}
		})
	}
	all.Wait()
	fmt.Fprintf(out, "%d added without the lock, %d under it\n", w.free.Load(), w.locked.Load())
	return errors.Join(failed...)
}
