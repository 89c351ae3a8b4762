package locktest

import (
	"context"
	"fmt"
	"time"

	lock "github.com/seed-215fdefa/lock"
)

func tokens() group {
	const (
		rise   = "Tokens rise. An exclusive grant's token must exceed every token granted for the key before it; a shared one must exceed every exclusive one before it. After release, expiry, a lost record, a restart, a failover: as far as Capabilities.TokenSurvives declares."
		minted = "It must be minted in the same atomic step as the grant, or as the place in line where line order is grant order, so that no pause between two client steps can reorder tokens."
	)
	afterRelease := tokensSurvive(lock.SurvivesRelease)
	return group{"TokensRise", []row{
		{"AfterRelease", rise, both, needs(afterRelease), tokenAfterRelease},
		{"AfterWait", rise, both, needs(afterRelease), tokenAfterWait},
		{"AfterExpiry", rise, both, needs(tokensSurvive(lock.SurvivesExpiry)), tokenAfterExpiry},
		{"AfterRecordLoss", rise, both, needs(can(LoseRecord), tokensSurvive(lock.SurvivesRecordLoss)), tokenAfter(LoseRecord)},
		{"AfterPartialLoss", rise, both, needs(canLosePart, tokensSurvive(lock.SurvivesRecordLoss)), tokenAfterPartialLoss},
		{"AfterRestart", rise, both, needs(can(Restart), tokensSurvive(lock.SurvivesRestart)), tokenAfter(Restart)},
		{"AfterFailover", rise, both, needs(can(Failover), tokensSurvive(lock.SurvivesFailover)), tokenAfter(Failover)},
		{"Crowd", minted, plain, needs(afterRelease), func(e *env) { e.compete(e.crowd, nobody).tokensRise() }},
		{"CrowdOfReadersAndWriters", minted, shared, needs(afterRelease), func(e *env) { e.compete(e.crowd, mostly).tokensRise() }},
		{"LateReply", minted, both, needs(canWithhold, tokensSurvive(lock.SurvivesExpiry)), tokenOfLateReply},
	}}
}

// higher checks that after has a token above those of all in before.
func (e *env) higher(after held, before ...held) {
	e.Helper()
	for _, b := range before {
		if after.g.Token <= b.g.Token {
			e.fail(fmt.Sprintf("a token above %d, that of an earlier grant (shared %t)", b.g.Token, b.g.Shared),
				"%d (shared %t)", after.g.Token, after.g.Shared)
		}
	}
}

// tokenAfterRelease takes turns between two processes. In shared mode each second turn
// is that of two readers, so that each kind follows the other.
func tokenAfterRelease(e *env) {
	a, b, key := e.open(), e.open(), e.key()
	last := e.mustAcquire(a, e.rival(key))
	e.mustRelease(last)
	for range 5 {
		one := e.mustAcquire(b, e.request(key))
		e.higher(one, last)
		before := []held{one}
		if e.shared {
			other := e.mustAcquire(a, e.request(key))
			e.higher(other, last)
			e.mustRelease(other)
			before = append(before, other)
		}
		e.mustRelease(one)
		last = e.mustAcquire(a, e.rival(key))
		e.higher(last, before...)
		e.mustRelease(last)
	}
}

// tokenAfterWait is tokenAfterRelease for a grant that was waited for.
func tokenAfterWait(e *env) {
	a, b, key := e.open(), e.open(), e.key()
	first := e.lasting(a, e.rival(key))
	w := e.wait(b, e.request(key))
	e.mustRelease(first)
	second := w.granted()
	e.higher(second, first)
	w = e.wait(a, e.rival(key))
	e.mustRelease(second)
	third := w.granted()
	e.higher(third, second)
	e.mustRelease(third)
}

func tokenAfterExpiry(e *env) {
	a, b, key := e.open(), e.open(), e.key()
	first := e.mustAcquire(a, e.brief(key))
	e.expired(b, first)
	second := e.mustAcquire(b, e.rival(key))
	e.higher(second, first)
	e.mustRelease(second)
}

