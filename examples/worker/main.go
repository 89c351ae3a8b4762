// Worker does a long job that only one process may do at a time. Start it in two
// terminals: the second waits. Interrupt the first, and the second goes on at once where
// the first stopped; kill it (-9), and the second goes on when the TTL is over.
//
//	go run ./examples/worker -redis localhost:6379
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
	"syscall"
	"time"

	goredis "github.com/redis/go-redis/v9"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/redis"
)

func main() {
	// The work gets this ctx, so it ends with the first signal, and a second one is not
	// waited for.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop)
	if err := run(ctx, os.Args[1:], os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "worker:", err)
		os.Exit(1)
	}
}

type config struct {
	redis string
	job   string
	ttl   time.Duration
	steps int
	takes time.Duration
}

func (c *config) flags() *flag.FlagSet {
	addr := os.Getenv("REDIS_ADDR")
	if addr == "" {
		addr = "127.0.0.1:6379"
	}
	f := flag.NewFlagSet("worker", flag.ContinueOnError)
	f.StringVar(&c.redis, "redis", addr, "address of the server; the default is $REDIS_ADDR if that is set")
	f.StringVar(&c.job, "job", "reindex", "name of the job")
	f.DurationVar(&c.ttl, "ttl", lock.DefaultTTL, "how long others wait for a worker that was killed")
	f.IntVar(&c.steps, "steps", 100, "how many steps the job has")
	f.DurationVar(&c.takes, "takes", 300*time.Millisecond, "how long a step takes")
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
	if err := store.Preflight(ctx); err != nil {
		fmt.Fprintln(out, "careful:", err)
	}
	w := &worker{config: c, fence: redis.NewFence(rdb), out: out}
	w.client = lock.New(store, lock.WithTTL(c.ttl), lock.WithObserver(w), lock.WithMetadata(map[string]string{
		"pid": strconv.Itoa(os.Getpid()),
	}))
	defer func() {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		_ = w.client.Close(ctx) // what it could not release ends with its TTL
	}()
	return w.run(ctx)
}

type worker struct {
	config
	client *lock.Client
	fence  *redis.Fence
	out    io.Writer
}

// run does the job, or waits until it is done by others.
func (w *worker) run(ctx context.Context) error {
	for {
		err := w.client.Do(ctx, "job:"+w.job, w.work)
		switch {
		case err == nil:
			w.say("the %s is done", w.job)
			return nil
		case ctx.Err() != nil:
			w.say("was asked to stop") // and Do has released the lock
			return nil
		case errors.Is(err, lock.ErrLost):
			w.say("lines up again") // what is done is in the store, and another goes on
		default:
			return err
		}
	}
}

// work is the job. Each step is written down, so that whoever comes next goes on there.
func (w *worker) work(ctx context.Context, l *lock.Lease) error {
	done, err := w.progress(ctx, l.Token())
	if err != nil {
		return err
	}
	w.say("begins after step %d", done)
	for done < w.steps {
		select {
		case <-time.After(w.takes): // the work of one step
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		done++
		// A stale token ends the job here, even if ctx has not had the time to.
		if err := w.fence.Set(ctx, w.key(), l.Token(), done, 0); err != nil {
			return err
		}
		w.say("step %d of %d", done, w.steps)
	}
	return nil
}

func (w *worker) key() string { return "progress:" + w.job }

func (w *worker) progress(ctx context.Context, t lock.Token) (int, error) {
	s, err := w.fence.Get(ctx, w.key(), t)
	if errors.Is(err, goredis.Nil) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(s)
}

// Observe tells about the lock. The work itself hears of a loss by its ctx.
func (w *worker) Observe(_ context.Context, e lock.Event) {
	switch e.Kind {
	case lock.EventContended:
		w.say("waits in line, %d before it", e.Queue)
	case lock.EventGranted:
		w.say("has the lock, token %d", e.Token)
	case lock.EventRenewFailed:
		w.say("could not renew, has %v left: %v", e.Slack.Round(time.Millisecond), e.Err)
	case lock.EventLost:
		w.say("has lost the lock: %v", e.Err)
	case lock.EventReleased:
		w.say("has released the lock")
	}
}

// say writes one line with one call, as files and pipes like it.
func (w *worker) say(format string, args ...any) {
	fmt.Fprintf(w.out, "%d %s\n", os.Getpid(), fmt.Sprintf(format, args...))
}
