//go:build linux

package chaos

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/seed-215fdefa/lock"
)

// history is what all processes saw, and what the store declares.
type history struct {
	events []event
	caps   lock.Capabilities
}

// hold is a lease, as its worker knew it.
type hold struct {
	event          // the Acquire that was granted
	got      int64 // the worker had it
	expiry   int64 // Start + TTL, of the last renewal that counted
	deadline int64 // expiry less the drift: the local deadline
	told     int64 // the worker knew that it is over, or it was killed
	ended    event // what told it: the end of its context, or its own release
	released event // the first Release
	doubtful int64 // the deadline before a renewal that was answered at the last moment, or 0
	forced   int64 // a ForceRelease was called that may have ended it, or 0
}

// String shows times in ms after the call.
func (h *hold) String() string {
	ms := func(t int64) float64 { return float64(t-h.At) / 1e6 }
	s := fmt.Sprintf("[process %d, owner %s, token %d, shared %v: asked at %d, granted +%.1f ms, deadline +%.1f, told +%.1f",
		h.Proc, h.Owner, h.Token, h.Shared, h.At, ms(h.End), ms(h.deadline), ms(h.told))
	if h.forced > 0 {
		s += fmt.Sprintf(", forced +%.1f", ms(h.forced))
	}
	return s + " " + h.ended.Err + "]"
}

// lease tells the leases of an op apart: the keys of a DoAll, and the terms of a Lead.
type lease struct {
	op    int64
	key   string
	token lock.Token
}

func (e event) lease() lease { return lease{e.Op, e.Key, e.Token} }

// checker is a history put in order, and the report about it.
type checker struct {
	history
	*report
	last   int64
	byKind map[kind][]event
	paused map[int][]event // by process: what kept it from running
	killed map[int]int64
	holds  []*hold
}

// check does all checks.
func (h history) check() *report {
	slices.SortStableFunc(h.events, func(a, b event) int { return int(a.At - b.At) })
	c := &checker{
		history: h, byKind: make(map[kind][]event), paused: make(map[int][]event), killed: make(map[int]int64),
		report: &report{counts: map[string]int{}, violations: map[string][]string{}, times: map[string][]int64{}},
	}
	for _, e := range h.events {
		c.last = max(c.last, e.At, e.End)
		c.byKind[e.Kind] = append(c.byKind[e.Kind], e)
		c.read(e)
	}
	c.collectHolds()
	c.checkFence()
	c.checkTokens()
	c.checkExclusion()
	c.checkPermits()
	c.checkLosses()
	c.checkReleased()
	c.checkOrder()
	c.checkTerms()
	return c.report
}

// read counts e, and checks what needs no other event.
func (c *checker) read(e event) {
	switch e.Kind {
	case kFault:
		c.counts["fault, "+e.Text]++
	case kForce:
		c.counts[strings.TrimRight("force release: "+e.Err, ": ")]++
	case kStop:
		c.paused[int(e.Value)] = append(c.paused[int(e.Value)], e)
	case kLate:
		c.paused[e.Proc] = append(c.paused[e.Proc], e)
	case kKill:
		c.killed[int(e.Value)] = e.At
	case kClosed:
		c.times["Close took"] = append(c.times["Close took"], e.End-e.At)
		if e.Value > 0 {
			c.bad("goroutines left", "", e.At, "process %d: %d\n%s", e.Proc, e.Value, e.Text)
		}
	case kAcquire, kRenew:
		if strings.HasPrefix(e.Text, "wrong grant") {
			c.bad("wrong grant", e.Key, e.End, "%s", e.Text)
		}
		if e.Err == "" && e.Start > e.End {
			c.bad("start after the answer", e.Key, e.End, "%s", e)
		}
	case kOp:
		c.checkPrompt(e)
	}
}

// patience is how late a call may return. It is for the machine, which is not what is tested.
const patience = 5 * time.Second

// checkPrompt is for calls that end without a lease.
func (c *checker) checkPrompt(e event) {
	c.counts["operations"]++
	if e.Value == 1 {
		c.counts["operations with a lease"]++
		return
	}
	c.counts["operations that ended: "+e.Err]++
	late := e.End - e.Bound
	if late <= 0 || !c.ran(e.Proc, e.Bound, e.End) {
		return
	}
	c.times["calls returned after their bound"] = append(c.times["calls returned after their bound"], late)
	if late > int64(patience) {
		c.bad("call late", e.Key, e.End, "%v: %s", time.Duration(late), e)
	}
}

