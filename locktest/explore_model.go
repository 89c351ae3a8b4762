package locktest

import (
	"errors"
	"fmt"
	"slices"
	"time"

	lock "github.com/seed-215fdefa/lock"
)

// The promises that Explore checks, as lock.go has them.
const (
	ofExclusion = "Exclusion. By the store's own clock at most one exclusive grant of a key is live; shared grants live only beside shared grants."
	ofTokens    = "Tokens rise. An exclusive grant's token must exceed every token granted for the key before it; a shared one must exceed every exclusive one before it."
	ofOwners    = "One owner, one grant. Inside one Acquire a store may send its request again after an unknown outcome; it must end up with one grant and one token."
	ofRenewal   = "Renew never creates. Renew must restart the TTL of a live grant of that owner and token, changing only TTL and Start, or return ErrLost, with the reason where known."
	ofRelease   = "Release is yours alone. Release must end the grant of that owner and token only; a stale one must return ErrLost and change nothing."
	ofUndo      = "Without a token (Grant{Key, Owner}) it must undo an acquisition whose outcome is unknown, or a place in line, and return nil if there is nothing to undo."
	ofLeftovers = "Failure leaves nothing. Dead holders pass: a key whose holder died must be acquirable within TTL + Capabilities.ExpirySlack, by a first try without Wait too. Dead waiters are skipped."
	ofLine      = "FIFO: waiters are served in the order of arrival; Priority: in the order of arrival minus HeadStart."
	ofWakeups   = "Wake-ups are hints. A release must wake the next waiter promptly if Push is declared, and a lost wake-up must cost no more than a bounded recheck."
	ofCancel    = "Cancel is prompt. When ctx ends every method must return promptly with an error for which errors.Is(err, ctx.Err()) holds."
	ofReasons   = "A reason is a fact. ReasonExpired must be told only if the TTL can have run out; a grant that vanished before is ReasonForced, ReasonTaken or unknown (0)."
	ofLosses    = "Request.Lost: a store that declares EarlyLoss calls it at most once, under no mutex of its own, never for a loss that it learns of after the holder's own Release."
	ofGrants    = "A Grant is what was asked for. Its Start is no later than the store's own start of TTL: it was taken before the request was sent whose reply proved the grant."
	ofInspect   = "Inspect returns what the store knows of key at one moment."
	ofErrors    = "Acquire returns ErrHeld when the key is taken; with Wait it stands in line until ctx ends."
	ofForces    = "ForceRelease ends owner's grant of key, and no other. It returns ErrLost when owner does not hold key."
)

// violation is a promise that was not kept.
type violation struct {
	promise, wanted, seen string
	key                   int  // -1 if it is about all
	when                  span // of the calls that show it, and of the grants which they are about
}

// model says what the contract allows of a history. It does not search for an order of
// the calls that explains them, as a checker of linearizability does: leases end by
// themselves, at times that are known only from two sides, and what a failed call has
// left may take effect later. Instead it has two bounds of each grant's life, one for
// when it must be live and one for when it may be, and compares what the callers were told.
// That takes no search, says which two calls contradict each other, and knows of time,
// faults and forced releases.
type model struct {
	*history
}

// span is a time, from one moment until just before another.
type span struct{ from, to time.Duration }

func (s span) meets(o span) bool { return s.from < o.to && o.from < s.to }

// has reports whether c's time is within s: whatever c did it did then. In fake time much
// happens at one moment, in an order that cannot be told.
func (s span) has(c *call) bool { return s.from < c.begin && c.over && c.end < s.to }

// found notes that a promise was not kept, as by shows.
func (h *history) found(promise, wanted, seen string, by ...*call) {
	v := violation{promise, wanted, seen, by[0].key, span{by[0].begin, 0}}
	for _, c := range by {
		v.when.from, v.when.to = min(v.when.from, c.begin), max(v.when.to, c.end)
		if c.t != nil {
			v.when.from = min(v.when.from, c.t.acquire.begin)
		}
	}
	h.flaws = append(h.flaws, v)
}

// drift is by how much the store's clock may differ on how long d is: not at all in fake
// time.
func (m *model) drift(d time.Duration) time.Duration {
	if m.fake {
		return 0
	}
	return drift(d)
}

