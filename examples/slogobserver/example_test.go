package slogobserver_test

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"time"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/examples/slogobserver"
	"github.com/seed-215fdefa/lock/memory"
)

// A client that logs all it does. This logger leaves out what differs from run to run.
func Example() {
	log := slog.New(slog.NewTextHandler(os.Stdout, &slog.HandlerOptions{
		Level: slog.LevelDebug,
		ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
			switch a.Key {
			case slog.TimeKey, "owner", "token", "waited", "held", "error":
				return slog.Attr{}
			}
			return a
		},
	}))
	client := lock.New(memory.New(), lock.WithObserver(slogobserver.New(log)))

	ctx := context.Background()
	err := client.Do(ctx, "report", func(context.Context, *lock.Lease) error {
		// Somebody else would like to have it, and gives up.
		_, err := client.Lock(ctx, "report", lock.WithWait(time.Second))
		return fmt.Errorf("the other: %w", err)
	})
	_ = err // is ErrHeld
	// Output:
	// level=DEBUG msg="lock granted" store=memory key=report
	// level=INFO msg="lock contended" store=memory key=report queue=0 same_client=true
	// level=INFO msg="lock failed" store=memory key=report same_client=true
	// level=DEBUG msg="lock released" store=memory key=report
}
