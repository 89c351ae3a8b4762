package locktest

import (
	"cmp"
	"math/rand/v2"
	"slices"
	"time"

	lock "github.com/seed-215fdefa/lock"
)

// plan is what a round of Explore does: everything that is random in it. It comes from
// its seed and the Harness.TTL alone. Steps may be taken out without changing the rest.
type plan struct {
	seed    uint64
	procs   int
	keys    int
	permits int // of the semaphore; 0: there is none
	steps   []step
}

// stepKind says what a step does.
type stepKind uint8

const (
	acquires stepKind = iota // an Acquire, and what its owner does after it
	inspects                 // an Inspect
	forces                   // a ForceRelease of the owner of step target
	befalls                  // a fault
	does                     // a Do, TryDo or DoAll of the process's Client
	limits                   // a Do or TryDo of its semaphore
	crashes                  // the Client and all that it does is no more
)

// step is one thing that begins at a time of its own. Those of an owner follow one
// another; everything else goes on side by side.
type step struct {
	id        int
	kind      stepKind
	at        time.Duration // since the round began
	proc, key int

	ttl, limit         time.Duration // limit is when Acquire's ctx ends
	head               time.Duration // start, of those who wait where Priority is declared
	shared, wait, undo bool
	cancel             bool // the ctx ends by a cancel, not by a deadline
	acts               []act

	target int // 0: whoever has the key

	fault Fault
	lasts time.Duration // until it heals, or the function returns

	set      []int // keys of a Client's call, in the order in which they are given
	weight   int   // permits
	bounded  bool  // limit is a WithWait
	patient  bool  // there is no limit
	fruitful bool  // the function returns nil
}

// actKind is what the owner of a grant does.
type actKind uint8

const (
	renews actKind = iota
	releases
	undoes
)

func (k actKind) String() string { return [...]string{"renew", "release", "undo"}[k] }

// act is done after the one before it has returned, and a pause.
type act struct {
	kind  actKind
	pause time.Duration
	limit time.Duration // of its ctx
}

// planner draws a plan. What it weighs is drawn first, so that rounds differ in kind.
type planner struct {
	*rand.Rand
	ttl      time.Duration
	span     time.Duration   // in which steps begin
	readers  float64         // share of shared grants
	waiters  float64         // share of those who wait
	heads    float64         // share of those who have a head start
	untidy   float64         // share of grants that nobody ends
	lateness float64         // share of renewals that come after the TTL
	last     time.Duration   // when the latest step begins
	ends     []time.Duration // when a TTL may be over
}

func newPlan(seed uint64, ttl time.Duration) plan {
	p := planner{Rand: rand.New(rand.NewPCG(seed, 0x6c6f636b)), ttl: ttl}
	p.readers = oneOf(&p, 0, 0.3, 0.6, 0.9)
	p.waiters = oneOf(&p, 0.2, 0.5, 0.8)
	p.heads = oneOf(&p, 0, 0.3, 0.7)
	p.untidy = oneOf(&p, 0, 0.2, 0.5)
	p.lateness = oneOf(&p, 0, 0.1, 0.4)
	p.span = time.Duration(4+p.IntN(5)) * ttl
	pl := plan{seed: seed, procs: 2 + p.IntN(3), keys: 1 + p.IntN(2)}
	for range 6 + p.IntN(15) {
		pl.add(&p, p.acquisition())
	}
	for range p.IntN(5) {
		pl.add(&p, step{kind: inspects})
	}
	if p.chance(0.3) {
		for range 1 + p.IntN(3) {
			pl.add(&p, p.force(pl.steps))
		}
	}
	if p.chance(0.5) {
		pl.addFaults(&p)
	}
	if p.chance(0.4) { // drawn last
		pl.addJobs(&p)
	}
	slices.SortStableFunc(pl.steps, func(a, b step) int { return cmp.Compare(a.at, b.at) })
	return pl
}

// addJobs adds calls of Clients, and what befalls them. Owners without a Client are among them
// or not.
func (pl *plan) addJobs(p *planner) {
	pl.keys, pl.permits = 2+p.IntN(2), 2+p.IntN(2)
	if p.chance(0.6) {
		*pl = pl.without(func(s step) bool { return s.kind == acquires || s.kind == forces })
	}
	locks, ttl := oneOf(p, 0, 0.5, 0.5, 1), p.ttl*oneOf[time.Duration](p, 2, 2, 3)/2
	for range 4 + p.IntN(9) {
		pl.add(p, p.job(pl, locks, ttl))
	}
	if p.chance(0.3) {
		for range 1 + p.IntN(2) {
			pl.add(p, step{kind: crashes})
		}
	}
	if p.chance(0.3) {
		for range 1 + p.IntN(3) {
			pl.add(p, step{kind: forces})
			if s := &pl.steps[len(pl.steps)-1]; p.chance(1 - locks) {
				s.key = lineKey + p.IntN(pl.permits+1)
			}
		}
	}
}

