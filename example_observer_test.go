package lock_test

import (
	"context"
	"fmt"
	"log/slog"
	"os"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/memory"
)

// logged is an Observer that writes to a slog.Logger. It is meant to be copied.
type logged struct{ log *slog.Logger }

// Observe logs what needs a look as a warning, what is as it should be for debugging.
func (o logged) Observe(ctx context.Context, e lock.Event) {
	level := slog.LevelDebug
	switch {
	case e.Kind == lock.EventLost, e.Kind == lock.EventReleasedLost:
		level = slog.LevelError
	case e.Err != nil:
		level = slog.LevelWarn
	case e.Kind == lock.EventContended:
		level = slog.LevelInfo
	}
	if !o.log.Enabled(ctx, level) {
		return
	}
	attrs := []slog.Attr{
		slog.String("key", e.Key), slog.String("owner", e.Owner),
		slog.Uint64("token", uint64(e.Token)), slog.Duration("waited", e.Waited),
		slog.Duration("held", e.Held), slog.Duration("slack", e.Slack),
	}
	if e.Shared {
		attrs = append(attrs, slog.Bool("shared", true))
	}
	if e.Kind == lock.EventContended {
		attrs = append(attrs, slog.Int("queue", e.Queue))
	}
	if e.Err != nil {
		attrs = append(attrs, slog.Any("err", e.Err))
	}
	o.log.LogAttrs(ctx, level, "lock "+e.Kind.String(), attrs...)
}

func ExampleObserver() {
	handler := slog.NewTextHandler(os.Stdout, &slog.HandlerOptions{
		Level: slog.LevelDebug,
		ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
			switch a.Key {
			case slog.TimeKey, "owner", "token", "waited", "held", "slack": // they differ each time
				return slog.Attr{}
			}
			return a
		},
	})
	c := lock.New(memory.New(), lock.WithObserver(logged{slog.New(handler)}))
	ctx := context.Background()
	err := c.Do(ctx, "k", func(ctx context.Context, _ *lock.Lease) error {
		_ = c.TryDo(ctx, "k", nothing) // a mistake: ctx holds k
		return nil
	})
	fmt.Println(err)
	// Output:
	// level=DEBUG msg="lock granted" key=k
	// level=WARN msg="lock failed" key=k err="lock: trydo \"k\": deadlock: ctx holds the key already"
	// level=DEBUG msg="lock released" key=k
	// <nil>
}
