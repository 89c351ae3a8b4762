// Ratelimit has three processes call an API that allows four calls at once, from all of them
// together, and answers 429 to a fifth. A semaphore on Redis keeps them within that.
//
//	go run ./examples/ratelimit -redis localhost:6379
//
// With -unlimited they go without it, and are refused.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"sync"
	"time"

	goredis "github.com/redis/go-redis/v9"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/redis"
	"github.com/seed-215fdefa/lock/semaphore"
)

const (
	allowed   = 4 // calls at once
	processes = 3
	callers   = 4 // in each process
	calls     = 5 // of each caller
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "ratelimit:", err)
		os.Exit(1)
	}
}

type config struct {
	redis     string
	key       string
	takes     time.Duration
	unlimited bool
	api       string // empty: the process that was started, which has the API
}

func (c *config) flags() *flag.FlagSet {
	addr := os.Getenv("REDIS_ADDR")
	if addr == "" {
		addr = "127.0.0.1:6379"
	}
	f := flag.NewFlagSet("ratelimit", flag.ContinueOnError)
	f.StringVar(&c.redis, "redis", addr, "address of the server; the default is $REDIS_ADDR if that is set")
	f.StringVar(&c.key, "key", "api:geocoder", "name of the semaphore")
	f.DurationVar(&c.takes, "takes", 20*time.Millisecond, "how long a call takes")
	f.BoolVar(&c.unlimited, "unlimited", false, "call without a permit, to see what comes of it")
	f.StringVar(&c.api, "api", "", "the program's own: where a caller finds the API")
	return f
}

func run(ctx context.Context, args []string, out io.Writer) error {
	var c config
	if err := c.flags().Parse(args); err != nil {
		return err
	}
	if c.api == "" {
		return serve(ctx, c, args, out)
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
	return callAll(ctx, c, semaphore.New(client, c.key, allowed))
}

// serve runs the API and the processes that call it, and says what the API has seen.
func serve(ctx context.Context, c config, args []string, out io.Writer) error {
	api := &api{takes: c.takes}
	url, stop, err := api.start()
	if err != nil {
		return err
	}
	defer stop()
	self, err := os.Executable()
	if err != nil {
		return err
	}
	errs := make([]error, processes)
	var wg sync.WaitGroup
	for i := range processes {
		cmd := exec.CommandContext(ctx, self, append(args, "-api", url)...)
		cmd.Stderr = os.Stderr
		wg.Go(func() { errs[i] = cmd.Run() })
	}
	wg.Wait()
	fmt.Fprintln(out, api.report())
	return errors.Join(errs...)
}

// callAll has all callers of this process make their calls.
func callAll(ctx context.Context, c config, sem *semaphore.Semaphore) error {
	errs := make([]error, callers)
	var wg sync.WaitGroup
	for i := range callers {
		wg.Go(func() {
			for range calls {
				if err := call(ctx, c, sem); err != nil {
					errs[i] = err
				}
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

// call makes one call. The permit is held until the API has answered: its ctx ends the call
// if the permit is lost, since another process may have it then.
func call(ctx context.Context, c config, sem *semaphore.Semaphore) error {
	if c.unlimited {
		return get(ctx, c.api)
	}
	return sem.Do(ctx, 1, func(ctx context.Context, _ []semaphore.Permit) error { return get(ctx, c.api) })
}

func get(ctx context.Context, url string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return errors.New(resp.Status)
	}
	return nil
}
