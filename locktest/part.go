package locktest

import (
	"fmt"
	"time"

	lock "github.com/seed-215fdefa/lock"
)

func partialLoss() group {
	const loss = "Partial loss is loss. Whatever part of what the store keeps of a key disappears (a row, an item or a node that an operator deletes), two grants that exclude each other must never both survive their next renewal."
	return group{"PartialLossIsLoss", []row{
		{"OfAHolder", loss, both, needs(canLosePart), func(e *env) { e.eachPart(e.alone) }},
		{"OfReaders", loss, shared, needs(canLosePart), func(e *env) { e.eachPart(e.readersOfKey) }},
		{"WithALine", loss, both, needs(canLosePart), func(e *env) { e.eachPart(e.withLine) }},
	}}
}

// canLosePart is the need of Harness.LosePart.
func canLosePart(e *env) string {
	if e.h.LosePart == nil {
		return "Harness has no LosePart"
	}
	return ""
}

// mostParts is where a case ends: no store is expected to keep more of a key.
const mostParts = 32

// party is who has, or wants, one key.
type party struct {
	key     string
	holders []held
	waiters []*waiter
}

func (e *env) alone(a, _ lock.Locker) party {
	key := e.key()
	return party{key, []held{e.hold(a, key)}, nil}
}

func (e *env) readersOfKey(a, b lock.Locker) party {
	key := e.key()
	return party{key, []held{e.hold(a, key), e.hold(b, key)}, nil}
}

func (e *env) withLine(a, b lock.Locker) party {
	key := e.key()
	h := e.hold(a, key)
	writer := e.rival(key)
	writer.TTL = e.ttl // so that it looks often
	p := party{key, []held{h}, []*waiter{e.wait(b, writer)}}
	if last := e.brief(key); !last.Shared || e.caps.FIFO { // else it passes the writer
		p.waiters = append(p.waiters, e.wait(a, last))
	}
	return p
}

// eachPart loses one part after the other, each of a new key, and lets others try their
// luck: before or after those who hold the key have renewed.
func (e *env) eachPart(setUp func(a, b lock.Locker) party) {
	e.Helper()
	a, b, c := e.open(), e.open(), e.open()
	for k := range mostParts {
		for _, renewFirst := range []bool{false, true} {
			p := setUp(a, b)
			lost := e.h.LosePart(e.tb, a, p.key, k)
			if !lost && k == 0 {
				e.skip("Harness.LosePart found nothing that the store keeps of a key that is held")
			}
			if lost {
				e.oneKindSurvives(c, p, k, renewFirst)
			}
			e.disperse(p)
			if !lost {
				return
			}
		}
	}
}

// oneKindSurvives checks what is left of p's grants, and of those that came later, when
// all have been renewed.
func (e *env) oneKindSurvives(l lock.Locker, p party, part int, renewFirst bool) {
	e.Helper()
	grants := p.holders
	if renewFirst {
		grants = e.survivors(grants)
	}
	reader := e.rival(p.key)
	reader.Shared = e.caps.Shared
	for _, req := range []lock.Request{e.rival(p.key), reader} {
		if h, err := e.settled(l, req); err == nil {
			grants = append(grants, h)
		}
	}
	time.Sleep(e.ttl / 2) // for those who wait, if they are let in
	for _, w := range p.waiters {
		if w.ended() && w.err == nil {
			grants = append(grants, w.h)
		}
	}
	left := e.survivors(grants)
	for i, h := range left {
		for _, o := range left[:i] {
			if !h.g.Shared || !o.g.Shared {
				e.report("of two grants that exclude each other one to be lost at its next renewal",
					"part %d was lost, the holders renewed before others tried: %t; live are token %d (shared %t) and token %d (shared %t)",
					part, renewFirst, o.g.Token, o.g.Shared, h.g.Token, h.g.Shared)
			}
		}
	}
	for _, h := range grants {
		_ = e.tryRelease(h.l, lock.Grant{Key: p.key, Owner: h.g.Owner})
	}
}

// survivors are those of hs that can be renewed.
func (e *env) survivors(hs []held) (left []held) {
	e.Helper()
	for _, h := range hs {
		if e.settledRenewal(h) == nil {
			left = append(left, h)
		}
	}
	return left
}

// disperse ends what p has.
func (e *env) disperse(p party) {
	e.Helper()
	for _, w := range p.waiters {
		w.abandon()
		_ = e.tryRelease(w.h.l, lock.Grant{Key: p.key, Owner: w.h.req.Owner})
	}
	for _, h := range p.holders {
		_ = e.tryRelease(h.l, lock.Grant{Key: p.key, Owner: h.g.Owner})
	}
}

