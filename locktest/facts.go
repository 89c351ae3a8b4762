package locktest

import (
	"context"
	"errors"
	"fmt"
	"math"
	"time"

	lock "github.com/seed-215fdefa/lock"
)

func waitingWriter() group {
	const passes = "Nobody passes a waiting writer. Where FIFO is declared, a shared try must be refused while an exclusive waiter is in line, and an exclusive one while anybody is."
	fifo := declares("FIFO", hasFIFO)
	return group{"NobodyPassesAWaitingWriter", []row{
		{"Tries", passes, shared, needs(fifo), unlessLate(triesBehindWriter)},
		{"DuringAHandOver", passes, shared, needs(fifo), unlessLate(func(e *env) { e.noneOvertakes(e.request(e.key()), e.rival, e.request) })},
		{"OnlyALivingOne", passes, shared, needs(fifo, can(Sever)), triesBehindDeadWriter},
	}}
}

// triesBehindWriter tries from the process of the reader who holds the key, of the writer
// who waits for it, and of neither.
func triesBehindWriter(e *env) {
	a, b, c, key := e.open(), e.open(), e.open(), e.key()
	first := e.hold(a, key)
	e.mustRelease(e.mustAcquire(c, e.request(key)))
	writer := e.wait(b, e.rival(key))
	for _, l := range []lock.Locker{a, b, c} {
		e.mustBeHeld(l, e.request(key))
	}
	writer.still()
	writer.withdraw()
	e.undone(b, a, key, writer.h.req.Owner)
	e.mustRelease(e.mustAcquire(c, e.request(key)))
	e.only(b, first)
}

func triesBehindDeadWriter(e *env) {
	const want = "a shared try to get the key, past a dead writer"
	e.soon(want, e.heartbeat(e.ttl), func() time.Duration {
		a, b, dying, key := e.open(), e.open(), e.open(), e.key()
		first := e.hold(a, key)
		writer := e.rival(key)
		writer.TTL = e.ttl
		e.wait(dying, writer)
		e.fault(Sever, dying)
		died := time.Now()
		e.eventually(want, e.heartbeat(e.ttl)+e.patience(), func() (bool, string) {
			h, err := e.tryAcquire(b, e.request(key))
			if err == nil {
				e.mustRelease(h)
			}
			return err == nil, fmt.Sprint(err)
		})
		took := time.Since(died)
		e.only(b, first)
		return took
	})
}

func durations() group {
	const exact = "Durations are bounded. A TTL above [MaxTTL] must be ErrInvalid before any I/O; MaxTTL itself must be granted and released exactly."
	return group{"DurationsAreBounded", []row{
		{"Above", exact, both, nil, ttlAboveMax},
		{"Longest", exact, both, nil, longestTTL},
		{"LongestAfterAWait", exact, both, nil, longestTTLAfterWait},
	}}
}

func ttlAboveMax(e *env) {
	a, key := e.open(), e.key()
	for _, ttl := range []time.Duration{lock.MaxTTL + 1, 2 * lock.MaxTTL, math.MaxInt64 - 1, math.MaxInt64} {
		req := e.request(key)
		req.TTL = ttl
		e.invalid(a, req, ttl.String())
	}
	e.vacant(a, key)
}

func longestTTL(e *env) {
	a, b, key := e.open(), e.open(), e.key()
	req := e.request(key)
	req.TTL = lock.MaxTTL
	e.lastsAndEnds(b, e.lasting(a, req))
}

func longestTTLAfterWait(e *env) {
	a, b, key := e.open(), e.open(), e.key()
	for _, l := range []lock.Locker{a, b} {
		blocker := e.lasting(a, e.rival(key))
		req := e.request(key)
		req.TTL = lock.MaxTTL
		w := e.wait(l, req)
		e.mustRelease(blocker)
		e.lastsAndEnds(b, w.granted())
	}
}

