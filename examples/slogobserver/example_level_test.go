package slogobserver_test

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"time"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/examples/slogobserver"
)

// Each kind of event has its level and its own duration.
func ExampleLevel() {
	log := slog.New(slog.NewTextHandler(os.Stdout, &slog.HandlerOptions{
		Level: slog.LevelDebug,
		ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
			if a.Key == slog.TimeKey {
				return slog.Attr{}
			}
			return a
		},
	}))
	ctx, o := context.Background(), slogobserver.New(log)
	away, lost := errors.New("server away"), &lock.LostError{Reason: lock.ReasonUnreachable, Token: 7}

	e := lock.Event{Store: "redis", Key: "report", Owner: "A", Token: 7, Waited: 3 * time.Millisecond, Slack: 2 * time.Second}
	for _, e.Kind = range []lock.EventKind{lock.EventGranted, lock.EventRenewed} {
		o.Observe(ctx, e)
	}
	e.Kind = lock.EventFailed
	for _, e.Err = range []error{lock.ErrHeld, errors.Join(lock.ErrHeld, lock.ErrUnavailable)} {
		o.Observe(ctx, e)
	}
	e.Kind, e.Err = lock.EventRenewFailed, away
	o.Observe(ctx, e)
	e.Kind, e.Err, e.Held = lock.EventLost, lost, 10*time.Second
	o.Observe(ctx, e)
	e.Kind = lock.EventReleasedLost
	o.Observe(ctx, e)
	e.Kind, e.Err = lock.EventReleased, away
	o.Observe(ctx, e)
	e.Kind, e.Shared, e.Err = lock.EventReleased, true, nil
	o.Observe(ctx, e)
	// Output:
	// level=DEBUG msg="lock granted" store=redis key=report owner=A token=7 waited=3ms
	// level=DEBUG msg="lock renewed" store=redis key=report owner=A token=7 slack=2s
	// level=INFO msg="lock failed" store=redis key=report owner=A token=7 waited=3ms error="lock: held"
	// level=WARN msg="lock failed" store=redis key=report owner=A token=7 waited=3ms error="lock: held\nlock: store unavailable"
	// level=WARN msg="lock renew failed" store=redis key=report owner=A token=7 slack=2s error="server away"
	// level=ERROR msg="lock lost" store=redis key=report owner=A token=7 held=10s error="lock: lost: unreachable (token 7)"
	// level=ERROR msg="lock released lost" store=redis key=report owner=A token=7 held=10s error="lock: lost: unreachable (token 7)"
	// level=WARN msg="lock released" store=redis key=report owner=A token=7 held=10s error="server away"
	// level=DEBUG msg="lock released" store=redis key=report owner=A token=7 shared=true held=10s
}
