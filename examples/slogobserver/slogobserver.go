// Package slogobserver writes what happens to locks to a [slog.Logger]:
//
//	client := lock.New(store, lock.WithObserver(slogobserver.New(slog.Default())))
//
// It is an example: copy it and change it to your taste.
package slogobserver

import (
	"context"
	"errors"
	"log/slog"

	"github.com/seed-215fdefa/lock"
)

// Observer is a [lock.Observer]. The zero Observer logs to slog.Default().
type Observer struct {
	log *slog.Logger
}

var _ lock.Observer = Observer{}

// New returns an Observer that logs to l, or to slog.Default() if l is nil.
func New(l *slog.Logger) Observer { return Observer{l} }

// Observe writes one record. It gives ctx to the handler, which may take a trace id from
// it. A level that is not enabled costs next to nothing.
func (o Observer) Observe(ctx context.Context, e lock.Event) {
	log := o.log
	if log == nil {
		log = slog.Default()
	}
	level := Level(e)
	if !log.Enabled(ctx, level) {
		return
	}
	log.LogAttrs(ctx, level, "lock "+e.Kind.String(), attrs(e)...)
}

// Level is Error for work that was not protected to its end, Warn for what may come to
// that, Info for what an operator looks for when things are slow, and Debug for the rest.
func Level(e lock.Event) slog.Level {
	switch e.Kind {
	case lock.EventLost, lock.EventReleasedLost:
		return slog.LevelError
	case lock.EventRenewFailed:
		return slog.LevelWarn
	case lock.EventFailed:
		switch {
		case errors.Is(e.Err, lock.ErrUnavailable): // ErrHeld or not: see WithWait
			return slog.LevelWarn
		case errors.Is(e.Err, lock.ErrHeld), errors.Is(e.Err, context.Canceled):
			return slog.LevelInfo // that somebody else has the lock, or the caller has given up, is an answer
		}
		return slog.LevelWarn
	case lock.EventReleased:
		if e.Err != nil { // others wait for the TTL, at worst
			return slog.LevelWarn
		}
	case lock.EventContended:
		return slog.LevelInfo
	}
	return slog.LevelDebug
}

func attrs(e lock.Event) []slog.Attr {
	as := []slog.Attr{slog.String("store", e.Store), slog.String("key", e.Key), slog.String("owner", e.Owner)}
	if e.Token != 0 {
		as = append(as, slog.Uint64("token", uint64(e.Token)))
	}
	if e.Shared {
		as = append(as, slog.Bool("shared", true))
	}
	if e.Kind == lock.EventContended {
		as = append(as, slog.Int("queue", e.Queue))
	}
	if e.SameClient {
		as = append(as, slog.Bool("same_client", true))
	}
	switch e.Kind {
	case lock.EventContended, lock.EventGranted, lock.EventFailed:
		as = append(as, slog.Duration("waited", e.Waited))
	case lock.EventRenewed, lock.EventRenewFailed:
		as = append(as, slog.Duration("slack", e.Slack))
	default:
		as = append(as, slog.Duration("held", e.Held))
	}
	if e.Err != nil {
		as = append(as, slog.Any("error", e.Err))
	}
	return as
}
