package locktest

import (
	"errors"
	"fmt"
	"slices"
	"time"

	lock "github.com/seed-215fdefa/lock"
)

// The promises of a Client and a semaphore that Explore checks. Those of the locks that they are
// made of it checks as anybody's.
const (
	ofOutcome   = "DoAll returns what Do does: fn's error as it is, joined once with a loss. Calls of DoAll never deadlock with each other."
	ofAll       = "DoAll gets all keys or none. fn gets the leases in the order of keys."
	ofEnds      = "fn's ctx ends with ctx and with the lease that is lost, or released by fn, first."
	ofGivenBack = "DoAll releases all keys. If one cannot be had, the others are given back in the background. A semaphore undoes the waits that are not needed any more."
	ofPermits   = "Package semaphore lets at most n callers, in any number of processes, do a thing at once."
	ofTurns     = "Who waits for permits takes the line first. The callers of one Semaphore share a place in line, and are served in the order in which they came."
	ofHeavy     = "A heavy caller is not starved by light ones. Each permit expires alone, a TTL after its process has died."
	ofTryDo     = "TryDo returns ErrHeld if there are not weight permits free, or if callers of this Semaphore wait for permits."
)

// clients checks what callers of Clients were told.
func (m *model) clients() {
	for _, j := range m.jobs {
		m.outcome(j)
		m.equipped(j)
		m.stops(j)
		m.crowded(j)
		m.turns(j)
	}
	m.stalls()
	for _, t := range m.lives {
		m.dies(t)
		m.givenBack(t)
	}
}

// grace is how late a Client may be on a machine that is as busy as it may be.
func (m *model) grace() time.Duration {
	if m.fake {
		return 0
	}
	return m.patience()
}

// outcome checks that j's call fails only for a reason.
func (m *model) outcome(j *job) {
	c := j.call
	if !m.quiet(c.end) || j.w.crashed() {
		return
	}
	switch err := c.err; {
	case j.fn != nil && j.fruitful == (err == nil) && (err == nil || errors.Is(err, errWork)):
		return
	case j.fn == nil && m.canceled(c) && (!j.patient || !m.fake),
		j.fn == nil && (errors.Is(err, lock.ErrHeld) || errors.Is(err, lock.ErrUnavailable)) && j.bounded:
		return
	case j.fn == nil && errors.Is(err, lock.ErrHeld) && !j.wait:
		m.refusedPermits(j)
		return
	case !m.fake && (errors.Is(err, lock.ErrLost) || errors.Is(err, lock.ErrUnavailable)):
		return // a machine that is busy enough
	case errors.Is(err, lock.ErrLost) && (j.fn != nil || !j.wait) && slices.ContainsFunc(m.calls, func(f *call) bool {
		return f.op == "force" && f.begin <= c.end && f.end >= c.begin
	}):
		return
	}
	m.found(ofOutcome, "what the function returned, ErrHeld without a wait or after it, or the error of ctx", m.describe(c), c)
}

// refusedPermits checks that somebody had or wanted permits when j's try was refused.
func (m *model) refusedPermits(j *job) {
	if j.kind != limits {
		return // its locks are judged one by one
	}
	c := j.call
	busy := slices.ContainsFunc(m.jobs, func(k *job) bool {
		return k != j && k.kind == limits && k.call.begin <= c.end && k.call.end >= c.begin
	}) || slices.ContainsFunc(m.lives, func(t *tenure) bool {
		earlier := t.acquire.begin < c.begin // not for this very call
		return t.key >= slotKey && (earlier || t.worker != j.w) && t.acquire.begin <= c.end && m.gone(t) >= c.begin
	})
	if !busy {
		m.found(ofTryDo, "permits, since nobody else can have any", m.describe(c), c)
	}
}

// equipped checks that j's function had a lease for each key, or for each permit.
func (m *model) equipped(j *job) {
	if j.fn == nil {
		return
	}
	want := make([]string, 0, len(j.set))
	for _, key := range j.set {
		want = append(want, keyName(key))
	}
	ts := m.tenures(j)
	sound := j.kind == does && slices.Equal(j.names, want) ||
		j.kind == limits && len(j.names) == j.weight && len(slices.Compact(slices.Sorted(slices.Values(j.names)))) == j.weight
	for i, t := range ts {
		sound = sound && keyName(t.key) == j.names[i] && t.shared == j.shared && t.granted() && t.acquire.end <= j.fn.begin
	}
	if !sound || len(ts) != len(j.names) {
		m.found(ofAll, "a lease for each, granted before", fmt.Sprintf("leases of %v", j.names), j.call, j.fn)
	}
}

// stops checks that the ctx of j's function ended when a lease was lost: when its Client was
// told, or its time was over.
func (m *model) stops(j *job) {
	for _, t := range m.tenures(j) {
		due := time.Duration(0)
		for _, p := range t.proofs() {
			if p.end <= j.fn.end {
				due = max(due, p.start+p.grant.TTL)
			}
		}
		for _, c := range slices.Concat(t.losses, t.acts) {
			if c.op == "lost" || c.op == "renew" && c.lost() {
				due = min(due, c.end)
			}
		}
		if due = max(due, j.fn.begin) + m.grace(); due < j.fn.end && (j.stopped == 0 || j.stopped > due) {
			m.found(ofEnds, fmt.Sprintf("the function's ctx to end by %s, since %s is lost", ms(due), t.name), "it has not", t.acquire, j.fn)
		}
	}
}

// tenures are those of j's function.
func (m *model) tenures(j *job) (ts []*tenure) {
	for _, owner := range j.owners {
		if t := m.owners[owner]; t != nil {
			ts = append(ts, t)
		}
	}
	return ts
}

