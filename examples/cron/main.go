// Cron runs a job once per tick, however many replicas of the program there are and however
// their clocks differ. The job is over before the slowest clock has come to the tick, so the
// lock alone would let each replica run it. The minimum hold keeps the key taken for longer than
// the clocks differ by, and the program that ran the job goes on meanwhile, or ends.
//
//	go run ./examples/cron                         # three replicas in this process
//	go run ./examples/cron -min-hold 0             # each of them runs every tick
//	go run ./examples/cron -store redis -first 1   # in as many terminals as you like
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
	"syscall"
	"time"

	goredis "github.com/redis/go-redis/v9"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/memory"
	"github.com/seed-215fdefa/lock/redis"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "cron:", err)
		os.Exit(1)
	}
}

type config struct {
	store    string
	redis    string
	job      string
	every    time.Duration
	takes    time.Duration
	minHold  time.Duration
	differ   time.Duration
	behind   time.Duration
	ticks    int
	replicas int
	first    int
}

func (c *config) flags() *flag.FlagSet {
	addr := os.Getenv("REDIS_ADDR")
	if addr == "" {
		addr = "127.0.0.1:6379"
	}
	f := flag.NewFlagSet("cron", flag.ContinueOnError)
	f.StringVar(&c.store, "store", "memory", "memory or redis")
	f.StringVar(&c.redis, "redis", addr, "address of the server; the default is $REDIS_ADDR if that is set")
	f.StringVar(&c.job, "job", "report", "name of the job")
	f.DurationVar(&c.every, "every", 2*time.Second, "a tick; the same for all replicas")
	f.DurationVar(&c.takes, "takes", 50*time.Millisecond, "how long the job takes")
	f.DurationVar(&c.minHold, "min-hold", time.Second, "how long a tick stays taken; less than a tick")
	f.DurationVar(&c.differ, "differ", 500*time.Millisecond, "by how much clocks differ at most; less than -min-hold")
	f.DurationVar(&c.behind, "behind", 200*time.Millisecond, "by how much the clock of each replica in this process is behind that of the one before")
	f.IntVar(&c.ticks, "ticks", 0, "how many ticks until the program ends; 0: when it is interrupted")
	f.IntVar(&c.replicas, "replicas", 3, "how many replicas run in this process")
	f.IntVar(&c.first, "first", 0, "how many replicas there are in other processes, whose clocks are ahead of those in this one")
	return f
}

func run(ctx context.Context, args []string, out io.Writer) error {
	var c config
	if err := c.flags().Parse(args); err != nil {
		return err
	}
	store, err := open(&c)
	if err != nil {
		return err
	}
	defer store.Close()
	client := lock.New(store, lock.WithTTL(5*time.Second), lock.WithMinHold(c.minHold))
	if err := client.Err(); err != nil {
		return err
	}
	defer func() {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		_ = client.Close(ctx) // a tick that is still taken stays so until its TTL is over
	}()

	var mu sync.Mutex // guards out
	var wg sync.WaitGroup
	for i := range c.replicas {
		r := &replica{config: &c, client: client, behind: time.Duration(i+c.first) * c.behind}
		r.say = func(format string, args ...any) {
			mu.Lock()
			defer mu.Unlock()
			fmt.Fprintf(out, "replica %d.%d %s\n", os.Getpid(), i+1, fmt.Sprintf(format, args...))
		}
		wg.Go(func() { r.run(ctx) })
	}
	wg.Wait()
	return nil
}

// store is a [lock.Locker] of either kind.
type store interface {
	lock.Locker
	Close() error
}

func open(c *config) (store, error) {
	switch c.store {
	case "memory":
		return memory.New(), nil
	case "redis":
		rdb := goredis.NewClient(&goredis.Options{Addr: c.redis})
		return closing{redis.New(rdb), rdb}, nil
	}
	return nil, fmt.Errorf("-store %s: must be memory or redis", c.store)
}

// closing closes the client with the store.
type closing struct {
	*redis.Locker
	rdb *goredis.Client
}

func (c closing) Close() error { return errors.Join(c.Locker.Close(), c.rdb.Close()) }
