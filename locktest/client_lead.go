package locktest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	lock "github.com/seed-215fdefa/lock"
)

func leading() group {
	const (
		stands   = "It stands in line for key, runs fn as the leader while it holds key, and stands in line again after a loss, until fn resigns or ctx ends."
		waits    = "After a loss Lead waits for fn to return, and only then stands in line again: fn never runs twice at once."
		keeps    = "Leadership is never given up while fn runs, even when ctx has ended: Lead releases key once fn has returned."
		resigns  = "fn resigns by returning while it is in office: Lead releases key and returns fn's error as it is."
		outlives = "A candidacy does not begin while the store is in trouble, but it outlives it."
		ends     = "ErrInvalid, ErrUnsupported, ErrDeadlock, ErrClosed and the end of ctx end it at once; the error wraps them."
		observed = "An [Observer] sees every term, and every failure between them."
	)
	return group{"Lead", []row{
		{"StandsInLine", stands, plain, nil, leadWaits},
		{"Resigns", resigns, plain, nil, leadResigns},
		{"AgainAfterALoss", waits, plain, needs(isAdmin), leadsAgain},
		{"KeepsOffice", keeps, plain, nil, leadKeeps},
		{"NotInTrouble", outlives, plain, nil, leadDoesNotBegin},
		{"AgainAfterAFreeze", outlives, plain, needs(can(Freeze)), leadsAfterFreeze},
		{"EndOfContext", ends, plain, nil, leadIsCanceled},
		{"Close", ends, plain, nil, leadIsClosed},
		{"Invalid", ends, plain, nil, leadIsInvalid},
		{"Deadlock", ends, plain, nil, leadIsDeadlock},
		{"Observed", observed, plain, needs(isAdmin), leadIsObserved},
	}}
}

// candidacy is a Lead that goes on beside the case.
type candidacy struct {
	e     *env
	terms chan *term // each is sent when its function runs
	err   error      // Lead's; set when done is closed
	done  chan struct{}
}

// term is one run of a candidacy's function, which stays until leave is called.
type term struct {
	ctx   context.Context
	lease lease
	out   chan error
}

// leads begins a Lead.
func (e *env) leads(ctx context.Context, c client, key string, opts []lock.Option) *candidacy {
	const many = 100
	y := &candidacy{e: e, terms: make(chan *term, many), done: make(chan struct{})}
	e.start(func() {
		defer close(y.done)
		y.err = c.Lead(ctx, key, y.run, opts...)
	})
	return y
}

func (y *candidacy) run(ctx context.Context, l lease) error {
	t := &term{ctx, l, make(chan error, 1)}
	y.terms <- t
	select {
	case err := <-t.out:
		return err
	case <-y.e.ctx.Done():
		return y.e.ctx.Err()
	}
}

func (t *term) leave(err error) { t.out <- err }

// next waits for the next term.
func (y *candidacy) next() *term {
	y.e.Helper()
	limit := y.e.patience() + y.e.caps.ExpirySlack
	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case t := <-y.terms:
		return t
	case <-y.done:
		y.e.fail("Lead to run its function", "it has returned %v", y.err)
	case <-timer.C:
		y.e.fail("Lead to run its function", "it has not, in %v", limit)
	}
	return nil
}

// stays checks that Lead has not returned, and runs no function beside those that next has told.
func (y *candidacy) stays() {
	y.e.Helper()
	select {
	case <-y.done:
		y.e.fail("Lead to go on", "it has returned %v", y.err)
	case t := <-y.terms:
		y.e.fail("no function to run now", "one does, with token %d", t.lease.Token())
	default:
	}
}

// end waits until Lead has returned.
func (y *candidacy) end() error {
	y.e.Helper()
	y.e.await(y.done, "Lead to return")
	return y.err
}

func leadWaits(e *env) {
	a, b, key := e.actor(), e.open(), e.key()
	h := e.lasting(b, e.request(key))
	y := e.leads(e.ctx, a, key, e.with(e.long()))
	e.contended(a, key)
	y.stays()
	e.mustRelease(h)
	t := y.next()
	if t.lease.Token() <= h.g.Token {
		e.fail(fmt.Sprintf("a term's token above %d", h.g.Token), "%d", t.lease.Token())
	}
	e.mustBeHeld(b, e.request(key))
	t.leave(nil)
	if err := y.end(); err != nil {
		e.fail("nil, as the function returned", "%v", err)
	}
}

func leadResigns(e *env) {
	a, b, key := e.actor(), e.open(), e.key()
	for _, want := range []error{nil, errWork} {
		y := e.leads(e.ctx, a, key, e.with(e.long()))
		t := y.next()
		e.mustBeHeld(b, e.request(key))
		t.leave(want)
		if err := y.end(); !same(err, want) {
			e.fail(fmt.Sprintf("what the function returned, unwrapped: %v", want), "%v", err)
		}
		e.freed(b, key)
	}
}

