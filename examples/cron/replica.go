package main

import (
	"context"
	"errors"
	"time"

	"github.com/seed-215fdefa/lock"
)

// replica is one of many that would run the job.
type replica struct {
	*config
	client *lock.Client
	last   lastRun
	late   time.Duration
	say    func(format string, args ...any)
}

var errHasRun = errors.New("has been run")

// run tries each tick until there are no more, or ctx ends.
func (r *replica) run(ctx context.Context) {
	// A tick has the same name everywhere, whatever the time is when somebody gets to it.
	tick := time.Now().Truncate(r.every)
	for n := 0; n < r.ticks || r.ticks == 0; n++ {
		tick = tick.Add(r.every)
		if sleep(ctx, time.Until(tick)+r.late) != nil {
			return
		}
		name := tick.UTC().Format("15:04:05.000")
		err := r.client.TryDo(ctx, "cron:"+r.job, func(ctx context.Context, l *lock.Lease) error {
			return r.once(ctx, l, tick, name)
		})
		switch {
		case err == nil:
			r.say("%s done", name)
		case lock.Refused(err, "cron:"+r.job):
			r.say("%s is being run by another", name)
		case errors.Is(err, errHasRun):
			r.say("%s has been run", name)
		default: // the store is away, the lock was lost: the next tick is another try
			r.say("%s failed: %v", name, err)
		}
	}
}

// once runs the job unless the tick has been run. It writes the tick down first: a job
// that dies half-way is not run again before the next tick. If yours may rather run twice
// than not at all, do it in the other order.
func (r *replica) once(ctx context.Context, l *lock.Lease, tick time.Time, name string) error {
	last, err := r.last.get(ctx, l.Token())
	if err != nil {
		return err
	}
	if last >= tick.UnixNano() {
		return errHasRun
	}
	if err := r.last.set(ctx, l.Token(), tick.UnixNano()); err != nil {
		return err
	}
	r.say("%s runs the %s", name, r.job)
	return sleep(ctx, r.takes) // the work: it must stop when ctx ends
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
