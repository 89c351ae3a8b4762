package storekit

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/seed-215fdefa/lock"
)

// Class says what an error of a store's client means for who asked. Each store has a function
// that tells the class of its client's errors.
type Class uint8

const (
	// Final says that asking again cannot help: a right or a table is missing, a key is of a
	// wrong type, the client is closed.
	Final Class = iota
	// Busy says that the server answered and has done nothing, for a reason that may pass: a
	// start, an election, throttling, a full disk, a conflict with another transaction.
	Busy
	// Unsent says that no server was reached, so nothing has been done: a connection was
	// refused, a pool is exhausted, a name was not resolved.
	Unsent
	// Unknown says that it was sent and not answered: it may have been done, or be done later.
	Unknown
)

// Passing reports whether asking again may help.
func (c Class) Passing() bool { return c != Final }

// How often Repeat sends: a server that answers is given longer than one that does not, since
// each of its answers says that nothing has been done.
const (
	maxSends = 4  // while no answer comes
	maxBusy  = 10 // that are answered with Busy

	// For so long broken connections do not end a call: a pool hands out one after the other, faster
	// than it hears that they are broken.
	minBroken = time.Second
)

// retries are the pauses of Repeat.
var retries = Backoff{Min: 4 * time.Millisecond, Max: 512 * time.Millisecond}

// Repeat calls send until it succeeds, fails for good, or ctx ends: up to 4 times if it is not
// answered and up to 10 times if the server is busy, with growing pauses, in about two
// seconds. While connections break, it goes on for a second at least. What is sent must bear
// being done twice. n is how often it was sent before.
//
// unsure reports that some sending has an unknown outcome, so that a copy may still be on its
// way. The error is send's last; once ctx has ended it is ctx.Err() too.
func Repeat(ctx context.Context, classify func(error) Class, send func(ctx context.Context, n int) error) (unsure bool, err error) {
	var trouble error
	began := time.Now()
	for n, sent, busy := 0, 0, 0; ; n++ {
		err := send(ctx, n)
		if err == nil {
			return unsure, nil
		}
		if ctx.Err() != nil {
			return true, Ended(ctx, err, trouble)
		}
		class := classify(err)
		switch trouble = err; class {
		case Final:
			return unsure, err
		case Busy:
			busy++
		case Unknown:
			unsure = true
			sent++
		default:
			sent++
		}
		broken := class == Unknown && time.Since(began) < minBroken
		if sent >= maxSends && !broken || busy == maxBusy {
			return unsure, err
		}
		if retries.Sleep(ctx, n) != nil {
			return unsure, Ended(ctx, nil, trouble)
		}
	}
}

// Ended is the error of a call whose ctx has ended: ctx.Err(), joined with what the store said
// last. That is err, of the sending that ctx cut off, and if it is ctx's also trouble, of the one
// before. Both may be nil.
func Ended(ctx context.Context, err, trouble error) error {
	end := ctx.Err()
	switch err = latest(end, err, trouble); {
	case err == nil:
		return end
	case errors.Is(err, end):
		return err
	}
	return fmt.Errorf("%w: %w", end, err)
}

// latest is err, of a sending that was cut off by end, with trouble, of the one before, if it is end's:
// clients wrap that, with news of the store or without.
func latest(end, err, trouble error) error {
	switch {
	case trouble == nil, err != nil && !errors.Is(err, end):
		return err
	case err == nil, err == end, errors.Is(err, ErrQueued): //nolint:errorlint // not if there may be news in it
		return trouble
	}
	return fmt.Errorf("%w: %w", err, trouble)
}

// WithinPatience calls f with a ctx that ends after [lock.Patience] at the latest. If that is
// why f failed, the error is lock.ErrUnavailable and wraps what f returned, but is no
// context's error: the caller's has not ended.
func WithinPatience(ctx context.Context, f func(context.Context) error) error {
	return WithinPatienceSince(ctx, time.Now(), f)
}

// WithinPatienceSince is WithinPatience for a call that began to ask the store at begun.
func WithinPatienceSince(ctx context.Context, begun time.Time, f func(context.Context) error) error {
	end := begun.Add(lock.Patience)
	if EndsWithin(ctx, time.Until(end)) {
		return f(ctx)
	}
	bounded, cancel := context.WithDeadline(ctx, end)
	defer cancel()
	err := f(bounded)
	if err != nil && ctx.Err() == nil && bounded.Err() != nil {
		return unanswered(err)
	}
	return err
}

// EndsWithin reports whether ctx ends by itself before d is over, so that it need not be bounded
// by d, which costs more than all else that a fast call does.
func EndsWithin(ctx context.Context, d time.Duration) bool {
	deadline, ok := ctx.Deadline()
	return ok && time.Until(deadline) <= d
}

// ClientClosed is lock.ErrClosed for a store's client that its owner has closed: nothing can be asked
// of the store any more. err is what the client says, and may be nil.
func ClientClosed(store string, err error) error {
	text := "lock: " + store + ": the client is closed"
	if err == nil {
		return &clientClosed{text, []error{lock.ErrClosed}}
	}
	return &clientClosed{text + ": " + err.Error(), []error{lock.ErrClosed, err}}
}

type clientClosed struct {
	text string
	errs []error
}

func (e *clientClosed) Error() string   { return e.text }
func (e *clientClosed) Unwrap() []error { return e.errs }

// unanswered is lock.ErrUnavailable around the store's error of a request that patience gave
// up. It does not pass for the end of the caller's context, which goes on.
func unanswered(err error) error {
	return &ownBound{fmt.Errorf("%w: no answer for %v: %w", lock.ErrUnavailable, lock.Patience, err)}
}

// ownBound hides of err that it is a context's, and nothing else.
type ownBound struct{ err error }

func (e *ownBound) Error() string      { return e.err.Error() }
func (e *ownBound) As(target any) bool { return errors.As(e.err, target) }
func (e *ownBound) Is(target error) bool {
	return target != context.Canceled && target != context.DeadlineExceeded && errors.Is(e.err, target)
}
