// Cron runs a job once per tick, however many replicas of the program there are: the
// first that comes gets the lock, and whoever comes later in the same tick finds that it
// has been run.
//
//	go run ./examples/cron                 # three replicas in this process
//	go run ./examples/cron -store redis    # in as many terminals as you like
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strconv"
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
	late     time.Duration
	ticks    int
	replicas int
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
	f.DurationVar(&c.takes, "takes", 300*time.Millisecond, "how long the job takes")
	f.DurationVar(&c.late, "late", 200*time.Millisecond, "how much later than the one before each replica comes, as clocks differ")
	f.IntVar(&c.ticks, "ticks", 0, "how many ticks until the program ends; 0: when it is interrupted")
	f.IntVar(&c.replicas, "replicas", 3, "how many replicas run in this process")
	return f
}

func run(ctx context.Context, args []string, out io.Writer) error {
	var c config
	if err := c.flags().Parse(args); err != nil {
		return err
	}
	store, last, err := open(&c)
	if err != nil {
		return err
	}
	defer store.Close()
	client := lock.New(store, lock.WithTTL(5*time.Second))
	defer func() {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		_ = client.Close(ctx) // what it could not release ends with its TTL
	}()

	var mu sync.Mutex // guards out
	var wg sync.WaitGroup
	for i := range c.replicas {
		r := &replica{config: &c, client: client, last: last, late: time.Duration(i) * c.late}
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

// open returns the store, and where the last run is written down.
func open(c *config) (store, lastRun, error) {
	key := "cron:" + c.job + ":last"
	switch c.store {
	case "memory":
		return memory.New(), inMemory{memory.NewValue[int64](key, 0)}, nil
	case "redis":
		rdb := goredis.NewClient(&goredis.Options{Addr: c.redis})
		return closing{redis.New(rdb), rdb}, inRedis{redis.NewFence(rdb), key}, nil
	}
	return nil, nil, fmt.Errorf("-store %s: must be memory or redis", c.store)
}

// closing closes the client with the store.
type closing struct {
	*redis.Locker
	rdb *goredis.Client
}

func (c closing) Close() error { return errors.Join(c.Locker.Close(), c.rdb.Close()) }

// lastRun is the newest tick that has been run. Both methods refuse a stale token.
type lastRun interface {
	get(ctx context.Context, t lock.Token) (tick int64, err error)
	set(ctx context.Context, t lock.Token, tick int64) error
}

type inMemory struct{ v *memory.Value[int64] }

func (m inMemory) get(_ context.Context, t lock.Token) (int64, error)    { return m.v.Load(t) }
func (m inMemory) set(_ context.Context, t lock.Token, tick int64) error { return m.v.Store(t, tick) }

type inRedis struct {
	fence *redis.Fence
	key   string
}

func (r inRedis) get(ctx context.Context, t lock.Token) (int64, error) {
	s, err := r.fence.Get(ctx, r.key, t)
	if errors.Is(err, goredis.Nil) {
		return 0, nil // never
	}
	if err != nil {
		return 0, err
	}
	return strconv.ParseInt(s, 10, 64)
}

func (r inRedis) set(ctx context.Context, t lock.Token, tick int64) error {
	return r.fence.Set(ctx, r.key, t, tick, 0)
}