// lastsAndEnds checks that h is there for as long as it says, as far as can be known
// now, and is not when it has been released.
func (e *env) lastsAndEnds(l lock.Locker, h held) {
	e.Helper()
	for range 2 {
		if got := holder(e.mustInspect(l, h.g.Key), h.g.Owner); got == nil {
			e.fail(fmt.Sprintf("a grant with a TTL of %v to be there", h.g.TTL), "nobody")
		} else if least := h.g.TTL - h.g.TTL/50 - time.Since(h.g.Start) - e.ttl; got.ExpiresIn >= 0 && got.ExpiresIn < least {
			e.fail(fmt.Sprintf("ExpiresIn of %v at least", least), "%v", got.ExpiresIn)
		}
		e.mustBeHeld(l, e.rival(h.g.Key))
		h = e.mustRenew(h)
	}
	e.mustRelease(h)
	e.vacant(l, h.g.Key)
	_, err := e.tryRenew(h)
	e.mustBeLost("Renew", err)
}

func reasons() group {
	const fact = "A reason is a fact. ReasonExpired must be told only if the TTL can have run out; a grant that vanished before is ReasonForced, ReasonTaken or unknown (0)."
	return group{"AReasonIsAFact", []row{
		{"AfterForceRelease", fact, both, needs(isAdmin), reasonAfterForce},
		{"AfterRecordLoss", fact, both, needs(can(LoseRecord)), reasonAfterRecordLoss},
		{"AfterRelease", fact, both, nil, reasonAfterRelease},
	}}
}

// notExpired asks after a grant that ended before its TTL was over, first while nobody
// holds the key and then while somebody does.
func (e *env) notExpired(b lock.Locker, h held, told *losses) {
	e.Helper()
	for _, taken := range []bool{false, true} {
		if taken {
			if _, err := e.settled(b, e.rival(h.g.Key)); err != nil {
				e.fail(fmt.Sprintf("a grant of %q, which is free", h.g.Key), "%v", err)
			}
		}
		err := e.settledRenewal(h)
		e.mustBeLost("Renew", err)
		e.early(h, err)
		err = e.call("Release", func(ctx context.Context) error { return h.l.Release(ctx, h.g) })
		e.mustBeLost("Release", err)
		e.early(h, err)
	}
	for _, r := range told.seen() {
		if r == lock.ReasonExpired && live(h) {
			e.fail("Request.Lost not to be told of an expiry before the TTL was over", "%v", r)
		}
	}
}

// early checks that err, which has just come, does not say that h had expired.
func (e *env) early(h held, err error) {
	e.Helper()
	if !live(h) {
		e.skip(fmt.Sprintf("the machine took longer than a TTL of %v", h.g.TTL))
	}
	var lost *lock.LostError
	if errors.As(err, &lost) && lost.Reason == lock.ReasonExpired {
		e.fail("no word of an expiry before the TTL was over", "%v, %v after a grant with a TTL of %v", err, time.Since(h.answered), h.g.TTL)
	}
}

func reasonAfterForce(e *env) {
	a, b, key := e.open(), e.open(), e.key()
	req, told := notified(e.request(key))
	h := e.mustAcquire(a, req)
	e.force(b, h)
	e.notExpired(b, h, told)
}

func reasonAfterRecordLoss(e *env) {
	a, b, key := e.open(), e.open(), e.key()
	if e.caps.HoldSurvives.Has(lock.SurvivesRecordLoss) {
		e.skip("the store declares that grants survive it")
	}
	req, told := notified(e.request(key))
	h := e.mustAcquire(a, req)
	e.fault(LoseRecord, a)()
	e.notExpired(b, h, told)
}

func reasonAfterRelease(e *env) {
	a, b, key := e.open(), e.open(), e.key()
	req, told := notified(e.request(key))
	h := e.mustAcquire(a, req)
	e.mustRelease(h)
	e.notExpired(b, h, told)
}

