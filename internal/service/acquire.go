package service

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/internal/storekit"
)

// Acquire implements [lock.Locker]. Request.Lost is not called.
func (c *Client) Acquire(ctx context.Context, req lock.Request) (lock.Grant, error) {
	if err := lock.CheckRequest(req, c.known()); err != nil {
		return lock.Grant{}, err
	}
	if err := c.ready(ctx); err != nil {
		return lock.Grant{}, err
	}
	a := &acquisition{c: c, req: req}
	if !req.Wait {
		return a.try(ctx)
	}
	w := storekit.Wait{
		Request: req, Closed: c.closed, Classify: c.classifyWait,
		Claim:   func(ctx context.Context, _ bool) (lock.Grant, *storekit.Refusal, error) { return a.claim(ctx) },
		Recheck: a.pause,
	}
	g, err := w.Run(ctx)
	if err != nil {
		return lock.Grant{}, a.refused(ctx, err)
	}
	return a.granted(g), nil
}

// acquisition is one Acquire: the same request, sent as often as it takes.
type acquisition struct {
	c   *Client
	req lock.Request

	// unsure says that a copy of a request may still be on its way, or another replica stand in
	// line for the owner: the release must reach those too.
	unsure    bool
	inLine    bool          // the service has said so
	placed    bool          // by the last answer, anew
	failed    bool          // the last poll, or it found no place to wait at
	roundTrip time.Duration // at least that of the first poll
}

// try asks for a grant without a wait. Start is from before the first of all sendings: the store
// may know the grant from any of them.
func (a *acquisition) try(ctx context.Context) (lock.Grant, error) {
	start := time.Now()
	var answer Answer
	var err error
	a.unsure, err = a.c.send(ctx, func(ctx context.Context) (err error) {
		answer, err = a.c.remote.Acquire(ctx, a.req)
		return err
	})
	if err != nil {
		return lock.Grant{}, a.refused(ctx, err)
	}
	return a.granted(a.grant(answer, start)), nil
}

// refused is the error of an Acquire that ended with err. Callers undo nothing after ErrInvalid, nor a try
// after ErrHeld. But an earlier copy of the request that was not answered may have the grant for which the
// owner is refused now, or come late, when the key is free. So that is undone here, or err becomes one after
// which callers undo.
func (a *acquisition) refused(ctx context.Context, err error) error {
	var held *lock.HeldError
	own := func(h lock.Holder) bool { return h.Owner == a.req.Owner }
	switch {
	case !a.unsure || a.req.Wait && !errors.Is(err, lock.ErrInvalid):
		return err
	case errors.Is(err, lock.ErrInvalid), errors.As(err, &held) && slices.ContainsFunc(held.Record.Holders, own):
		err = fmt.Errorf("lock: %s: a request was not answered, and its copy was refused: %s", a.c.name, err.Error())
	case held != nil:
		return a.c.doubts.Tried(ctx, a.req, err, true, a.c.undo)
	}
	if ctx.Err() != nil {
		return storekit.Ended(ctx, err, nil)
	}
	return err
}

// granted notes that g may need more than its release.
func (a *acquisition) granted(g lock.Grant) lock.Grant {
	if a.unsure {
		a.c.doubts.Add(g.Owner)
	}
	return g
}

func (a *acquisition) grant(answer Answer, start time.Time) lock.Grant {
	return lock.Grant{
		Key: a.req.Key, Owner: a.req.Owner, Token: answer.Grant.Token, TTL: answer.Grant.TTL, Start: start, Shared: a.req.Shared,
	}
}

// errUnanswered is why a poll was given up that should have been answered long ago.
var errUnanswered = errors.New("lock: a poll of the service was not answered in time")

// claim polls. A grant is final if it came out of the very first request; any other may have been
// made for a request that asked for less.
func (a *acquisition) claim(ctx context.Context) (lock.Grant, *storekit.Refusal, error) {
	answer, start, err := a.poll(ctx)
	a.failed = err != nil
	// Another replica has granted, and the one where this owner stands in line may do so later.
	a.unsure = a.unsure || a.inLine && answer.Grant.Token != 0 && !answer.Renew
	switch {
	case err != nil:
		a.unsure = a.unsure || !errors.Is(err, lock.ErrInvalid)
		return lock.Grant{}, nil, err
	case answer.Grant.Token == 0:
		return lock.Grant{}, a.wait(answer), nil
	case answer.Renew || a.inLine || a.unsure:
		return a.verify(ctx, a.grant(answer, start))
	}
	return a.grant(answer, start), nil, nil
}

// poll asks once, and as long as there is no place in line as often as may help.
func (a *acquisition) poll(ctx context.Context) (answer Answer, start time.Time, err error) {
	send := func(ctx context.Context, _ int) (err error) {
		start = time.Now()
		answer, err = a.c.remote.Acquire(ctx, a.req)
		return err
	}
	if a.inLine {
		// By then the replica has answered, and before the place is lost another poll must arrive.
		limit := percent(pollPercent, a.req.TTL) + percent(gapPercent, a.req.TTL)/2 + 2*a.roundTrip
		ctx, cancel := context.WithTimeoutCause(ctx, limit, errUnanswered)
		defer cancel()
		if err = send(ctx, 0); err != nil && errors.Is(context.Cause(ctx), errUnanswered) {
			err = errUnanswered
		}
		return answer, start, err
	}
	unsure, err := storekit.Repeat(ctx, a.c.classify, send)
	a.unsure = a.unsure || unsure
	a.roundTrip = time.Since(start)
	return answer, start, err
}

// wait is why there is no grant yet. A place that is new, though there was one, is at another
// replica, or that has been lost.
func (a *acquisition) wait(answer Answer) *storekit.Refusal {
	if answer.New && a.inLine {
		a.unsure = true
		a.failed = a.placed
	}
	a.inLine, a.placed = true, answer.New
	return &storekit.Refusal{Record: answer.Record}
}

// verify renews a grant that is short, or older than the request that brought it. If it is lost,
// the line goes on.
func (a *acquisition) verify(ctx context.Context, g lock.Grant) (lock.Grant, *storekit.Refusal, error) {
	g.TTL = a.req.TTL
	g, err := a.c.Renew(ctx, g)
	switch {
	case errors.Is(err, lock.ErrLost):
		a.failed = true
		return lock.Grant{}, new(storekit.Refusal), nil
	case err != nil:
		a.failed, a.unsure = true, true
		return lock.Grant{}, nil, err
	}
	return g, nil, nil
}

// pause is that before the next poll: none, since the service lets a poll wait.
func (a *acquisition) pause(ttl time.Duration) time.Duration {
	if a.failed {
		return percent(10, ttl)
	}
	return 1
}
