//go:build linux

package chaos

import (
	"slices"
	"strings"
	"time"

	"github.com/seed-215fdefa/lock"
)

// checkFence is for the store's own fence: nothing is accepted after something newer was,
// and the writes that were acknowledged are one chain, each upon the one before.
func (c *checker) checkFence() {
	accepted := make(map[string][]event)
	for _, e := range append(c.byKind[kFenceRead], c.byKind[kFenceWrite]...) {
		c.counts[strings.TrimRight(string(e.Kind)+": "+e.Err, ": ")]++
		if e.Err == "" {
			accepted[e.Key] = append(accepted[e.Key], e)
		}
	}
	sent := make(map[string]map[int64]event) // a write may have taken effect that was not acknowledged
	for _, e := range c.byKind[kFenceSend] {
		if sent[e.Key] == nil {
			sent[e.Key] = make(map[int64]event)
		}
		sent[e.Key][e.Value] = e
	}
	for key, all := range accepted {
		inOrder(all, all, func(newest lock.Token, e event) {
			if e.Token < newest {
				c.bad("fence: stale token accepted", key, e.At, "%s after %d", e, newest)
			}
		})
		c.checkChain(key, all, sent[key])
	}
	c.countLost()
}

// checkChain walks from the newest write that was acknowledged to the first.
func (c *checker) checkChain(key string, accepted []event, sent map[int64]event) {
	var top event
	for _, e := range accepted {
		if e.Kind == kFenceWrite && (e.Token > top.Token || e.Token == top.Token && e.At > top.At) {
			top = e
		}
	}
	met := make(map[int64]bool)
	for e := top; e.Value != 0 && !met[e.Value]; e = sent[e.Prev] {
		met[e.Value] = true
		if e.Token < sent[e.Prev].Token {
			c.bad("fence: older write over a newer", key, e.At, "%s over %s", e, sent[e.Prev])
		}
	}
	for _, e := range accepted {
		if e.Kind == kFenceWrite && !met[e.Value] {
			c.bad("fence: lost update", key, e.At, "%s is not below %s", e, top)
		}
	}
}

// countLost counts the writes that replaced what their worker had not read. Where nothing
// is fenced that is no violation: it shows what fences are for.
func (c *checker) countLost() {
	value := make(map[string]int64)
	for _, e := range c.byKind[kBareWrite] {
		c.counts["bare register: writes"]++
		if e.Prev != value[e.Key] {
			c.counts["bare register: lost updates"]++
		}
		value[e.Key] = e.Value
	}
}

// inOrder calls visit for each of later, with the newest token of those of earlier that had
// returned when it began.
func inOrder(earlier, later []event, visit func(newest lock.Token, e event)) {
	returned, began := slices.Clone(earlier), slices.Clone(later)
	slices.SortFunc(began, func(a, b event) int { return int(a.At - b.At) })
	slices.SortFunc(returned, func(a, b event) int { return int(a.End - b.End) })
	var newest lock.Token
	for _, e := range began {
		for len(returned) > 0 && returned[0].End < e.At {
			newest = max(newest, returned[0].Token)
			returned = returned[1:]
		}
		visit(newest, e)
	}
}

// checkTokens is for every grant of the Locker, one that came too late for its caller too.
func (c *checker) checkTokens() {
	grants := make(map[string][]event)
	for _, e := range c.byKind[kAcquire] {
		if e.Err == "" {
			grants[e.Key] = append(grants[e.Key], e)
			c.counts["grants"]++
		}
	}
	for key, all := range grants {
		owner := make(map[lock.Token]event)
		for _, e := range all {
			if o, ok := owner[e.Token]; ok && (!o.Shared || !e.Shared) {
				c.bad("token given twice", key, e.End, "%s and %s", o, e)
			}
			owner[e.Token] = e
		}
		exclusive := slices.DeleteFunc(slices.Clone(all), func(e event) bool { return e.Shared })
		c.checkRising(key, all, exclusive)
	}
}

// checkRising: an exclusive grant's token exceeds all before it, a shared one's all
// exclusive ones before it.
func (c *checker) checkRising(key string, all, exclusive []event) {
	rule := func(shared bool) func(newest lock.Token, e event) {
		return func(newest lock.Token, e event) {
			if e.Shared == shared && e.Token <= newest {
				c.bad("token does not rise", key, e.End, "%s after %d", e, newest)
			}
		}
	}
	inOrder(all, all, rule(false))
	inOrder(exclusive, all, rule(true))
}