// leadsAgain has another take the key between two terms: while the work of the first goes on,
// the candidate must not be in its way.
func leadsAgain(e *env) {
	a, b, key := e.actor(), e.open(), e.key()
	y := e.leads(e.ctx, a, key, e.with(e.long()))
	first := y.next()
	e.evict(b, key)
	e.learns(first.lease)
	_ = e.lostBy(first.ctx)
	other := e.lasting(b, e.request(key))
	time.Sleep(e.ttl / 2)
	y.stays()
	if n := a.seen.count(key, lock.EventContended); n > 0 {
		e.fail("Lead not to stand in line while its function runs", "it does")
	}
	first.leave(errWork)
	e.contended(a, key)
	e.mustRelease(other)
	second := y.next()
	if second.lease.Token() <= other.g.Token {
		e.fail(fmt.Sprintf("a second term's token above %d", other.g.Token), "%d", second.lease.Token())
	}
	second.leave(nil)
	if err := y.end(); err != nil {
		e.fail("nil, as the function of the second term returned", "%v", err)
	}
}

// leadKeeps ends ctx while the function runs: whoever releases then lets another lead beside
// the work.
func leadKeeps(e *env) {
	a, b, key := e.actor(), e.open(), e.key()
	ctx, cancel := context.WithCancel(e.ctx)
	y := e.leads(ctx, a, key, e.with(e.long()))
	t := y.next()
	cancel()
	e.await(t.ctx.Done(), "the function's ctx to end with Lead's")
	time.Sleep(e.ttl / 2)
	y.stays()
	e.mustBeHeld(b, e.request(key))
	t.leave(errWork)
	if err := y.end(); !same(err, errWork) {
		e.fail("what the function returned, unwrapped", "%v", err)
	}
	e.freed(b, key)
}

func leadDoesNotBegin(e *env) {
	a := e.actorOn(&ailing{Locker: e.open(), acquire: func() error { return errTrouble }})
	y := e.leads(e.ctx, a, e.key(), e.with(e.long()))
	if err := y.end(); !errors.Is(err, lock.ErrUnavailable) || !errors.Is(err, errTrouble) {
		e.fail("ErrUnavailable from a Lead whose store has never answered, and the store's error", "%v", err)
	}
}

// leadsAfterFreeze: a leader that the store does not answer leads no more when its time is
// over, and leads again when the store is back.
func leadsAfterFreeze(e *env) {
	a, key := e.actor(), e.key()
	y := e.leads(e.ctx, a, key, e.with(2*e.ttl))
	first := y.next()
	heal := e.fault(Freeze, a.l)
	_ = e.lostBy(first.ctx)
	first.leave(context.Cause(first.ctx))
	time.Sleep(e.ttl / 2)
	y.stays()
	heal()
	y.next().leave(nil)
	if err := y.end(); err != nil {
		e.fail("nil, as the function of the second term returned", "%v", err)
	}
}

func leadIsCanceled(e *env) {
	a, b, key := e.actor(), e.open(), e.key()
	e.lasting(b, e.request(key))
	ctx, cancel := context.WithCancel(e.ctx)
	y := e.leads(ctx, a, key, e.with(e.long()))
	e.contended(a, key)
	cancel()
	if err := y.end(); !errors.Is(err, context.Canceled) || !errors.Is(err, lock.ErrHeld) {
		e.fail("an error that is both context.Canceled and ErrHeld", "%v", err)
	}
}

func leadIsClosed(e *env) {
	a, b, key := e.actor(), e.open(), e.key()
	e.lasting(b, e.request(key))
	y := e.leads(e.ctx, a, key, e.with(e.long()))
	e.contended(a, key)
	if err := e.call("Close", a.Close); err != nil {
		e.fail("a nil error from Close", "%v", err)
	}
	if err := y.end(); !errors.Is(err, lock.ErrClosed) {
		e.fail("ErrClosed from a Lead whose Client is closed", "%v", err)
	}
}

func leadIsInvalid(e *env) {
	a, key := e.actor(), e.key()
	for what, o := range map[string]lock.Option{"WithWait": lock.WithWait(e.ttl), "WithShared": lock.WithShared()} {
		y := e.leads(e.ctx, a, key, e.with(e.long(), o))
		err := y.end()
		if invalid := errors.Is(err, lock.ErrInvalid) || !e.caps.Shared && errors.Is(err, lock.ErrUnsupported); !invalid {
			e.fail("ErrInvalid from Lead with "+what, "%v", err)
		}
	}
}

func leadIsDeadlock(e *env) {
	a, key := e.actor(), e.key()
	w := e.do(e.ctx, a, key, e.with(e.long()))
	y := e.leads(w.ctx, a, key, e.with(e.long()))
	if err := y.end(); !errors.Is(err, lock.ErrDeadlock) {
		e.fail("ErrDeadlock from a Lead for a key that ctx holds", "%v", err)
	}
	if err := w.leave(nil); err != nil {
		e.fail("nil, as the function returned", "%v", err)
	}
}

func leadIsObserved(e *env) {
	a, b, key := e.actor(), e.open(), e.key()
	y := e.leads(e.ctx, a, key, e.with(e.long()))
	first := y.next()
	e.evict(b, key)
	e.learns(first.lease)
	_ = e.lostBy(first.ctx)
	first.leave(nil)
	y.next().leave(nil)
	if err := y.end(); err != nil {
		e.fail("nil, as the function of the second term returned", "%v", err)
	}
	want := []lock.EventKind{lock.EventGranted, lock.EventLost, lock.EventGranted, lock.EventReleased}
	e.eventually(fmt.Sprintf("the events %v", want), e.patience(), func() (bool, string) {
		seen := slices.DeleteFunc(kindsOf(a.seen.of(key)), func(k lock.EventKind) bool {
			return k == lock.EventContended // a store may need a moment to forget the first term
		})
		return slices.Equal(seen, want), fmt.Sprintf("%v", seen)
	})
}