// slack is how much longer than its TTL a grant may be there, as far as can be told on a
// machine that is as busy as it may be.
func (m *model) slack(ttl time.Duration) time.Duration {
	s := m.caps.ExpirySlack + m.ttl/4
	if !m.fake {
		s += m.patience() + drift(ttl)
	}
	return s
}

// proofs are the calls that told t's owner that its grant was live.
func (t *tenure) proofs() []*call {
	if !t.granted() {
		return nil
	}
	ps := []*call{t.acquire}
	for _, c := range t.acts {
		if c.op == "renew" && c.over && c.err == nil {
			ps = append(ps, c)
		}
	}
	return ps
}

// until is when the TTL is over of which c told.
func (m *model) until(c *call) time.Duration {
	return c.start + c.grant.TTL - m.drift(c.grant.TTL)
}

// must is when t's grant must be live: from each proof until the TTL is over, the owner
// gives it up, or something ends it that may. Before is a call that does not count, nor
// what the owner did or learned later; it may be nil.
func (m *model) must(t *tenure, before *call) (spans []span) {
	for _, p := range t.proofs() {
		if before != nil && p.begin >= before.begin {
			break
		}
		s := span{p.end, m.until(p)}
		for _, c := range m.endings(t) {
			if before != nil && (c == before || c.t == t && c.op != "force" && c.begin >= before.begin) {
				continue
			}
			if ends := c.op != "force" && c.fault == 0; ends {
				s.to = min(s.to, c.begin)
			} else if !c.over || c.end > p.begin {
				s.to = min(s.to, c.begin)
			}
		}
		if s.from < s.to {
			spans = append(spans, s)
		}
	}
	return spans
}

// endings are what may end t's grant before its time, and what told its owner of that.
func (m *model) endings(t *tenure) (cs []*call) {
	for _, c := range t.acts {
		if c.op != "renew" || c.lost() {
			cs = append(cs, c)
		}
	}
	cs = append(cs, t.losses...)
	for _, c := range t.forces {
		if !c.lost() {
			cs = append(cs, c)
		}
	}
	for _, c := range m.faults() {
		if s := c.fault.breaks(); s != 0 && !m.caps.HoldSurvives.Has(s) {
			cs = append(cs, c)
		}
	}
	return cs
}

// late is when c takes effect at the latest: a fault may have held it up.
func (m *model) late(c *call) time.Duration {
	end := c.end
	if !c.over {
		end = m.now()
	}
	for _, f := range m.faults() {
		if f.begin <= end && f.end >= c.begin {
			end = max(end, f.end)
		}
	}
	return end
}

// ttlOf is the longest TTL that t's grant can have: as granted, or if that is not known
// as asked for, rounded up as others were.
func (m *model) ttlOf(t *tenure) time.Duration {
	if t.granted() {
		return t.acquire.grant.TTL
	}
	ttl := t.ttl
	for _, u := range m.lives {
		if u.granted() {
			ttl = max(ttl, t.ttl+u.acquire.grant.TTL-u.ttl)
		}
	}
	return ttl
}

// gone is when nothing can be left of t any more, neither a grant nor a place in line.
func (m *model) gone(t *tenure) time.Duration {
	a := t.acquire
	if !t.granted() && !a.unknown() {
		return a.end
	}
	ttl := m.ttlOf(t)
	until := m.late(a) + ttl + m.slack(ttl) // a dead waiter is gone before
	for _, c := range t.acts {
		switch {
		case c.op == "renew" && c.over && c.err == nil:
			until = max(until, c.end+c.grant.TTL+m.slack(ttl))
		case c.op == "renew" && c.unknown():
			until = max(until, m.late(c)+ttl+m.slack(ttl))
		}
	}
	if !t.granted() {
		return until // an undo may have been overtaken
	}
	for _, c := range slices.Concat(t.acts, t.forces) {
		if c.op == "force" && c.begin <= a.end { // it may have ended a grant before that one: see again
			continue
		}
		if c.ends() && (!c.lost() || !m.severed(t, c)) {
			until = min(until, c.end)
		}
	}
	return until
}

// ends reports whether nothing of a grant is left after c.
func (c *call) ends() bool {
	switch {
	case c.lost():
		return c.op != "force"
	case c.op == "force":
		return c.over && c.err == nil && c.begin >= c.t.acquire.end
	}
	return c.op != "renew" && c.over && c.err == nil
}

