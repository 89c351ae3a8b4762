package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/seed-215fdefa/lock"
)

// closing is how long the end of a command may take: the release and the store's Close.
const closing = 5 * time.Second

// acquisition is what run and hold ask for.
type acquisition struct {
	ttl, wait   time.Duration
	now, shared bool
	metadata    pairs
	heldStatus  int
}

// pairs are the values of --metadata.
type pairs map[string]string

func (p pairs) String() string { return "" }

func (p pairs) Set(s string) error {
	k, v, ok := strings.Cut(s, "=")
	if !ok || k == "" {
		return fmt.Errorf("%q: want name=value", s)
	}
	p[k] = v
	return nil
}

func (q *acquisition) define(f *flag.FlagSet) {
	q.metadata = pairs{}
	f.DurationVar(&q.ttl, "ttl", lock.DefaultTTL, "")
	f.DurationVar(&q.wait, "wait", lock.MaxTTL+1, "") // above MaxTTL: no bound
	f.BoolVar(&q.now, "n", false, "")
	f.BoolVar(&q.shared, "shared", false, "")
	f.Var(q.metadata, "metadata", "")
	f.IntVar(&q.heldStatus, "E", exitHeld, "")
}

func (q *acquisition) check() error {
	switch {
	case q.heldStatus < 0 || q.heldStatus > 255:
		return misuse("-E %d: must be 0 to 255", q.heldStatus)
	case q.now && q.wait <= lock.MaxTTL && q.wait != 0:
		return misuse("-n with --wait %v: choose one", q.wait)
	case q.now:
		q.wait = 0
	}
	return nil
}

// options are those of the Client's call. The metadata says who we are, unless it was given.
func (q *acquisition) options() []lock.Option {
	m := map[string]string{"pid": fmt.Sprint(os.Getpid())}
	if host, err := os.Hostname(); err == nil {
		m["host"] = host
	}
	for k, v := range q.metadata {
		m[k] = v
	}
	opts := []lock.Option{lock.WithTTL(q.ttl), lock.WithWait(q.wait), lock.WithMetadata(m)}
	if q.shared {
		opts = append(opts, lock.WithShared())
	}
	return opts
}

// status is that of a Lock that failed.
func (q *acquisition) status(err error) int {
	if errors.Is(err, lock.ErrHeld) {
		return q.heldStatus
	}
	return status(err)
}

// errLeft is the end of a use of a Client that may leave somebody at work.
var errLeft = errors.New("the lock ends by its TTL")

// with opens the store, calls use with a Client of it, and closes both: a failure to close is
// told, but does not change the status. After errLeft it closes nothing: a Client that is closed
// releases its locks, and a session of ZooKeeper does.
func (a *app) with(ctx context.Context, use func(*lock.Client) (int, error)) (int, error) {
	store, err := a.open(ctx)
	if err != nil {
		return openStatus(err), err
	}
	client := lock.New(store)
	code, err := use(client)
	if errors.Is(err, errLeft) {
		return code, err
	}
	done, cancel := context.WithTimeout(context.Background(), closing)
	defer cancel()
	if e := errors.Join(client.Close(done), store.Close()); e != nil && err == nil {
		fmt.Fprintf(a.errOut, "lockctl: %v\n", e)
	}
	return code, err
}

func (a *app) hold(args []string) (int, error) {
	var q acquisition
	f := a.flags("hold")
	q.define(f)
	if err := parse(f, args, "KEY"); err != nil {
		return exitUsage, err
	}
	if err := q.check(); err != nil {
		return exitUsage, err
	}
	ctx, stop, signal := interrupted()
	defer stop()
	return a.with(ctx, func(c *lock.Client) (int, error) {
		l, err := c.Lock(ctx, f.Arg(0), q.options()...)
		switch {
		case signal() != 0 && err != nil:
			return 128 + int(signal()), nil
		case err != nil:
			return q.status(err), err
		}
		fmt.Fprintf(a.out, "held token=%v owner=%s\n", l.Token(), l.Owner())
		select {
		case <-ctx.Done():
		case <-l.Context().Done():
		}
		return a.release(l)
	})
}

// release releases l. A store that does not confirm it is told of, and no failure: the TTL
// ends the grant.
func (a *app) release(l *lock.Lease) (int, error) {
	ctx, cancel := context.WithTimeout(context.Background(), closing)
	defer cancel()
	err := l.Release(ctx)
	switch {
	case errors.Is(err, lock.ErrLost):
		return exitLost, err
	case err != nil:
		fmt.Fprintf(a.errOut, "lockctl: not confirmed, so the lock ends by its TTL: %v\n", err)
	}
	return 0, nil
}
