package httplock

import (
	"context"
	"errors"
	"net/http"
	"time"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/internal/storekit"
)

// Acquire implements [lock.Locker]. Request.Lost is not called.
func (l *Locker) Acquire(ctx context.Context, req lock.Request) (lock.Grant, error) {
	if err := lock.CheckRequest(req, l.known()); err != nil {
		return lock.Grant{}, err
	}
	if err := l.ready(ctx); err != nil {
		return lock.Grant{}, err
	}
	a := &acquisition{l: l, req: req, body: acquireBody{
		Owner: req.Owner, TTL: duration(req.TTL), Shared: req.Shared, Wait: req.Wait,
		HeadStart: duration(req.HeadStart), Metadata: req.Metadata, Under: req.Under,
	}}
	if !req.Wait {
		return a.try(ctx)
	}
	w := storekit.Wait{
		Request: req, Closed: l.closed, Classify: classifyWait,
		Claim:   func(ctx context.Context, _ bool) (lock.Grant, *storekit.Refusal, error) { return a.claim(ctx) },
		Recheck: a.pause,
	}
	g, err := w.Run(ctx)
	if err != nil {
		return lock.Grant{}, err
	}
	return a.granted(g), nil
}

// acquisition is one Acquire: the same request, sent as often as it takes.
type acquisition struct {
	l    *Locker
	req  lock.Request
	body acquireBody

	// unsure says that a copy of a request may still be on its way, or another replica stand in
	// line for the owner: the release must reach those too.
	unsure    bool
	inLine    bool          // the service has said so
	placed    bool          // by the last reply, anew
	failed    bool          // the last poll, or it found no place to wait at
	roundTrip time.Duration // at least that of the first poll
}

// reply is any of the bodies that an acquire request is answered with.
type acquireReply struct {
	grantBody
	lineBody
}

// try asks for a grant without a wait. Start is from before the first of all sendings: the store
// may know the grant from any of them.
func (a *acquisition) try(ctx context.Context) (lock.Grant, error) {
	start := time.Now()
	var r acquireReply
	unsure, err := a.l.send(ctx, http.MethodPost, path(a.req.Key, "acquire"), a.body, &r)
	if err != nil {
		return lock.Grant{}, err
	}
	a.unsure = unsure
	return a.granted(a.grant(r, start)), nil
}

// granted notes that g may need more than its release.
func (a *acquisition) granted(g lock.Grant) lock.Grant {
	if a.unsure {
		a.l.doubts.Add(g.Owner)
	}
	return g
}

func (a *acquisition) grant(r acquireReply, start time.Time) lock.Grant {
	return lock.Grant{
		Key: a.req.Key, Owner: a.req.Owner, Token: r.Token, TTL: time.Duration(r.TTL), Start: start, Shared: a.req.Shared,
	}
}

// errUnanswered is why a poll was given up that should have been answered long ago.
var errUnanswered = errors.New("lock: http: a poll was not answered in time")

// claim polls. A grant is final if it came out of the very first request; any other may have been
// made for a request that asked for less.
func (a *acquisition) claim(ctx context.Context) (lock.Grant, *storekit.Refusal, error) {
	r, start, status, err := a.poll(ctx)
	a.failed = err != nil
	switch {
	case err != nil:
		a.unsure = true
		return lock.Grant{}, nil, err
	case status == http.StatusAccepted:
		return lock.Grant{}, a.wait(r), nil
	case r.Renew || a.inLine || a.unsure:
		return a.verify(ctx, a.grant(r, start))
	}
	return a.grant(r, start), nil, nil
}

// poll asks once, and as long as there is no place in line as often as may help.
func (a *acquisition) poll(ctx context.Context) (r acquireReply, start time.Time, status int, err error) {
	if a.inLine {
		var cancel context.CancelFunc
		// By then the replica has answered, and before the place is lost another poll must arrive.
		limit := percent(pollPercent, a.req.TTL) + percent(gapPercent, a.req.TTL)/2 + 2*a.roundTrip
		ctx, cancel = context.WithTimeoutCause(ctx, limit, errUnanswered)
		defer cancel()
	}
	send := func(ctx context.Context, _ int) (err error) {
		start = time.Now()
		r = acquireReply{}
		status, err = a.l.ask(ctx, http.MethodPost, path(a.req.Key, "acquire"), a.body, &r)
		return err
	}
	if a.inLine {
		if err = send(ctx, 0); err != nil && errors.Is(context.Cause(ctx), errUnanswered) {
			err = errUnanswered
		}
		return r, start, status, err
	}
	unsure, err := storekit.Repeat(ctx, classify, send)
	a.unsure = a.unsure || unsure
	a.roundTrip = time.Since(start)
	return r, start, status, err
}

// wait is why there is no grant yet. A place that is new, though there was one, is at another
// replica, or that has been lost.
func (a *acquisition) wait(r acquireReply) *storekit.Refusal {
	no := new(storekit.Refusal)
	if r.New && a.inLine {
		a.unsure = true
		a.failed = a.placed
	}
	a.inLine, a.placed = true, r.New
	if r.Record != nil {
		no.Record = r.Record.record()
	}
	return no
}

// verify renews a grant that is short, or older than the request that brought it. If it is lost,
// the line goes on.
func (a *acquisition) verify(ctx context.Context, g lock.Grant) (lock.Grant, *storekit.Refusal, error) {
	g.TTL = a.req.TTL
	g, err := a.l.Renew(ctx, g)
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