// severed reports whether t's process was cut off before c was over: it may believe
// anything then.
func (m *model) severed(t *tenure, c *call) bool {
	return slices.ContainsFunc(m.faults(), func(f *call) bool {
		return f.fault == Sever && f.proc == t.proc && f.begin >= t.acquire.begin && f.begin <= c.end
	})
}

func heartbeat(t *tenure) time.Duration { return min(t.ttl, 5*time.Second) }

// deserted is when nothing can be left of key. Clients may still release in the background.
func (m *model) deserted(key int) (at time.Duration) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, t := range m.lives {
		if t.key == key {
			at = max(at, m.gone(t))
		}
	}
	return at
}

// quiet reports whether there was no fault until at.
func (m *model) quiet(at time.Duration) bool {
	return !slices.ContainsFunc(m.faults(), func(f *call) bool { return f.begin <= at })
}

// check looks at the whole history.
func (m *model) check() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.returns()
	if len(m.flaws) > 0 && slices.ContainsFunc(m.calls, func(c *call) bool { return !c.over }) {
		return // what is still running cannot be looked at
	}
	for _, t := range m.lives {
		m.errors(t)
		m.answers(t)
		m.losing(t)
		m.waits(t)
		for _, u := range m.lives {
			m.excluded(t, u)
			m.tokens(t, u)
			m.line(t, u)
		}
	}
	for _, c := range m.calls {
		if c.op == "inspect" && c.err == nil {
			m.record(c)
		}
	}
	m.clients()
}

// returns checks that each call has returned, and not long after its ctx ended.
func (m *model) returns() {
	for _, c := range m.calls {
		switch late := c.limit + m.patience(); {
		case !c.over && c.limit > 0:
			m.found(ofCancel, "to return when ctx ends, at "+ms(c.limit), "it has not, at "+ms(m.now()), c)
		case c.limit > 0 && c.end > late:
			m.found(ofCancel, "to return when ctx ends, at "+ms(c.limit), "it did at "+ms(c.end), c)
		}
	}
}

// errors checks that t's calls fail only for a reason.
func (m *model) errors(t *tenure) {
	for _, c := range append([]*call{t.acquire}, t.acts...) {
		if c.err == nil || !m.quiet(c.end) {
			continue
		}
		canceled := m.canceled(c)
		switch {
		case c.op == "acquire" && canceled && m.sawHeld(t) && !errors.Is(c.err, lock.ErrHeld):
			m.found(ofCancel, "an error that is ErrHeld as well, since the key was seen held", m.describe(c), t.waiting, c)
		case c.op == "acquire" && t.wait && !canceled:
			m.found(ofErrors, "a grant, or the error of ctx when that has ended", m.describe(c), c)
		case c.op == "acquire" && !canceled && !errors.Is(c.err, lock.ErrHeld):
			m.found(ofErrors, "a grant, ErrHeld, or the error of ctx", m.describe(c), c)
		case c.op != "acquire" && !canceled && !c.lost():
			m.found(ofCancel, "nil, ErrLost, or the error of ctx", m.describe(c), c)
		}
	}
	m.refused(t)
}

// canceled reports whether c's error is that of its ctx. Of two ends at once on a real clock, either
// may be told.
func (m *model) canceled(c *call) bool {
	return c.ended != nil && (errors.Is(c.err, c.ended) || !m.fake && isContext(c.err))
}

// sawHeld reports whether t was told to stand in line, and the key was held all the time until then.
func (m *model) sawHeld(t *tenure) bool {
	return t.waiting != nil && slices.ContainsFunc(m.lives, func(u *tenure) bool {
		return u.excludes(t) && slices.ContainsFunc(m.must(u, nil), func(s span) bool {
			return s.from < t.acquire.begin && t.waiting.begin < s.to
		})
	})
}

// refused checks that somebody was there when t's try found the key held.
func (m *model) refused(t *tenure) {
	a := t.acquire
	if t.wait || !errors.Is(a.err, lock.ErrHeld) {
		return
	}
	for _, u := range m.lives {
		if u != t && u.key == t.key && (u.excludes(t) || u.wait) && u.acquire.begin <= a.end && m.gone(u) >= a.begin {
			return
		}
	}
	m.found(ofLeftovers, "a grant, since nobody can hold the key or wait for it",
		fmt.Sprintf("%s at %s", m.describe(a), ms(a.end)), a)
}