func (c *checker) collectHolds() {
	granted := make(map[string]event) // by owner
	for _, e := range c.byKind[kAcquire] {
		if e.Err == "" {
			granted[e.Owner] = e
		}
	}
	byLease, byOwner := make(map[lease]*hold), make(map[string]*hold)
	for _, e := range c.byKind[kHold] {
		g := granted[e.Owner]
		if g.Key != e.Key || g.Token != e.Token || g.Op != e.Op && g.Op != 0 { // a semaphore's requests are of no op
			c.bad("lease without a grant", e.Key, e.At, "%s", e)
			continue
		}
		g.Op = e.Op
		h := &hold{event: g, got: e.At, told: c.last}
		h.extend(h.event)
		if t := c.killed[h.Proc]; t > 0 {
			h.told = t
		}
		c.holds = append(c.holds, h)
		byLease[h.lease()], byOwner[h.Owner] = h, h
	}
	for _, e := range c.byKind[kRenew] {
		// One that was answered at the last moment may have counted, or not.
		if h := byOwner[e.Owner]; h != nil && e.Err == "" && e.End <= h.deadline+int64(5*time.Millisecond) {
			if e.End > h.deadline-int64(5*time.Millisecond) {
				h.doubtful = h.deadline
			}
			h.extend(e)
		}
	}
	for _, e := range c.byKind[kForce] {
		ended := !strings.HasPrefix(e.Err, "lost") // or may have
		if h := byOwner[e.Owner]; h != nil && h.forced == 0 && ended {
			h.forced = e.At
		}
	}
	for _, e := range c.byKind[kRelease] {
		if h := byOwner[e.Owner]; h != nil && h.released.At == 0 {
			h.released = e
		}
	}
	for _, e := range append(c.byKind[kEnded], c.byKind[kDone]...) {
		if h := byLease[e.lease()]; h != nil && e.At < h.told {
			h.told, h.ended = e.At, e
		}
	}
}

// extend takes TTL and Start of a grant, with the default drift of a Client.
func (h *hold) extend(e event) {
	h.expiry = max(h.expiry, e.Start+e.TTL)
	h.deadline = h.expiry - e.TTL/100 - int64(2*time.Millisecond)
}

// ran reports whether a process was neither stopped nor starved near a time. Its threads
// starve one by one, so the watch may have been late a little before or after.
func (c *checker) ran(proc int, from, to int64) bool {
	const margin = int64(100 * time.Millisecond)
	return !slices.ContainsFunc(c.paused[proc], func(p event) bool { return p.meets(from-margin, to+margin) })
}

// excuse names the fault between from and to that a grant need not outlive, or that may take
// what is asked for.
func (c *checker) excuse(from, to int64, takes string) string {
	for _, f := range c.byKind[kFault] {
		// What replication was behind counts as part of the fault.
		may := !c.caps.HoldSurvives.Has(f.Survives) || f.Takes != "" && f.Takes == takes
		if may && f.meets(from-int64(time.Second), to) {
			return f.Text
		}
	}
	return ""
}

// shown is how many violations of a check are told in full.
const shown = 3

// report is what the checks say.
type report struct {
	counts     map[string]int
	times      map[string][]int64  // distributions
	violations map[string][]string // by check
}

// bad adds a violation, with the events around it: the nearest of its key, and the faults.
func (c *checker) bad(check, key string, at int64, format string, args ...any) {
	s := fmt.Sprintf(format, args...)
	if len(c.violations[check]) < shown {
		s += c.around(key, at)
	}
	c.violations[check] = append(c.violations[check], s)
}

// around lists the events of key, and the faults, that were under way near a time.
func (c *checker) around(key string, at int64) string {
	const before, after = int64(time.Second), int64(100 * time.Millisecond)
	near := func(e event) bool {
		ours := key != "" && e.Key == key || e.Kind == kFault || e.Kind == kKill
		return ours && max(e.At, e.End) > at-before && e.At < at+after
	}
	var lines []string
	earlier := 0
	for _, e := range c.events {
		if near(e) {
			if e.At <= at {
				earlier++
			}
			began := e.At - at
			if e.End > 0 {
				e.End -= e.At
			}
			e.At, e.Key = 0, ""
			lines = append(lines, fmt.Sprintf("\n      %+8.1f ms %s", float64(began)/1e6, e))
		}
	}
	return strings.Join(lines[max(0, earlier-30):min(len(lines), earlier+10)], "")
}

// idle says why the checks are worth nothing, or "": a campaign in which nothing happened passes them
// all.
func (rep *report) idle() string {
	faults := 0
	for what, n := range rep.counts {
		if name, ok := strings.CutPrefix(what, "fault, "); ok && name != "force release" {
			faults += n
		}
	}
	switch {
	case rep.counts["operations with a lease"] == 0:
		return "nobody had a lease"
	case faults == 0:
		return "nothing was broken"
	}
	return ""
}

// String lists counts, distributions, and the first violations of each check.
func (rep *report) String() string {
	var b strings.Builder
	for _, k := range slices.Sorted(maps.Keys(rep.counts)) {
		fmt.Fprintf(&b, "\n  %7d  %s", rep.counts[k], k)
	}
	for _, k := range slices.Sorted(maps.Keys(rep.times)) {
		ns := slices.Sorted(slices.Values(rep.times[k]))
		fmt.Fprintf(&b, "\n  %s: %d", k, len(ns))
		for _, p := range []float64{0, .5, .9, .99, 1} {
			fmt.Fprintf(&b, ", p%v %v", p*100, time.Duration(ns[int(p*float64(len(ns)-1))]).Round(10*time.Microsecond))
		}
	}
	for _, k := range slices.Sorted(maps.Keys(rep.violations)) {
		fmt.Fprintf(&b, "\n  VIOLATION, %s: %d", k, len(rep.violations[k]))
		for _, s := range rep.violations[k][:min(shown, len(rep.violations[k]))] {
			fmt.Fprintf(&b, "\n    %s", s)
		}
	}
	return b.String()
}
