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
	behind time.Duration // its clock
	say    func(format string, args ...any)
}

var errLate = errors.New("is too late for it")

// run tries each tick until there are no more, or ctx ends.
func (r *replica) run(ctx context.Context) {
	// A tick has the same name everywhere, whatever the time is when somebody gets to it.
	tick := time.Now().Truncate(r.every)
	for n := 0; n < r.ticks || r.ticks == 0; n++ {
		tick = tick.Add(r.every)
		due := tick.Add(r.behind)
		if sleep(ctx, time.Until(due)) != nil {
			return
		}
		name := tick.UTC().Format("15:04:05.000")
		if r.late(due) { // if it took the key now, nobody could for the next tick
			r.say("%s failed: %v", name, errLate)
			continue
		}
		err := r.client.TryDo(ctx, "cron:"+r.job, func(ctx context.Context, _ *lock.Lease) error {
			return r.once(ctx, due, name)
		})
		switch {
		case err == nil:
			r.say("%s done", name)
		case lock.Refused(err, "cron:"+r.job):
			r.say("%s is taken", name)
		default: // the store is away, the lock was lost: the next tick is another try
			r.say("%s failed: %v", name, err)
		}
	}
}

// late reports whether the tick may have been taken and left again: whoever took it did so at
// -differ before due at the earliest, and has kept it for -min-hold.
func (r *replica) late(due time.Time) bool {
	return r.minHold > 0 && time.Since(due) >= r.minHold-r.differ
}

// once runs the job, unless the replica was stopped on its way here.
func (r *replica) once(ctx context.Context, due time.Time, name string) error {
	if r.late(due) {
		return errLate
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
