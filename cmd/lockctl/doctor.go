package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/seed-215fdefa/lock"
)

// patient is how long the doctor waits for one answer.
const patient = 10 * time.Second

// doctor is one examination.
type doctor struct {
	app    *app
	client *lock.Client
	store  lock.Locker
	key    string
	sick   bool
}

func (a *app) doctor(args []string) (int, error) {
	f := a.flags("doctor", "")
	prefix := f.String("prefix", "lockctl-doctor:", "")
	if err := parse(f, args); err != nil {
		return exitUsage, err
	}
	ctx, stop, _ := interrupted()
	defer stop()
	store, err := a.open(ctx)
	if err != nil {
		return exitUsage, err
	}
	defer store.Close()
	client := lock.New(store)
	defer client.Close(context.Background())
	d := &doctor{app: a, client: client, store: store, key: fmt.Sprintf("%s%d", *prefix, time.Now().UnixNano())}
	d.examine(ctx)
	if d.sick {
		return exitUnavailable, nil
	}
	return 0, nil
}

func (d *doctor) examine(ctx context.Context) {
	caps := d.client.Capabilities()
	fmt.Fprintf(d.app.out, "      store %s: shared %v, FIFO %v, push %v, early loss %v, TTL from %v\n",
		caps.Store, caps.Shared, caps.FIFO, caps.Push, caps.EarlyLoss, caps.MinTTL)
	d.check(ctx, "reach the store", d.reach)
	if d.sick {
		return // the rest would only say it again
	}
	if p, ok := lock.As[interface{ Preflight(context.Context) error }](d.store); ok {
		d.check(ctx, "settings", func(ctx context.Context) (string, error) { return "", p.Preflight(ctx) })
	}
	d.check(ctx, "lock, renew and unlock", d.cycle)
	d.check(ctx, "hand over to who waits", d.handOver)
	d.check(ctx, "list", d.list)
	d.check(ctx, "force", d.force)
}

// check runs f and prints how it went: f's note, or its error.
func (d *doctor) check(ctx context.Context, what string, f func(context.Context) (string, error)) {
	ctx, cancel := context.WithTimeout(ctx, patient)
	defer cancel()
	note, err := f(ctx)
	switch {
	case errors.Is(err, lock.ErrUnsupported):
		fmt.Fprintf(d.app.out, "-     %s: this store cannot\n", what)
	case err != nil:
		d.sick = true
		fmt.Fprintf(d.app.out, "WRONG %s: %v\n", what, err)
	case note != "":
		fmt.Fprintf(d.app.out, "ok    %s: %s\n", what, note)
	default:
		fmt.Fprintf(d.app.out, "ok    %s\n", what)
	}
}

// reach asks several times: the first one connects.
func (d *doctor) reach(ctx context.Context) (string, error) {
	var times []time.Duration
	for range 6 {
		start := time.Now()
		if _, err := d.client.Inspect(ctx, d.key); err != nil {
			return "", err
		}
		times = append(times, time.Since(start))
	}
	rest := slices.Sorted(slices.Values(times[1:]))
	return fmt.Sprintf("%v the first time, then %v a request", round(times[0]), round(rest[len(rest)/2])), nil
}

func (d *doctor) cycle(ctx context.Context) (string, error) {
	start := time.Now()
	l, err := d.client.TryLock(ctx, d.key)
	if err != nil {
		return "", err
	}
	if err := errors.Join(l.Renew(ctx), l.Release(ctx)); err != nil {
		return "", err
	}
	return fmt.Sprintf("%v, token %v", round(time.Since(start)), l.Token()), nil
}

// handOver lets one call wait for another, through two Clients, as two processes would.
func (d *doctor) handOver(ctx context.Context) (string, error) {
	contended := make(chan struct{}, 1)
	waiter := lock.New(d.store, lock.WithObserver(observer(func(e lock.Event) {
		if e.Kind == lock.EventContended {
			contended <- struct{}{}
		}
	})))
	defer waiter.Close(context.Background())
	l, err := d.client.TryLock(ctx, d.key)
	if err != nil {
		return "", err
	}
	granted := make(chan error, 1)
	var second *lock.Lease
	go func() {
		var err error
		second, err = waiter.Lock(ctx, d.key)
		granted <- err
	}()
	select {
	case <-contended:
	case err := <-granted:
		return "", errors.Join(err, errors.New("the lock was granted twice, or the wait failed"), l.Release(ctx))
	}
	start := time.Now()
	err = l.Release(ctx)
	if e := <-granted; e != nil {
		return "", errors.Join(err, e)
	}
	took := time.Since(start)
	if second.Token() <= l.Token() {
		err = errors.Join(err, fmt.Errorf("token %v came after %v", second.Token(), l.Token()))
	}
	return fmt.Sprintf("%v after the release", round(took)), errors.Join(err, second.Release(ctx))
}

func (d *doctor) list(ctx context.Context) (string, error) {
	n := 0
	for _, err := range d.client.List(ctx, "") {
		if err != nil {
			return "", err
		}
		n++
	}
	return fmt.Sprintf("%d locks", n), nil
}

func (d *doctor) force(ctx context.Context) (string, error) {
	l, err := d.client.TryLock(ctx, d.key, lock.WithRenewal(false))
	if err != nil {
		return "", err
	}
	err = d.client.ForceRelease(ctx, d.key, l.Owner())
	if e := l.Release(ctx); err != nil || !errors.Is(e, lock.ErrLost) {
		return "", errors.Join(err, e)
	}
	return "", nil
}

func round(d time.Duration) time.Duration { return d.Round(10 * time.Microsecond) }

// observer makes an Observer of a function.
type observer func(lock.Event)

func (o observer) Observe(_ context.Context, e lock.Event) { o(e) }