// tokenAfter checks tokens across f: that of a key in use, and that of one which nobody
// holds. A store that loses an acknowledged release may keep the latter for its TTL.
func tokenAfter(f Fault) func(*env) {
	return func(e *env) {
		a, b, idle, used := e.open(), e.open(), e.key(), e.key()
		live := e.mustAcquire(a, e.request(used))
		before := e.mustAcquire(a, e.brief(idle))
		e.mustRelease(before)
		e.fault(f, a)()
		next, err := e.settled(b, e.rival(used))
		switch {
		case err == nil:
			e.higher(next, live)
		case f == LoseRecord && !e.caps.HoldSurvives.Has(lock.SurvivesRecordLoss):
			e.skip("the fault did not bite: the grant is still there")
		}
		e.eventually("a grant of the key that nobody holds", e.overdueIn(e.ttl), func() (bool, string) {
			after, err := e.settled(b, e.rival(idle))
			if err == nil {
				e.higher(after, before)
			}
			return err == nil, fmt.Sprint(err)
		})
	}
}

// tokenAfterPartialLoss loses one part after the other, each of a new key. The next grant comes at
// once, or when the holder has released what is left.
func tokenAfterPartialLoss(e *env) {
	a, b := e.open(), e.open()
	for k := range mostParts {
		before := e.mustAcquire(a, e.request(e.key()))
		if !e.h.LosePart(e.tb, a, before.g.Key, k) {
			e.mustRelease(before)
			if k == 0 {
				e.skip("Harness.LosePart found nothing that the store keeps of a key that is held")
			}
			return
		}
		after, err := e.settled(b, e.rival(before.g.Key))
		if err != nil {
			e.settledRelease(before)
			after, err = e.settled(b, e.rival(before.g.Key))
		}
		if err == nil {
			e.higher(after, before)
			e.settledRelease(after)
		}
	}
}

// tokenOfLateReply lets another have the key while one who asked for it first waits for a
// reply. If the first had his grant in the store, the other gets it when that has run out,
// keeps it, and must have the higher token. If he had not, the other gets it at once and
// releases it, and must have the lower one, whatever the first did before.
func tokenOfLateReply(e *env) {
	b := e.open()
	e.eachLateReply(func(a lock.Locker, t *trouble) bite {
		key := e.key()
		ctx, cancel := context.WithTimeout(e.ctx, e.overdueIn(e.ttl)+2*e.patience())
		defer cancel()
		t.begin()
		asked := time.Now() // or a little later
		late := e.ask(ctx, a, e.brief(key))
		bit := t.effect(late, b, e.ttl/2)
		if bit == missed {
			t.heal()
			e.settledUndo(a, key, late.granted().g.Owner) // it may be over
			return bit
		}
		next, err := e.tryAcquire(b, e.rival(key))
		between := err == nil && next.answered.Before(asked.Add(e.ttl)) // no grant can have run out
		switch {
		case between:
			e.mustRelease(next)
			bit = deep
		case err != nil:
			next = e.succeed(b, key, 2*e.overdueIn(e.ttl))
			bit = deep
		}
		t.heal()
		late.returned("Acquire to return", 2*e.overdueIn(e.ttl)+2*e.patience())
		if late.err != nil { // he was told no token
			e.settledUndo(a, key, late.h.req.Owner)
			return bit
		}
		if between {
			e.higher(late.h, next)
		} else {
			e.higher(next, late.h)
		}
		return bit
	})
}

// succeed takes key as soon as nobody holds it any more, and keeps it.
func (e *env) succeed(l lock.Locker, key string, limit time.Duration) held {
	e.Helper()
	var next held
	e.eventually("the key to be free when its holder's TTL is over", limit, func() (bool, string) {
		h, err := e.tryAcquire(l, e.rival(key))
		next = h
		return err == nil, fmt.Sprint(err)
	})
	e.outlast(next)
	return next
}

// overdueIn is how long a holder with this TTL that has just died may block, on the
// slowest machine.
func (e *env) overdueIn(ttl time.Duration) time.Duration {
	return ttl + e.caps.ExpirySlack + e.patience()
}
