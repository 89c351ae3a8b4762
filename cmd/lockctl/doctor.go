package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/cmd/internal/storeurl"
)

// patient is how long the doctor waits for one answer. A waiter may look twice until it has settled. If
// nobody wakes it, it looks again after a third of its heartbeat, 5/3 s; if somebody does, that is prompt.
const (
	patient = 10 * time.Second
	settled = 300 * time.Millisecond
	prompt  = 800 * time.Millisecond
)

// doctor is one examination.
type doctor struct {
	app    *app
	client *lock.Client
	store  lock.Locker
	prefix string
	key    string
	sick   bool
}

func (a *app) doctor(args []string) (int, error) {
	f := a.flags("doctor")
	prefix := f.String("prefix", "lockctl-doctor:", "")
	if err := parse(f, args); err != nil {
		return exitUsage, err
	}
	ctx, stop, _ := interrupted()
	defer stop()
	store, err := a.open(ctx)
	if err != nil {
		return openStatus(err), err
	}
	defer store.Close()
	client := lock.New(store)
	defer client.Close(context.Background())
	d := &doctor{app: a, client: client, store: store, prefix: *prefix, key: fmt.Sprintf("%s%d", *prefix, time.Now().UnixNano())}
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

// another opens the store once more, as another process would. What is in memory has one process.
func (d *doctor) another(ctx context.Context) (*storeurl.Store, error) {
	if d.client.Capabilities().Store == "memory" {
		return &storeurl.Store{Locker: d.store}, nil
	}
	return d.app.open(ctx)
}

// handOver lets one process wait for another, and tries again if that was slow: the machine may be.
func (d *doctor) handOver(ctx context.Context) (string, error) {
	var took time.Duration
	for range 3 {
		var err error
		if took, err = d.waitFor(ctx); err != nil {
			return "", err
		}
		if took < prompt || !d.client.Capabilities().Push {
			return fmt.Sprintf("%v after the release", round(took)), nil
		}
	}
	return "", fmt.Errorf("wake-ups do not arrive: the waiter had the lock %v after the release", round(took))
}

// waitFor returns how long after a release who waits for it has the lock.
func (d *doctor) waitFor(ctx context.Context) (took time.Duration, err error) {
	store, err := d.another(ctx)
	if err != nil {
		return 0, err
	}
	defer store.Close()
	contended := make(chan struct{}, 1)
	waiter := lock.New(store, lock.WithObserver(observer(func(e lock.Event) {
		if e.Kind == lock.EventContended {
			time.AfterFunc(settled, func() { contended <- struct{}{} })
		}
	})))
	defer waiter.Close(context.Background())
	l, err := d.client.TryLock(ctx, d.key)
	if err != nil {
		return 0, err
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
		return 0, errors.Join(err, errors.New("the lock was granted twice, or the wait failed"), l.Release(ctx))
	}
	start := time.Now()
	err = l.Release(ctx)
	if e := <-granted; e != nil {
		return 0, errors.Join(err, e)
	}
	took = time.Since(start)
	if second.Token() <= l.Token() {
		err = errors.Join(err, fmt.Errorf("token %v came after %v", second.Token(), l.Token()))
	}
	return took, errors.Join(err, second.Release(ctx))
}

// list does not look beyond the prefix: the rights may end there.
func (d *doctor) list(ctx context.Context) (string, error) {
	for _, err := range d.client.List(ctx, d.prefix) {
		if err != nil {
			return "", err
		}
	}
	return "", nil
}

// force ends the grant of another process, which must hear of it if the store says so.
func (d *doctor) force(ctx context.Context) (string, error) {
	store, err := d.another(ctx)
	if err != nil {
		return "", err
	}
	defer store.Close()
	holder := lock.New(store)
	defer holder.Close(context.Background())
	l, err := holder.TryLock(ctx, d.key, lock.WithRenewal(false))
	if err != nil {
		return "", err
	}
	if err := d.client.ForceRelease(ctx, d.key, l.Owner()); err != nil {
		return "", errors.Join(err, l.Release(ctx))
	}
	r, err := d.client.Inspect(ctx, d.key)
	switch {
	case err != nil:
		return "", err
	case len(r.Holders) > 0:
		return "", errors.New("it was confirmed, but the grant is still there")
	case !d.client.Capabilities().EarlyLoss:
		return "", nil
	}
	select {
	case <-l.Context().Done():
		return "", nil
	case <-ctx.Done():
		return "", errors.New("the holder does not hear of it")
	}
}

func round(d time.Duration) time.Duration { return d.Round(10 * time.Microsecond) }

// observer makes an Observer of a function.
type observer func(lock.Event)

func (o observer) Observe(_ context.Context, e lock.Event) { o(e) }
