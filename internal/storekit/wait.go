package storekit

import (
	"context"
	"errors"
	"time"

	"github.com/seed-215fdefa/lock"
)

// Refusal is why a claim was not granted: somebody is in the way.
type Refusal struct {
	Record  lock.Record   // what is known of holders and line, bounded
	Recheck time.Duration // when nothing known is in the way any more; 0: not known
}

// ErrQueued is the error of a request that was not sent, or not long, before its ctx ended, since
// others of this process were, and answered: it is no sign that the store is in trouble. Beside it is
// that of ctx.
var ErrQueued = errors.New("not sent yet: it waits behind other requests of this process")

// Queued is err, of a request that was sent, but not long before its ctx ended, as an [ErrQueued] that
// says nothing of it.
func Queued(err error) error { return queued{err} }

type queued struct{ error }

func (q queued) Unwrap() error { return q.error }

// Is implements errors.Is.
func (queued) Is(target error) bool { return target == ErrQueued }

// Wait is one acquisition that stands in line. All but Mailbox and Begun must be set.
type Wait struct {
	Request  lock.Request
	Mailbox  *Mailbox        // nil: nobody wakes it
	Closed   context.Context // ends with the Locker
	Classify func(error) Class

	// Begun is when the call began to ask the store: the first claim has what is left of its
	// [lock.Patience]. Zero: with Run.
	Begun time.Time

	// Claim asks for the lock: the first time it lines up, later it looks, which also is the
	// sign of life that keeps the place. woken says that a wake-up has come. Exactly one of its
	// results is set: a grant, whose Start was taken before the request was sent that proves
	// it; why there is none yet; or an error of the store. It returns soon after ctx ends.
	Claim func(ctx context.Context, woken bool) (lock.Grant, *Refusal, error)

	// Recheck is how long a waiter with that TTL goes without a look, unless the Refusal asks
	// for one sooner: that of a [Registry], or what a store that polls makes of it.
	Recheck func(ttl time.Duration) time.Duration

	seen lock.Record // who was in the way last; without a Key if it is not known
	told bool        // a first claim was refused: the wait has begun, also for a Run after this one
}

// waitPauses are those between the claims of a waiter whose store is in trouble.
var waitPauses = Backoff{Min: 10 * time.Millisecond, Max: 500 * time.Millisecond}

// lookGrace is how long a claim that is under way when a grant comes may go on, but no more than a tenth of
// the TTL. Most are answered by then, and to cut one off may cost a connection, as with pgx.
const lookGrace = 250 * time.Millisecond

// Run claims until it is granted, ctx ends or the Locker does: when a wake-up comes, when what
// is in the way ends by itself, and at each recheck. It calls Request.Waiting after the first
// refusal. A grant that is delivered ends the wait also if a claim is under way that gets no answer:
// its TTL runs.
//
// An error of the first claim is returned at once. After that, errors that may pass end the
// wait only when the store has not answered for [lock.Patience]: with lock.ErrUnavailable and
// the store's last error. So does a first claim without an answer. Time in a queue that moves,
// see ErrQueued, does not count.
//
// If ctx ends the error is ctx.Err(), the store's last error if it was in trouble, and
// lock.ErrHeld if the key was seen held. If the Locker does, it is lock.ErrClosed. The place in
// line is then the caller's to undo.
func (w *Wait) Run(ctx context.Context) (lock.Grant, error) {
	alive, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(w.Closed, cancel)()
	r := waiting{Wait: w, caller: ctx, alive: alive, box: w.Mailbox, asked: w.Begun, timer: time.NewTimer(time.Hour)}
	defer r.timer.Stop()
	if r.box == nil {
		r.box = NewMailbox()
	}
	for woken := false; ; {
		g, pause, err := r.look(woken)
		if err != nil || g.Token != 0 {
			return g, err
		}
		if g, woken, err = r.rest(pause); err != nil || g.Token != 0 {
			return g, err
		}
	}
}

// waiting is a Wait that is under way.
type waiting struct {
	*Wait
	caller context.Context
	alive  context.Context // ends with caller and with the Locker
	box    *Mailbox
	timer  *time.Timer // until the next look

	asked    time.Time // when the store was first asked in vain; zero if it has answered since
	trouble  error     // what it said last
	failures int       // in a row
}

// look claims once. Without a grant or an error it returns how long to rest.
func (w *waiting) look(woken bool) (g lock.Grant, pause time.Duration, err error) {
	if w.asked.IsZero() {
		w.asked = time.Now()
	}
	ctx, cancel := context.WithDeadline(w.alive, w.asked.Add(lock.Patience))
	defer cancel()
	w.box.onGrant(func() { time.AfterFunc(min(lookGrace, w.Request.TTL/10), cancel) })
	g, no, err := w.Claim(ctx, woken)
	w.box.onGrant(nil)
	pause = w.Recheck(w.Request.TTL)
	switch {
	case err != nil:
		if ctx.Err() != nil { // maybe since there is a grant
			if handed, ok := w.handed(); ok {
				return handed, 0, nil
			}
		}
		if err := w.endure(ctx, err); err != nil {
			return lock.Grant{}, 0, err
		}
		w.failures++
		return g, min(pause, waitPauses.Pause(w.failures-1)), nil
	case no == nil:
		return g, 0, nil
	}
	w.asked, w.trouble, w.failures = time.Time{}, nil, 0
	if no.Record.Key != "" {
		w.seen = no.Record
	}
	if !w.told && w.Request.Waiting != nil {
		w.Request.Waiting(no.Record)
	}
	w.told = true
	if no.Recheck > 0 {
		pause = min(pause, no.Recheck)
	}
	return g, pause, nil
}

// endure returns the error that the wait ends with after a claim that failed with err under
// ctx, nil if it goes on.
func (w *waiting) endure(ctx context.Context, err error) error {
	switch {
	case w.alive.Err() != nil:
		return w.ended(err)
	case ctx.Err() != nil && errors.Is(err, ErrQueued):
		w.asked = time.Time{}
		return nil
	case ctx.Err() != nil:
		return unanswered(latest(ctx.Err(), err, w.trouble))
	case !w.told || !w.Classify(err).Passing():
		return err
	}
	w.trouble = err
	return nil
}

// handed is the grant that was delivered, if there is one and the wait has not ended.
func (w *waiting) handed() (g lock.Grant, ok bool) {
	if w.alive.Err() != nil {
		return g, false
	}
	select {
	case h := <-w.box.grants:
		return w.grant(h), true
	default:
		return g, false
	}
}

func (w *waiting) grant(h Handover) lock.Grant {
	r := w.Request
	return lock.Grant{Key: r.Key, Owner: r.Owner, Token: h.Token, TTL: r.TTL, Start: h.Start, Shared: r.Shared}
}

// rest waits for the next look, or for the grant. One that is there needs no look.
func (w *waiting) rest(pause time.Duration) (g lock.Grant, woken bool, err error) {
	if g, ok := w.handed(); ok {
		return g, false, nil
	}
	w.timer.Reset(pause)
	select {
	case h := <-w.box.grants:
		return w.grant(h), false, nil
	case <-w.box.wakeups:
		return g, true, nil
	case <-w.timer.C:
		return g, false, nil
	case <-w.alive.Done():
		return g, false, w.ended(nil)
	}
}

// ended is the error of a wait that the caller's ctx has ended, or the Locker.
func (w *waiting) ended(err error) error {
	if w.caller.Err() == nil {
		return lock.ErrClosed
	}
	err = Ended(w.caller, err, w.trouble)
	if w.seen.Key == "" {
		return err
	}
	return &lock.HeldError{Record: w.seen, Err: err}
}
