package lock

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"
)

// Poll waits for a lock on a store that cannot wake its waiters: it calls try until that
// returns anything but ErrHeld, or ctx ends. Without req.Wait it calls try once.
//
// Pauses grow exponentially from min to max, with full jitter above min (see
// https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/); a holder
// whose end is known from a *HeldError is waited for no longer than that. try takes
// Grant.Start itself, before it sends; it must return promptly when ctx ends.
// req.Waiting is called once, when the first try found the key held.
//
// When ctx ends Poll returns an error that is both ctx.Err() and, if the key was seen
// held, ErrHeld. A min that is not positive, or above max, is ErrInvalid.
func Poll(ctx context.Context, req Request, min, max time.Duration,
	try func(context.Context) (Grant, error),
) (Grant, error) {
	if min <= 0 || min > max {
		return Grant{}, fmt.Errorf("%w: poll from %v to %v: min must be positive and no more than max", ErrInvalid, min, max)
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
		pause := min + backoff(n, min, max-min)
		if end, ok := firstExpiry(last); ok && end < pause {
			pause = end + backoff(0, min, min)
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

// backoff is the pause before retry n (from 0): uniform in (0, min·2ⁿ], the upper bound
// capped at max. See the source named at Poll.
func backoff(n int, min, max time.Duration) time.Duration {
	limit := max
	if n < 62 && min<<n>>n == min && min<<n < max {
		limit = min << n
	}
	if limit <= 0 {
		return 0
	}
	return 1 + rand.N(limit)
}