func outlasting() []group {
	const (
		outlives = "Once in line, what may pass (a restart, an election, a refused connection, a full disk, a read-only or busy server, throttling, a timeout) must end the wait only after Patience without an answer; what cannot pass (a missing right, a wrong type, a missing table) must end it at once."
		first    = "The first request's failure must be returned at once; if it is not answered, within [Patience]."
		alive    = "A Locker must notice by itself that its wake-ups do not arrive, then recheck every tenth of the heartbeat, and find its way back."
	)
	return []group{
		{"AWaitOutlivesTheStoresTrouble", []row{
			{"Freeze", outlives, both, needs(can(Freeze)), waiterThrough(Freeze)},
			{"Restart", outlives, both, needs(can(Restart)), waiterThrough(Restart)},
			{"FreezeFromTheStart", first, plain, needs(can(Freeze)), firstRequestUnanswered(false)},
			{"FreezeBeforeTheWait", first, plain, needs(can(Freeze)), firstRequestUnanswered(true)},
		}},
		{"WakeupsAreHints", []row{
			{"LostForGood", alive, both, needs(declares("Push", hasPush), can(LoseWakeup)), wakeupsLostForGood},
		}},
	}
}

// waiterThrough has one wait through f, longer than its heartbeat, and shorter than
// Patience. It may lose its place, but neither the wait nor the grant that it comes to.
func waiterThrough(f Fault) func(*env) {
	return func(e *env) {
		a, b, key := e.open(), e.open(), e.key()
		h := e.mustAcquire(a, e.rival(key))
		w := e.wait(b, e.brief(key))
		e.trouble(f, b)
		if err := e.settledRenewal(h); err == nil && !w.ended() {
			time.Sleep(e.ttl)
			w.still()
		}
		e.settledUndo(a, key, h.g.Owner)
		next := w.grantedWithin(e.recovery())
		e.outlives(a, next)
	}
}

// firstRequestUnanswered asks for a free key, and waits for as long as the store does. If
// warm, its process has a connection. The undo may overtake the request.
func firstRequestUnanswered(warm bool) func(*env) {
	return func(e *env) {
		a, key := e.open(), e.key()
		if warm {
			e.mustRelease(e.mustAcquire(a, e.rival(key)))
		}
		heal := e.fault(Freeze, a)
		req := waiting(e.brief(key))
		w := e.ask(e.ctx, a, req)
		w.returned("the error of a first request that nobody answers", lock.Patience+e.patience())
		if w.err == nil {
			e.fail("an error, since the store is frozen", "grant %+v", w.h.g)
		}
		heal()
		e.settledUndo(a, key, req.Owner)
		e.eventually("the key to be free", e.recovery()+e.overdueIn(e.ttl), func() (bool, string) {
			_, err := e.settled(a, e.rival(key))
			return err == nil, fmt.Sprint(err)
		})
	}
}

// trouble lets f happen to l, and heals it. It skips the case if that takes too long to be outlived.
func (e *env) trouble(f Fault, l lock.Locker) {
	e.Helper()
	begun := time.Now()
	heal := e.fault(f, l)
	if f == Freeze {
		time.Sleep(2 * e.ttl)
	}
	heal()
	if took := time.Since(begun); took > lock.Patience/2 {
		e.skip(fmt.Sprintf("%v took %v, and the store's trouble is outlived for %v", f, took, lock.Patience))
	}
}

// wakeupsLostForGood releases just after the wait has begun, when the next look that
// nobody asked for is as far away as can be.
func wakeupsLostForGood(e *env) {
	a, b, key := e.open(), e.open(), e.key()
	round := func() time.Duration {
		blocker := e.lasting(a, e.rival(key))
		w := e.wait(b, e.request(key))
		released := time.Now()
		e.mustRelease(blocker)
		h := w.grantedWithin(5*time.Second + e.caps.ExpirySlack)
		e.mustRelease(h)
		return h.answered.Sub(released)
	}
	heal := e.fault(LoseWakeup, b)
	round()
	e.fastest("rechecks every tenth of the heartbeat, when wake-ups do not arrive", min(e.long(), 5*time.Second)/10+e.quick(), round)
	heal()
	e.fastest("prompt wake-ups again, when they arrive", e.quick(), round)
}