// job draws a call of a Client.
func (p *planner) job(pl *plan, locks float64, ttl time.Duration) step {
	s := step{
		kind: limits, ttl: ttl, wait: p.chance(0.8), limit: p.part(ttl, 0.05, 6), lasts: p.part(ttl, 0, 1.5),
		weight: 1 + p.IntN(pl.permits), fruitful: p.chance(0.8),
	}
	if p.chance(locks) {
		s.kind, s.ttl = does, ttl*oneOf[time.Duration](p, 2, 3, 4)/2
		s.set = p.Perm(pl.keys)[:1+p.IntN(pl.keys)]
		s.shared = p.chance(p.readers)
	}
	if p.chance(0.1) {
		s.limit = p.part(ttl, 0, 0.01)
	}
	switch {
	case s.wait && p.chance(0.5):
		s.patient = true
	case s.wait && s.kind == does && p.chance(0.3):
		s.bounded = true
	default:
		s.cancel = p.chance(0.5)
	}
	if s.wait && s.kind == does && p.chance(p.heads) {
		s.head = p.part(ttl, 0.01, 4)
	}
	return s
}

// add gives s what all steps have.
func (pl *plan) add(p *planner, s step) {
	s.id = len(pl.steps) + 1
	s.proc, s.key = p.IntN(pl.procs), p.IntN(pl.keys)
	if s.at == 0 {
		s.at = p.time()
	}
	if s.kind == acquires {
		p.ends = append(p.ends, s.at+s.ttl)
	}
	pl.steps = append(pl.steps, s)
}

// addFaults adds faults, each once for a process, one after the other: no two are in force
// at the same time, since few harnesses could do that.
func (pl *plan) addFaults(p *planner) {
	type pair struct {
		Fault
		proc int
	}
	seen := map[pair]bool{}
	at := p.part(p.span, 0, 0.3)
	for range 1 + p.IntN(3) {
		s := step{
			id: len(pl.steps) + 1, kind: befalls, at: at, proc: p.IntN(pl.procs),
			fault: Sever + Fault(p.IntN(int(Failover))), lasts: p.part(p.ttl, 0.05, 1.5),
		}
		if at > p.span || seen[pair{s.fault, s.proc}] {
			return
		}
		seen[pair{s.fault, s.proc}] = true
		pl.steps = append(pl.steps, s)
		at += s.lasts + p.part(p.span, 0.01, 0.4)
	}
}

// acquisition draws an owner's life.
func (p *planner) acquisition() step {
	s := step{
		kind: acquires, ttl: p.ttl * oneOf[time.Duration](p, 2, 2, 3, 4, 8) / 2,
		shared: p.chance(p.readers), wait: p.chance(p.waiters), undo: p.chance(0.85),
		cancel: p.chance(0.5), limit: 2 * p.ttl,
	}
	if p.chance(p.heads) && s.wait {
		s.head = p.part(p.ttl, 0.01, 4)
	}
	switch {
	case p.chance(0.1):
		s.limit = p.part(p.ttl, 0, 0.01) // ends in the midst of a request
	case s.wait:
		s.limit = p.part(p.ttl, 0.05, 6)
	}
	for range p.IntN(4) {
		a := act{kind: renews, pause: p.part(s.ttl, 0.05, 0.9), limit: p.limit()}
		if p.chance(p.lateness) {
			a.pause = p.part(s.ttl, 0.9, 2.5)
		}
		s.acts = append(s.acts, a)
	}
	if !p.chance(p.untidy) {
		end := act{kind: releases, pause: p.part(s.ttl, 0, 1.05), limit: p.limit()}
		if p.chance(0.15) {
			end.kind = undoes
		}
		s.acts = append(s.acts, end)
	}
	if p.chance(0.15) { // too late, or again
		s.acts = append(s.acts, act{kind: oneOf(p, renews, releases, undoes), pause: p.part(s.ttl, 0, 1.5), limit: p.limit()})
	}
	return s
}

// force is of a grant that is probably there.
func (p *planner) force(steps []step) step {
	target := steps[p.IntN(len(steps))]
	return step{kind: forces, target: target.id, at: target.at + p.part(p.ttl, 0, 1.5)}
}

// limit is of a call whose ctx ends in the midst of it, or hardly ever.
func (p *planner) limit() time.Duration {
	if p.chance(0.1) {
		return p.part(p.ttl, 0, 0.01)
	}
	return 2 * p.ttl
}

// time is when a step begins: often just after another, or about when a TTL is over, where
// races are.
func (p *planner) time() time.Duration {
	switch near := p.part(p.ttl, 0, 0.001); {
	case p.last == 0 || p.chance(0.5):
		p.last = p.part(p.span, 0, 1)
	case p.chance(0.5):
		p.last += near
	default:
		p.last = oneOf(p, p.ends...) + near - p.ttl/2000
	}
	return p.last
}

// part is between from and to times d, and no round number: no two are alike.
func (p *planner) part(d time.Duration, from, to float64) time.Duration {
	return time.Duration((from+(to-from)*p.Float64())*float64(d)) + 1
}

func (p *planner) chance(of float64) bool { return p.Float64() < of }

func oneOf[T any](p *planner, of ...T) T { return of[p.IntN(len(of))] }

// without is pl without the steps that drop chooses.
func (pl plan) without(drop func(step) bool) plan {
	pl.steps = slices.DeleteFunc(slices.Clone(pl.steps), drop)
	return pl
}

// breaks is the promise that f may break, which is the store's to declare; 0 is none.
func (f Fault) breaks() lock.Survival {
	switch f {
	case LoseRecord:
		return lock.SurvivesRecordLoss
	case Restart:
		return lock.SurvivesRestart
	case Failover:
		return lock.SurvivesFailover
	}
	return 0
}