// checkExclusion compares holds by local deadlines, which the store's faults are measured
// by, and by what the workers were told, which the Client's are.
func (c *checker) checkExclusion() {
	byKey := make(map[string][]*hold)
	for _, h := range c.holds {
		byKey[h.Key] = append(byKey[h.Key], h)
	}
	for _, all := range byKey {
		slices.SortFunc(all, func(a, b *hold) int { return int(a.got - b.got) })
		for i, a := range all {
			for _, b := range all[i+1:] {
				if b.got < a.told && (!a.Shared || !b.Shared) {
					c.overlap(a, b)
				}
			}
		}
	}
}

// overlap is for b, which was had before the holder of a was told of its end.
func (c *checker) overlap(a, b *hold) {
	// A worker has the first keys of a DoAll long after they were granted.
	excuse := c.excuse(min(a.At, b.At), max(a.End, b.End), "")
	if a.forced > 0 && a.forced <= b.End || b.forced > 0 && b.forced <= a.End {
		excuse = "force release"
	}
	byDeadline := min(a.told, a.deadline, b.deadline) - b.got
	late, from, to := a, a.deadline, a.told
	if b.got > b.deadline { // its process was stopped on the way into the section
		late, from, to = b, b.deadline, b.got
	}
	switch {
	case excuse != "":
		c.counts["two holders, excused by "+excuse]++
	case byDeadline > 0:
		c.bad("exclusion by deadline", a.Key, b.got, "by %v: %s and %s", time.Duration(byDeadline), a, b)
	case c.ran(late.Proc, from, to):
		c.bad("exclusion by what was told", a.Key, b.got, "by %v: %s and %s", time.Duration(a.told-b.got), a, b)
	default:
		c.counts["two holders, excused by a process that did not run"]++
	}
}

// checkPermits: no more than there are permits are held at one time, on whatever keys. A
// permit counts until its local deadline, or until its worker was told; one that is forced
// does not.
func (c *checker) checkPermits() {
	holds := slices.Clone(c.holds)
	slices.SortFunc(holds, func(a, b *hold) int { return int(a.got - b.got) })
	var held []*hold
	for _, b := range holds {
		if !strings.HasPrefix(b.Key, semaphoreName) || b.forced > 0 {
			continue
		}
		c.counts["permits"]++
		held = slices.DeleteFunc(append(held, b), func(a *hold) bool { return min(a.told, a.deadline) <= b.got })
		from, to := b.At, b.End
		for _, a := range held {
			from, to = min(from, a.At), max(to, a.End)
		}
		if len(held) > permits && c.excuse(from, to, "") == "" {
			c.bad("too many permits", b.Key, b.got, "%d of %d: the last is %s", len(held), permits, b)
		}
	}
}

// checkLosses is for how late a loss was told, and for losses that nothing explains.
func (c *checker) checkLosses() {
	for _, h := range c.holds {
		ran := c.ran(h.Proc, h.deadline, h.told)
		if late := h.told - h.expiry; late > 0 && ran && h.told < c.last && h.told != c.killed[h.Proc] {
			c.bad("told after Start + TTL", h.Key, h.told, "%v: %s", time.Duration(late), h)
		}
		for _, e := range []event{h.ended, h.released} {
			if !strings.HasPrefix(e.Err, "lost") {
				continue
			}
			c.counts[string(e.Kind)+", "+e.Err]++
			at := max(e.At, e.End)
			switch late := at - h.deadline; {
			case late < -int64(5*time.Millisecond):
				c.earlyLoss(h, e, at)
			case e.Kind == kEnded && ran:
				c.times["losses told after the local deadline"] = append(c.times["losses told after the local deadline"], late)
			case e.Kind == kEnded:
				name := "losses told after the local deadline, by processes that did not run"
				c.times[name] = append(c.times[name], late)
			}
		}
	}
}

// earlyLoss is for a loss e that was told while h should have lived.
func (c *checker) earlyLoss(h *hold, e event, at int64) {
	if e.Err == "lost: expired" {
		c.bad("a reason that is no fact", h.Key, at, "expired, %v early: %s: %s", time.Duration(h.deadline-at), e.Text, h)
	}
	excuse := c.excuse(h.At, at, "grants")
	switch {
	case h.forced > 0:
		excuse = "force release"
	case e.Err == "lost: unreachable" && h.doubtful > 0 && at < h.doubtful+int64(100*time.Millisecond):
		excuse = "a renewal that was answered at the last moment"
	case e.Err == "lost: unreachable" && !c.ran(h.Proc, at-int64(time.Second), at):
		excuse = "a process that did not run" // to take the answer to its renewal
	}
	if excuse != "" {
		c.counts["losses before their time, excused by "+excuse]++
		return
	}
	c.bad("lost though nothing was broken", h.Key, at, "%v early: %s: %s", time.Duration(h.deadline-at), e.Text, h)
}

