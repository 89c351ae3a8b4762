package locktest

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	lock "github.com/seed-215fdefa/lock"
)

func isContext(err error) bool {
	return errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded)
}

// excluded checks that t's grant and u's were not live at one time: by what their owners
// were told, and by what a renewal or a release that succeeded says of the time before it.
func (m *model) excluded(t, u *tenure) {
	if !t.excludes(u) || !t.granted() || !u.granted() {
		return
	}
	for _, s := range m.must(t, nil) {
		for _, o := range m.must(u, nil) {
			if t.acquire.end <= u.acquire.end && s.meets(o) {
				m.found(ofExclusion, fmt.Sprintf("no grant to %s while %s has one, from %s to %s", u.name, t.name, ms(s.from), ms(s.to)),
					fmt.Sprintf("%s has one from %s to %s", u.name, ms(o.from), ms(o.to)), t.acquire, u.acquire)
				return
			}
		}
		if s.has(u.acquire) {
			m.found(ofExclusion, fmt.Sprintf("no grant to %s while %s has one, from %s to %s", u.name, t.name, ms(s.from), ms(s.to)),
				"one at "+ms(u.acquire.end), t.acquire, u.acquire)
			return
		}
	}
	for _, c := range t.acts {
		alive := span{t.acquire.end, c.begin}
		if c.op == "undo" || !c.over || c.err != nil {
			continue
		}
		for _, o := range m.must(u, nil) {
			if alive.meets(o) {
				promise := ofRenewal
				if c.op == "release" {
					promise = ofRelease
				}
				m.found(promise, fmt.Sprintf("ErrLost, since %s had the key from %s to %s", u.name, ms(o.from), ms(o.to)),
					m.describe(c), u.acquire, c)
				return
			}
		}
	}
}

// tokens checks u's token against that of t, if t was granted first.
func (m *model) tokens(t, u *tenure) {
	if t == u || t.key != u.key || !t.granted() || !u.granted() || t.shared && u.shared || !m.first(t, u) {
		return
	}
	if both := lock.SurvivesRelease | lock.SurvivesExpiry; !m.caps.TokenSurvives.Has(both) {
		return
	}
	for _, f := range m.faults() {
		if s := f.fault.breaks(); s != 0 && !m.caps.TokenSurvives.Has(s) && f.end >= t.acquire.begin && f.begin <= u.acquire.end {
			return
		}
	}
	if u.acquire.grant.Token <= t.acquire.grant.Token {
		m.found(ofTokens, fmt.Sprintf("a token of %s above the %d of %s, which was granted before it", u.name, t.acquire.grant.Token, t.name),
			fmt.Sprint(u.acquire.grant.Token), t.acquire, u.acquire)
	}
}

// first reports whether t was certainly granted before u: t's grant was returned before
// u's was asked for, or before u's was returned, which cannot have been over by then.
func (m *model) first(t, u *tenure) bool {
	if t.acquire.end < u.acquire.begin {
		return true
	}
	return t.excludes(u) && t.acquire.end < u.acquire.end && m.until(u.acquire) > t.acquire.end &&
		!slices.ContainsFunc(m.endings(u), func(c *call) bool { return c.begin <= t.acquire.end })
}

// answers checks what t's owner was told, one call after the other.
func (m *model) answers(t *tenure) {
	var over *call // after which the grant is no more
	for _, c := range t.acts {
		switch {
		case c.op == "undo" && c.lost():
			m.found(ofUndo, "nil or an error that is not ErrLost", m.describe(c), c)
		case c.op != "undo" && over != nil && c.err == nil:
			m.found(ofRelease, "ErrLost, after this: "+m.describe(over), m.describe(c), over, c)
		}
		if c.op == "renew" && c.err == nil && c.grant.Token != t.acquire.grant.Token {
			m.found(ofOwners, fmt.Sprintf("the token to stay %d", t.acquire.grant.Token), m.describe(c), t.acquire, c)
		}
		if over == nil && c.lost() {
			m.caused(t, c)
		}
		var lost *lock.LostError
		if errors.As(c.err, &lost) {
			m.reason(t, c, lost.Reason)
		}
		if c.ends() && !m.severed(t, c) {
			over = cmp.Or(over, c)
		}
	}
}