// steps are about requests of which one may come long after the other.
func steps() []group {
	const (
		minted  = "It must be minted in the same atomic step as the grant, or as the place in line where line order is grant order, so that no pause between two client steps can reorder tokens."
		nothing = "Failure leaves nothing. An Acquire that returned an error must leave no grant and no place in line once the undo, a Release without a token, has arrived. If the undo can overtake its own late request, the grant must at worst end a TTL after it took effect."
	)
	return []group{
		{"TokensRise", []row{
			{"BetweenSteps", minted, both, needs(can(LoseReply), tokensSurvive(lock.SurvivesRelease)), tokenBetweenSteps},
		}},
		{"FailureLeavesNothing", []row{
			{"FreezeThroughTheUndo", nothing, both, needs(can(Freeze)), undoneWhileFrozen},
			{"FreezeOfAWaiter", nothing, both, needs(can(Freeze)), frozenWaiter},
		}},
	}
}

// tokenBetweenSteps holds up a client that needs several round trips after its first one.
// Who has the key meanwhile has the lower token.
func tokenBetweenSteps(e *env) {
	a, b, key := e.open(), e.open(), e.key()
	e.mustRelease(e.mustAcquire(a, e.rival(e.key()))) // connections are for other cases
	ctx, cancel := context.WithTimeout(e.ctx, 2*e.patience())
	defer cancel()
	heal := e.fault(LoseReply, a)
	late := e.ask(ctx, a, e.request(key))
	time.Sleep(e.ttl / 2)
	between, err := e.tryAcquire(b, e.rival(key))
	if err == nil {
		e.mustRelease(between)
	}
	if late.ended() && late.err == nil {
		e.skip("the fault did not bite: Acquire was answered")
	}
	heal()
	late.returned("Acquire to return", 4*e.patience())
	if late.err != nil {
		e.undone(a, b, key, late.h.req.Owner)
		return
	}
	if err == nil { // else one step was enough
		e.higher(late.h, between)
	}
	e.mustRelease(late.h)
}

// undoneWhileFrozen sends the undo before the server has seen the request, and nobody
// knows which of them it will see first.
func undoneWhileFrozen(e *env) {
	a, b, key := e.open(), e.open(), e.key()
	e.warm(a)
	ctx, cancel := context.WithTimeout(e.ctx, e.ttl/4)
	defer cancel()
	heal := e.fault(Freeze, a)
	late := e.ask(ctx, a, e.brief(key))
	late.returned("Acquire to return when its ctx ends", e.ttl/4+e.patience())
	if late.err == nil {
		e.skip("the fault did not bite: Acquire was answered")
	}
	undo, stop := context.WithTimeout(e.ctx, e.patience())
	defer stop()
	e.start(func() { _ = a.Release(undo, lock.Grant{Key: key, Owner: late.h.req.Owner}) })
	time.Sleep(e.ttl / 4)
	heal()
	e.settledUndo(a, key, late.h.req.Owner)
	e.freeInTheEnd(b, key)
}

// frozenWaiter: the undo may overtake the request for a place in line. Such a place ends
// by its heartbeat, and nobody is served in it.
func frozenWaiter(e *env) {
	e.needsInspect()
	a, b, key := e.open(), e.open(), e.key()
	e.warm(a)
	blocker := e.lasting(b, e.rival(key))
	ctx, cancel := context.WithTimeout(e.ctx, e.ttl/4)
	defer cancel()
	heal := e.fault(Freeze, a)
	late := e.ask(ctx, a, waiting(e.brief(key)))
	late.returned("Acquire to return when its ctx ends", e.ttl/4+e.patience())
	if late.calls.Load() > 0 {
		e.skip("the fault did not bite: Acquire was answered")
	}
	heal()
	e.settledUndo(a, key, late.h.req.Owner)
	time.Sleep(e.ttl / 2) // for a request that comes later still
	e.eventually("no place in line that nobody stands at", e.heartbeat(e.ttl)+e.patience(), func() (bool, string) {
		var rec lock.Record
		err := e.call("Inspect", func(ctx context.Context) (err error) {
			rec, err = b.Inspect(ctx, key)
			return err
		})
		return err == nil && !inLine(rec, late.h.req.Owner), fmt.Sprintf("%+v, error %v", rec.Waiters, err)
	})
	if err := e.settledRenewal(blocker); err != nil {
		e.skip("the holder did not live through the fault: " + err.Error())
	}
	e.mustRelease(blocker)
	e.vacant(b, key)
}