// checkReleased: nobody is refused because of holders whose releases had all been confirmed,
// unless another one had the key by then: a majority may know less of who than of whether.
func (c *checker) checkReleased() {
	released := make(map[string]event) // by owner; an undo has no token
	for _, e := range c.byKind[kRelease] {
		if e.Err == "" && e.Token > 0 {
			released[e.Owner] = e
		}
	}
	for _, e := range c.byKind[kAcquire] {
		if e.Err != "held" || e.Wait {
			continue
		}
		began, ended, all := e.At, int64(0), true
		for owner := range strings.SplitSeq(e.Text, ",") {
			r, ok := released[owner]
			all = all && ok && r.End < e.At
			began, ended = min(began, r.At), max(ended, r.End)
		}
		another := func(h *hold) bool {
			return h.Key == e.Key && h.At < e.End && max(h.told, h.released.End) > e.At
		}
		if all && !slices.ContainsFunc(c.holds, another) && c.excuse(began, e.End, "releases") == "" {
			c.bad("refused for a holder that had released", e.Key, e.At, "%s, %v later", e, time.Duration(e.At-ended))
		}
	}
}

// checkOrder: where FIFO is declared and nothing has been broken for a while, nobody who
// came after a waiter, by their arrivals less their head starts, is granted a smaller token.
func (c *checker) checkOrder() {
	lines := make(map[string][]event)
	for _, e := range c.byKind[kAcquire] {
		if e.Err == "" && c.quiet(e.At, e.End) {
			lines[e.Key] = append(lines[e.Key], e)
		}
	}
	for key, line := range lines {
		for i, a := range line {
			if a.Waiting == 0 {
				continue
			}
			for _, b := range line[i+1:] {
				if b.At > a.End {
					break
				}
				if b.At <= a.Waiting || b.At-b.Head <= a.Waiting-a.Head || a.Shared && b.Shared {
					continue
				}
				c.counts["pairs in line"]++
				switch {
				case b.Token > a.Token:
				case !c.caps.FIFO:
					c.counts["pairs in line, overtaken"]++
				case c.slow(a, b.End):
					c.counts["pairs in line, overtaken while calls were slow"]++
				default:
					c.bad("order in line", key, b.End, "%s overtakes %s", b, a)
				}
			}
		}
	}
}

// slow reports whether a may have lost its place to a late heartbeat. One is sent each third of
// the TTL, and some call took as long as that, or a's process did not run for as long.
func (c *checker) slow(a event, to int64) bool {
	return slices.ContainsFunc(c.events, func(e event) bool {
		took := e.End - e.At
		switch e.Kind {
		case kRenew, kRelease, kFenceRead, kFenceWrite:
		case kLate:
			if e.Proc != a.Proc {
				return false
			}
		case kAcquire:
			if e.Waiting > 0 {
				took = e.Waiting - e.At // to line up
			} else if e.Wait {
				return false
			}
		default:
			return false
		}
		return took >= a.TTL/3 && e.meets(a.At, to)
	})
}

// quiet reports whether nothing was broken from a while before a time to its end.
func (c *checker) quiet(from, to int64) bool {
	const settled = int64(4 * time.Second)
	broken := func(e event) bool { return max(e.At, e.End)+settled > from && e.At < to }
	for _, k := range []kind{kFault, kKill, kForce} {
		if slices.ContainsFunc(c.byKind[k], broken) {
			return false
		}
	}
	return true
}

// checkTerms: no op runs its function for a key while it runs it for that key already, as a
// candidate does who stands in line again before the work of a lost term has ended.
func (c *checker) checkTerms() {
	type section struct {
		op  int64
		key string
	}
	runs, before := make(map[section]event), make(map[section]bool)
	all := slices.Concat(c.byKind[kDone], c.byKind[kHold])
	slices.SortStableFunc(all, func(a, b event) int { return int(a.At - b.At) })
	for _, e := range all {
		s := section{e.Op, e.Key}
		if first, ok := runs[s]; ok && e.Kind == kHold {
			c.bad("two terms at once", e.Key, e.At, "%s while %s", e, first)
		}
		if delete(runs, s); e.Kind == kHold {
			runs[s] = e
			if before[s] {
				c.counts["terms after a lost one"]++
			}
			before[s] = true
		}
	}
}