// caused checks that t's grant could be lost when c said so.
func (m *model) caused(t *tenure, c *call) {
	for _, s := range m.must(t, c) {
		if c.end < s.to && s.from <= c.begin && !m.severed(t, c) {
			m.found(ofExclusion, "the grant to live until "+ms(s.to), m.describe(c)+" at "+ms(c.end), c)
			return
		}
	}
}

// reason checks why t's grant is said to be lost.
func (m *model) reason(t *tenure, c *call, reason lock.LostReason) {
	begun := func(x *call) bool { return x.begin <= c.end }
	// A store cannot tell an operator's ForceRelease from his deleting what it keeps.
	forgot := slices.ContainsFunc(m.faults(), func(f *call) bool { return f.fault.breaks() != 0 && begun(f) })
	switch reason {
	case lock.ReasonExpired:
		for _, p := range t.proofs() {
			if p.begin < c.begin && c.end < m.until(p) {
				m.found(ofReasons, "no ReasonExpired before the TTL is over, at "+ms(m.until(p)), m.describe(c)+" at "+ms(c.end), c)
				return
			}
		}
	case lock.ReasonForced:
		if !forgot && !slices.ContainsFunc(t.forces, begun) {
			m.found(ofReasons, "no ReasonForced, since nobody forced it", m.describe(c), c)
		}
	case lock.ReasonTaken:
		if !forgot && !slices.ContainsFunc(m.lives, func(u *tenure) bool { return u != t && u.key == t.key && begun(u.acquire) }) {
			m.found(ofReasons, "no ReasonTaken, since nobody else came", m.describe(c), c)
		}
	}
}

// losing checks what t's owner was told by Request.Lost, and by what others did to it.
func (m *model) losing(t *tenure) {
	if len(t.losses) > 1 {
		m.found(ofLosses, "one call at most", fmt.Sprint(len(t.losses)), t.losses...)
	}
	for _, c := range t.losses {
		m.reason(t, c, c.reason)
		m.caused(t, c)
		for _, a := range t.acts {
			if a.over && a.err == nil && a.op == "release" && c.begin > a.end {
				m.found(ofLosses, "no call after the owner's own Release", m.describe(c), a, c)
			}
			// What was lost before Acquire returned may have been asked for again.
			if a.over && a.err == nil && a.op != "undo" && t.acquire.end <= c.begin && c.begin < a.begin {
				m.found(ofRenewal, "ErrLost, after Request.Lost was called", m.describe(a), a, c)
			}
		}
	}
	for _, f := range t.forces {
		m.forced(t, f)
	}
}

// forced checks that a grant that must have been there could be forced, and that its
// owner was told before it asked, where that is declared.
func (m *model) forced(t *tenure, f *call) {
	for _, s := range m.must(t, nil) {
		if f.lost() && s.has(f) {
			m.found(ofForces, "nil, since "+t.name+" holds the key until "+ms(s.to), m.describe(f), f)
			return
		}
	}
	for _, c := range t.acts {
		if c.op == "renew" && c.over && c.err == nil && f.ends() && c.begin > f.end && m.quiet(c.end) {
			m.found(ofForces, "ErrLost, since it was forced: "+m.describe(f), m.describe(c), f, c)
			return
		}
	}
	if !m.caps.EarlyLoss || !t.granted() || f.err != nil || f.begin < t.acquire.end || len(t.losses) > 0 || !m.quiet(m.now()) {
		return
	}
	proofs := t.proofs()
	end := m.until(proofs[len(proofs)-1])
	idle := !slices.ContainsFunc(t.acts, func(c *call) bool { return c.begin <= end && c.end >= f.begin })
	if idle && f.end < end && (m.fake || end+m.patience() < m.now()) {
		m.found(ofLosses, "Request.Lost to be called after ForceRelease, as EarlyLoss declares", "it was not until "+ms(end), f)
	}
}

// line checks that u was not served before t, which stood in line and was in front of it.
func (m *model) line(t, u *tenure) {
	if !m.caps.FIFO || t.waiting == nil || t == u || t.key != u.key || t.shared && u.shared || !u.granted() || !m.orderly(t) {
		return
	}
	stood, came, served := t.waiting.begin, u.acquire.begin, u.acquire.end
	overtook := stood-t.head < came-u.head && (stood < came || m.barred(u, stood)) && m.quiet(served)
	if t.granted() {
		overtook = overtook && m.first(u, t)
	} else {
		overtook = overtook && served < min(t.acquire.limit, t.acquire.end)
	}
	if overtook {
		m.found(ofLine, fmt.Sprintf("%s, in line since %s, to be served before %s, which came at %s", t.name, ms(stood), u.name, ms(came)),
			u.name+" was served at "+ms(served), t.waiting, u.acquire)
	}
}

