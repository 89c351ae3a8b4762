// Package breakerlock puts a circuit breaker in front of a store of locks. While the store is
// down, acquires fail at once, with ErrUnavailable, instead of each waiting for its own timeout.
// The breaker is github.com/sony/gobreaker.
//
//	store := breakerlock.New(redis.New(rdb), gobreaker.Settings{Name: "locks"})
//	client := lock.New(store)
//
// The breaker stops only acquires, and counts only acquires. Renewals and releases always pass:
// a holder must go on trying until its deadline, and a held lock must be released. Inspect,
// Watch, List and ForceRelease pass too.
//
// An acquire counts as a success once the store has answered: with a grant, with ErrHeld, or
// with a place in line. So a long wait is no failure, and one caller who gets a place in line
// closes a half-open breaker for the others. Failures that the caller causes (a bad argument, a
// canceled ctx) do not count.
package breakerlock

import (
	"context"
	"errors"
	"io"
	"sync"

	"github.com/sony/gobreaker/v2"

	"github.com/seed-215fdefa/lock"
)

// Locker is a [lock.Locker] with a breaker before its Acquire. It is safe for concurrent use.
type Locker struct {
	lock.Locker
	breaker *gobreaker.TwoStepCircuitBreaker[struct{}]
}

var _ lock.Locker = (*Locker)(nil)

// New returns l behind a breaker. The package decides what counts as a failure: it ignores
// IsSuccessful and IsExcluded of settings. By gobreaker's defaults the breaker opens after more
// than five failures in a row, and lets one acquire through after 60 s.
func New(l lock.Locker, settings gobreaker.Settings) *Locker {
	settings.IsSuccessful = func(err error) bool { return err == nil }
	settings.IsExcluded = func(err error) bool { return errors.Is(err, errNoAnswer) }
	return &Locker{l, gobreaker.NewTwoStepCircuitBreaker[struct{}](settings)}
}

// errNoAnswer is the outcome of an acquire that says nothing about the store.
var errNoAnswer = errors.New("breakerlock: ended by the caller")

// State returns the breaker's state.
func (l *Locker) State() gobreaker.State { return l.breaker.State() }

// Unwrap returns the store, in which [lock.As] finds its Admin and its Watcher.
func (l *Locker) Unwrap() lock.Locker { return l.Locker }

// Close closes the store, if that has a method Close() error.
func (l *Locker) Close() error {
	if c, ok := l.Locker.(io.Closer); ok {
		return c.Close()
	}
	return nil
}

// Acquire asks the store. While the breaker is open, it sends nothing and returns ErrUnavailable
// around gobreaker's error.
func (l *Locker) Acquire(ctx context.Context, req lock.Request) (lock.Grant, error) {
	if err := lock.CheckRequest(req, l.Capabilities()); err != nil {
		return lock.Grant{}, err
	}
	if err := ctx.Err(); err != nil {
		return lock.Grant{}, err
	}
	done, err := l.breaker.Allow()
	if err != nil {
		return lock.Grant{}, &refusal{err}
	}
	var once sync.Once
	report := func(err error) { once.Do(func() { done(err) }) }
	defer report(errNoAnswer) // if the store panics
	waiting := req.Waiting
	if req.Wait {
		req.Waiting = func(r lock.Record) {
			report(nil)
			if waiting != nil {
				waiting(r)
			}
		}
	}
	g, err := l.Locker.Acquire(ctx, req)
	report(outcome(err))
	return g, err
}

// refusal is ErrUnavailable around gobreaker's error.
type refusal struct{ err error }

func (r *refusal) Error() string   { return lock.ErrUnavailable.Error() + ": " + r.err.Error() }
func (r *refusal) Unwrap() []error { return []error{lock.ErrUnavailable, r.err} }

// NotSent tells the Client that there is nothing to undo.
func (r *refusal) NotSent() {}

// outcome is err as the breaker is to count it: nil for an answer.
func outcome(err error) error {
	switch {
	case err == nil, errors.Is(err, lock.ErrHeld), errors.Is(err, lock.ErrLost):
		return nil
	case errors.Is(err, context.Canceled), errors.Is(err, lock.ErrInvalid),
		errors.Is(err, lock.ErrUnsupported), errors.Is(err, lock.ErrClosed):
		return errNoAnswer
	}
	return err
}