// crowded checks that no more than n permits were in use when j's function began: by what their
// leases say, of which each was live.
func (m *model) crowded(j *job) {
	if j.fn == nil || j.kind != limits {
		return
	}
	in := 0
	for _, k := range m.jobs {
		if k.fn == nil || k.kind != limits || k.fn.begin > j.fn.begin || k.fn.end <= j.fn.begin {
			continue
		}
		for _, t := range m.tenures(k) {
			if slices.ContainsFunc(m.must(t, nil), func(s span) bool { return s.from <= j.fn.begin && j.fn.begin < s.to }) {
				in++
			}
		}
	}
	if in > m.plan.permits {
		m.found(ofPermits, fmt.Sprintf("at most %d permits in use", m.plan.permits), fmt.Sprintf("%d at %s", in, ms(j.fn.begin)), j.fn)
	}
}

// turns checks that j was served while its process had the line, and not before a caller of its
// process who came earlier. On a real clock neither can be told from outside.
func (m *model) turns(j *job) {
	if j.kind != limits || j.fn == nil || !m.fake || !m.quiet(j.fn.begin) {
		return
	}
	served, came := j.fn.begin, j.call.begin
	if !j.wait {
		came -= m.ttl / 100 // a try may succeed until a waiter has seen that it has to wait
	}
	if j.wait && !slices.ContainsFunc(m.lives, func(t *tenure) bool {
		return t.key == lineKey && t.worker == j.w && t.granted() && t.acquire.end <= served && m.gone(t) >= served
	}) {
		m.found(ofTurns, "its process to have the line", "it was served at "+ms(served), j.call, j.fn)
	}
	for _, k := range m.jobs {
		if k.kind == limits && k.wait && k.w == j.w && k.call.begin < came && served < k.left() {
			m.found(ofTurns, fmt.Sprintf("%q, since %s, to be served first", k, ms(k.call.begin)), "another was, at "+ms(served), k.call, j.call)
		}
	}
}

// left is when j did not stand in line any more.
func (j *job) left() time.Duration {
	if j.fn != nil {
		return j.fn.begin
	}
	return j.call.end
}

// stalls checks that somebody is served when there is room for all who wait for permits.
func (m *model) stalls() {
	var times []time.Duration
	var stuck *call
	for _, j := range m.jobs {
		times = append(times, j.call.begin, j.left(), j.call.end)
	}
	for _, t := range m.lives {
		if t.key >= lineKey {
			times = append(times, m.gone(t))
		}
	}
	slices.Sort(times)
	from := time.Duration(-1) // since when there is
	for _, at := range slices.Compact(times) {
		waits, served := m.room(at)
		if from >= 0 && at-from > min(m.ttl, 5*time.Second)+m.slack(m.ttl) && m.quiet(at) {
			m.found(ofHeavy, fmt.Sprintf("permits, since there is room from %s on for each who waits", ms(from)), "nobody got any until "+ms(at), stuck)
			return
		}
		switch {
		case waits == nil:
			from = -1
		case from < 0 || served:
			from, stuck = at, waits
		}
	}
}

// room returns who waits for permits from at on, if there are enough for each who does, and
// whether anybody was served then. Those who died keep what they have for a TTL.
func (m *model) room(at time.Duration) (waits *call, served bool) {
	used, most := 0, 0
	for _, j := range m.jobs {
		switch {
		case j.kind != limits || j.w.crashed():
		case j.fn != nil && j.fn.begin <= at && at < j.call.end:
			served = served || j.fn.begin == at
			used += j.weight
		case j.wait && j.call.begin <= at && at < j.left():
			waits, most = j.call, max(most, j.weight)
		}
	}
	dead := func(t *tenure) bool {
		return t.key >= lineKey && (t.worker == nil || t.worker.crashed()) && t.acquire.begin <= at && at < m.gone(t)
	}
	if used+most > m.plan.permits || slices.ContainsFunc(m.lives, dead) {
		return nil, served
	}
	return waits, served
}

// dies checks that t, which is a Client's, would end in time if its process died.
func (m *model) dies(t *tenure) {
	ttl := m.ttl
	for _, j := range m.jobs {
		if j.id == t.job {
			ttl = j.ttl
		}
	}
	if t.worker != nil && t.ttl != ttl {
		m.found(ofHeavy, fmt.Sprintf("a TTL of %v", ttl), t.ttl.String(), t.acquire)
	}
}

// givenBack checks that t, which is a Client's, did not outlive the call for which it was.
func (m *model) givenBack(t *tenure) {
	if t.worker == nil || t.worker.crashed() || !m.quiet(m.now()) {
		return
	}
	gone, margin := m.gone(t), max(m.ttl/4, m.grace())
	if !m.fake { // a machine that is busy enough lets its TTL run out: what was done for it last counts
		gone = m.late(t.acquire)
		for _, c := range t.acts {
			gone = max(gone, m.late(c))
		}
	}
	for _, c := range slices.Concat(t.acts, t.losses) {
		if c.op == "lost" || c.lost() || c.op != "renew" && c.over && c.err == nil {
			gone = min(gone, c.end)
		}
	}
	if !slices.ContainsFunc(m.jobs, func(j *job) bool {
		return j.w == t.worker && (j.id == t.job || t.key >= lineKey && j.kind == limits) && j.call.begin <= gone && gone-margin <= j.call.end
	}) {
		m.found(ofGivenBack, "nothing to be left once the calls have returned", fmt.Sprintf("%s, until %s", t.name, ms(gone)), t.acquire)
	}
}