// barred reports whether u was certainly granted after at: another's grant, which it cannot be
// beside, was live then, and its own was not over.
func (m *model) barred(u *tenure, at time.Duration) bool {
	return u.acquire.end > at && m.until(u.acquire) > at && slices.ContainsFunc(m.lives, func(v *tenure) bool {
		return v.excludes(u) && slices.ContainsFunc(m.must(v, nil), func(s span) bool { return s.from < at && at < s.to })
	})
}

// orderly reports whether t kept its place, as far as can be told: it was not forced, and
// a machine that is short of time cannot have missed its heartbeat.
func (m *model) orderly(t *tenure) bool {
	return len(t.forces) == 0 && (m.fake || heartbeat(t) >= 4*time.Second)
}

// waits checks that t did not wait for longer than a recheck may take while nobody stood
// in its way.
func (m *model) waits(t *tenure) {
	a := t.acquire
	if !t.wait || !m.quiet(a.end) {
		return
	}
	var busy []span
	for _, u := range m.lives {
		if u == t || u.key != t.key || u.acquire.begin > a.end {
			continue
		}
		s := span{u.acquire.begin, m.gone(u)}
		if u.wait { // who is alive in line stands in nobody's way for longer than the key is held
			s.from = u.acquire.end
		}
		busy = append(busy, s)
	}
	slices.SortFunc(busy, func(a, b span) int { return cmp.Compare(a.from, b.from) })
	free := a.begin
	limit := heartbeat(t) + m.slack(t.ttl)
	for _, s := range append(busy, span{from: a.end}) {
		if idle := min(s.from, a.end) - free; idle > limit {
			m.found(ofWakeups, fmt.Sprintf("%s to be served within %v of when the key was free", t.name, limit),
				fmt.Sprintf("it waited on, from %s to %s", ms(free), ms(min(s.from, a.end))), a)
			return
		}
		free = max(free, s.to)
	}
}

// record checks what Inspect showed: all who must hold the key, and nobody who cannot.
func (m *model) record(c *call) {
	rec, seen := c.recs[0], map[string]bool{}
	for _, x := range rec.Holders {
		t := m.owners[x.Owner]
		wrong := t == nil || t.key != c.key || seen[x.Owner] || x.Shared != t.shared ||
			t.acquire.begin > c.end || m.gone(t) < c.begin ||
			t.granted() && x.Token != t.acquire.grant.Token && !m.again(t, c)
		if wrong {
			m.found(ofInspect, "no such holder: "+m.name(x.Owner), m.describe(c), c)
			return
		}
		seen[x.Owner] = true
	}
	for _, x := range rec.Waiters {
		if t := m.owners[x.Owner]; t == nil || t.key != c.key || !t.wait || t.acquire.begin > c.end || m.gone(t) < c.begin {
			m.found(ofInspect, "no such waiter: "+m.name(x.Owner), m.describe(c), c)
			return
		}
	}
	hidden := 0 // of a crowd
	if len(rec.Holders) == lock.MaxRecord {
		hidden = rec.HolderCount - lock.MaxRecord
	}
	for _, t := range m.lives {
		if t.key != c.key || seen[t.owner] {
			continue
		}
		spans := m.must(t, nil)
		i := slices.IndexFunc(spans, func(s span) bool { return s.has(c) })
		if i < 0 {
			continue
		}
		if hidden--; hidden < 0 {
			m.found(ofInspect, fmt.Sprintf("%s among the holders, as from %s to %s", t.name, ms(spans[i].from), ms(spans[i].to)), m.describe(c), t.acquire, c)
			return
		}
	}
}

// again reports whether c may have shown an earlier grant of t than the one that its Acquire
// returned: it ended before its reply came, and the request was sent again. An owner is spent by
// its Release or an error, and by nothing that others do.
func (m *model) again(t *tenure, c *call) bool {
	a := t.acquire
	switch {
	case c.begin > a.end:
		return false
	case a.end-a.begin > a.grant.TTL-m.drift(a.grant.TTL): // it may have expired
		return true
	}
	return slices.ContainsFunc(m.endings(t), func(e *call) bool {
		return e.begin <= a.end && (!e.over || e.end >= c.begin)
	})
}
