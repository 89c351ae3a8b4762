package lock

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"
)

// Poll waits for a lock on a store that cannot wake its waiters: it calls try until try
// returns anything but ErrHeld, or ctx ends. Without req.Wait it calls try once.
//
// Pauses grow exponentially from shortest to longest, with full jitter above shortest (see
// https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/). If a
// *HeldError says when a holder expires, Poll tries again soon after that. try takes
// Grant.Start itself, before it sends; it must return promptly when ctx ends. req.Waiting
// is called once, when the first try has found the key held.
//
// When ctx ends Poll returns an error that is both ctx.Err() and, if the key was seen
// held, ErrHeld. A shortest that is not positive, or above longest, is ErrInvalid.
func Poll(ctx context.Context, req Request, shortest, longest time.Duration,
	try func(context.Context) (Grant, error),
) (Grant, error) {
	if shortest <= 0 || shortest > longest {
		return Grant{}, fmt.Errorf("%w: poll from %v to %v: shortest must be positive and no more than longest",
			ErrInvalid, shortest, longest)
	}
	var last Record
	for n := 0; ; n++ {
		g, err := try(ctx)
		if err == nil || !req.Wait || !errors.Is(err, ErrHeld) {
			return g, endOfWait(ctx, last, n > 0, err)
		}
		last = recordOf(err, req.Key)
		if n == 0 && req.Waiting != nil {
			req.Waiting(last)
		}
		pause := shortest + backoff(n, shortest, longest-shortest)
		if end, ok := firstExpiry(last); ok && 0 < end && end < pause {
			pause = end + backoff(0, shortest, shortest)
		}
		t := time.NewTimer(pause)
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return Grant{}, &HeldError{Record: last, Err: ctx.Err()}
		}
	}
}

// endOfWait makes the error of a try that ended by ctx say that the key was seen held.
func endOfWait(ctx context.Context, last Record, held bool, err error) error {
	if err == nil || !held || ctx.Err() == nil || !errors.Is(err, ctx.Err()) {
		return err
	}
	return &HeldError{Record: last, Err: err}
}

func recordOf(err error, key string) Record {
	var held *HeldError
	if errors.As(err, &held) {
		return held.Record
	}
	return Record{Key: key}
}

// firstExpiry is when the first of the holders ends, if one is known.
func firstExpiry(r Record) (time.Duration, bool) {
	first, ok := time.Duration(0), false
	for _, h := range r.Holders {
		if h.ExpiresIn >= 0 && (!ok || h.ExpiresIn < first) {
			first, ok = h.ExpiresIn, true
		}
	}
	return first, ok
}

// backoff is the pause before retry n (from 0): uniform in (0, shortest·2ⁿ], the upper
// bound capped at longest. See the source named at Poll.
func backoff(n int, shortest, longest time.Duration) time.Duration {
	limit := longest
	if n < 62 && shortest<<n>>n == shortest && shortest<<n < longest {
		limit = shortest << n
	}
	if limit <= 0 {
		return 0
	}
	return 1 + rand.N(limit)
}
