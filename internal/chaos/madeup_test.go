//go:build linux

package chaos

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/seed-215fdefa/lock"
)

const ms = int64(time.Millisecond)

// story is a made-up history, with times in ms. Its grants have a TTL of 1 s, so that the
// local deadline is 988 ms after Start, which is the time of the call.
type story []event

// grant is an Acquire of process op that returns at end, and the worker that gets the lease.
func grant(op int64, token lock.Token, at, end int64) story {
	owner := string('a' + rune(op))
	if int64(token) != op { // another term
		owner = fmt.Sprint(owner, token)
	}
	return story{
		{Kind: kAcquire, Key: "k", Proc: int(op), Op: op, Owner: owner, Token: token, At: at, End: end, Start: at, TTL: 1000},
		{Kind: kHold, Key: "k", Proc: int(op), Op: op, Owner: owner, Token: token, At: end},
	}
}

func (s story) done(at int64) story {
	h := s[1]
	h.Kind, h.At = kDone, at
	return append(s, h)
}

func (s story) lost(at int64, reason string) story {
	h := s[1]
	h.Kind, h.At, h.Err = kEnded, at, "lost: "+reason
	return append(s, h)
}

func (s story) shared() story {
	for i := range s {
		s[i].Shared = true
	}
	return s
}

func TestChecks(t *testing.T) {
	two := func(more ...event) story {
		return append(more, append(grant(1, 1, 0, 1).done(500), grant(2, 2, 99, 100).done(600)...)...)
	}
	tight := func(more ...event) story {
		return append(more, append(grant(1, 1, 0, 1).done(998), grant(2, 2, 989, 991).done(999)...)...)
	}
	begun := func(more ...event) story { // a section after the deadline, while another has the lock
		late := grant(1, 1, 0, 1).done(996)
		late[1].At = 995
		return append(more, append(late, grant(2, 2, 989, 991).done(999)...)...)
	}
	late := func(more ...event) story { // a first key of a DoAll, which another got before its worker had all
		first := grant(1, 1, 0, 1).done(600)
		first[1].At = 400
		return append(more, append(first, grant(2, 2, 299, 300).done(500)...)...)
	}
	held := func(at int64, others string) story {
		return append(grant(1, 1, 0, 1).done(10),
			event{Kind: kRelease, Key: "k", Owner: "b", Token: 1, At: 10, End: 12},
			event{Kind: kAcquire, Key: "k", Owner: "c", At: at, End: at + 1, Err: "held", Text: others + "b"})
	}
	// permit is a lease of a slot, by a request that is of no op.
	permit := func(op int64, slot string, at int64) story {
		s := grant(op, lock.Token(op), at, at+1).done(500)
		s[0].Op = 0
		for i := range s {
			s[i].Key = semaphoreName + "#semaphore/slot/" + slot
		}
		return s
	}
	full := slices.Concat(permit(1, "0", 0), permit(2, "1", 0), permit(3, "2", 100))
	inLine := func(second lock.Token, more ...event) story {
		first := grant(1, 5, 5000, 5300).done(5301)
		first[0].Waiting, first[0].Wait = 5010, true
		then := grant(2, second, 5100, 5101+int64(second)*100).done(5800)
		then[0].Wait = true
		return append(more, append(first, then...)...)
	}
	ahead := func(head int64) story { // of one who came later
		s := inLine(4)
		s[3].Head = head
		return s
	}
	early := inLine(4) // the waiter has a head start, and the other came before it was in line
	early[0].Head, early[3].At, early[3].Start = 500, 5009, 5009
	fence := func(k kind, token lock.Token, at, value, prev int64) event {
		return event{Kind: k, Key: "k", Token: token, At: at, End: at + 1, Value: value, Prev: prev}
	}
	written := func(token lock.Token, at, value, prev int64) story {
		return story{fence(kFenceSend, token, at, value, prev), fence(kFenceWrite, token, at, value, prev)}
	}
	for _, c := range []struct {
		name, violates string // no check, if ""
		story          story
	}{
		{"one after the other", "", slices.Concat(grant(1, 1, 0, 1).done(50), grant(2, 2, 99, 100).done(600))},
		{"two at once", "exclusion by deadline", two()},
		{"two readers", "", two().shared()},
		{"two, one forced", "", two(event{Kind: kForce, Key: "k", Owner: "b", At: 50, End: 51})},
		{"two, one not forced after all", "exclusion by deadline", two(event{Kind: kForce, Key: "k", Owner: "b", At: 50, End: 51, Err: "lost"})},
		{"two, one forced perhaps", "", two(event{Kind: kForce, Key: "k", Owner: "b", At: 50, End: 51, Err: "context deadline exceeded"})},
		{"two, over a fault to survive", "exclusion by deadline", two(event{Kind: kFault, At: 50, End: 60, Text: "fault", Survives: lock.SurvivesRestart})},
		{"two, over one that kills", "", two(event{Kind: kFault, At: 50, End: 60, Text: "fault", Survives: lock.SurvivesFailover})},
		{"two, the first had last", "exclusion by deadline", late()},
		{"two, the first had last, over one that kills", "", late(event{Kind: kFault, At: 50, End: 60, Text: "fault", Survives: lock.SurvivesFailover})},
		{"two, long after it", "exclusion by deadline", two(event{Kind: kFault, At: -2000, End: -1900, Text: "fault", Survives: lock.SurvivesFailover})},
		{"two, one killed before", "", two(event{Kind: kKill, At: 98, Value: 1})},
		{"told at the end of TTL", "exclusion by what was told", tight()},
		{"told then, stopped", "", tight(event{Kind: kStop, Value: 1, At: 980, End: 997})},
		{"told then, starved", "", tight(event{Kind: kLate, Proc: 1, At: 980, End: 997})},
		{"begun then", "exclusion by what was told", begun()},
		{"begun then, stopped", "", begun(event{Kind: kStop, Value: 1, At: 980, End: 994})},
		{"told later", "told after Start + TTL", grant(1, 1, 0, 1).done(1001)},
		{"told later, renewed", "", append(grant(1, 1, 0, 1).done(1001), event{Kind: kRenew, Owner: "b", At: 300, End: 301, Start: 300, TTL: 1000})},
		{"renewed too late", "told after Start + TTL", append(grant(1, 1, 0, 1).done(1101), event{Kind: kRenew, Owner: "b", At: 300, End: 1100, Start: 300, TTL: 1000})},
		{"loss at the deadline", "", grant(1, 1, 0, 1).lost(988, "unreachable")},
		{"loss before it", "lost though nothing was broken", grant(1, 1, 0, 1).lost(500, "taken")},
		{"loss told by the release", "lost though nothing was broken", append(grant(1, 1, 0, 1).done(500),
			event{Kind: kRelease, Owner: "b", Token: 1, At: 500, End: 501, Err: "lost: taken"})},
		{"loss of a grant that a fault may take", "", append(grant(1, 1, 0, 1).lost(500, "unknown"),
			event{Kind: kFault, Text: "crash", At: 400, End: 450, Takes: "grants"})},
		{"loss of that, called expired", "a reason that is no fact", append(grant(1, 1, 0, 1).lost(500, "expired"),
			event{Kind: kFault, Text: "crash", At: 400, End: 450, Takes: "grants"})},
		{"two, over a fault that takes", "exclusion by deadline", two(event{Kind: kFault, Text: "crash", At: 50, End: 60, Takes: "grants"})},
		{"loss, starved", "", append(grant(1, 1, 0, 1).lost(500, "unreachable"), event{Kind: kLate, Proc: 1, At: 300, End: 310})},
		{"loss by force", "", append(grant(1, 1, 0, 1).lost(500, "forced"), event{Kind: kForce, Owner: "b", At: 400, End: 401})},
		{"one token twice", "token given twice", slices.Concat(grant(1, 7, 0, 1).done(2), grant(2, 7, 0, 4).done(5))},
		{"token falls", "token does not rise", slices.Concat(grant(1, 7, 0, 1).done(2), grant(2, 6, 3, 4).done(5))},
		{"reader's token falls", "token does not rise", slices.Concat(grant(1, 7, 0, 1).done(2), grant(2, 6, 3, 4).done(5).shared())},
		{"readers in any order", "", slices.Concat(grant(1, 7, 0, 1).done(2), grant(2, 6, 3, 4).done(5)).shared()},
		{"calls that overlap", "", slices.Concat(grant(1, 7, 0, 4).done(5), grant(2, 6, 1, 2).done(3))},
		{"released, and held", "refused for a holder that had released", held(13, "")},
		{"released, and another holds", "", held(13, "x,")},
		{"released, and another has it", "", append(held(13, ""), grant(2, 2, 11, 14).done(15)...)},
		{"released meanwhile", "", held(11, "")},
		{"released, and undone", "", append(held(30, ""), event{Kind: kFault, At: 20, End: 25, Text: "crash", Takes: "releases"})},
		{"served in order", "", inLine(6)},
		{"overtaken", "order in line", inLine(4)},
		{"a head start came before it stood in line", "", early},
		{"overtaken by a head start", "", ahead(91)},
		{"overtaken by one that is too small", "order in line", ahead(89)},
		{"all permits", "", full},
		{"one after another", "", slices.Concat(full, permit(4, "1", 501))},
		{"a permit too many", "too many permits", slices.Concat(full, permit(4, "3", 300))},
		{"that, over a fault that kills", "", slices.Concat(full, permit(4, "3", 300), story{{Kind: kFault, At: 50, End: 60, Text: "fault", Survives: lock.SurvivesFailover}})},
		{"that, one forced", "", slices.Concat(full, permit(4, "3", 300), story{{Kind: kForce, Owner: "b", At: 50, End: 51}})},
		{"a slot twice", "exclusion by deadline", slices.Concat(permit(1, "0", 0), permit(2, "0", 100))},
		{"a permit of another op", "lease without a grant", append(grant(1, 1, 0, 1)[:1], event{Kind: kHold, Key: "k", Op: 2, Owner: "b", Token: 1, At: 1})},
		{"overtaken in a storm", "", inLine(4, event{Kind: kFault, At: 4000, End: 4100})},
		{"overtaken by a late heartbeat", "", inLine(4, event{Kind: kRenew, At: 5020, End: 5354, Err: "store unavailable"})},
		{"overtaken, and no heartbeat late", "order in line", inLine(4, event{Kind: kRenew, At: 5020, End: 5353, Err: "store unavailable"})},
		{"overtaken, the waiter starved", "", inLine(4, event{Kind: kLate, Proc: 1, At: 5020, End: 5354})},
		{"overtaken, another starved", "order in line", inLine(4, event{Kind: kLate, Proc: 2, At: 5020, End: 5354})},
		{"fenced writes", "", slices.Concat(written(1, 1, 10, 0), story{fence(kFenceSend, 2, 5, 20, 10)}, written(3, 9, 30, 20))},
		{"fence lets by", "fence: stale token accepted", slices.Concat(story{fence(kFenceRead, 2, 1, 0, 0)}, written(1, 5, 10, 0))},
		{"fence overwrites", "fence: lost update", slices.Concat(written(1, 1, 10, 0), written(2, 5, 20, 0))},
		{"fence goes back", "fence: older write over a newer", slices.Concat(story{fence(kFenceSend, 9, 1, 10, 0)}, written(2, 5, 20, 10))},
		{"two terms", "", slices.Concat(grant(1, 1, 0, 1).lost(988, "expired").done(995), grant(1, 2, 996, 997).done(998))},
		{"two terms at once", "two terms at once", slices.Concat(grant(1, 1, 0, 1).lost(988, "expired").done(999), grant(1, 2, 995, 996).done(998))},
		{"call in time", "", story{{Kind: kOp, Bound: 100, At: 0, End: 5000}}},
		{"call that hangs", "call late", story{{Kind: kOp, Bound: 100, At: 0, End: 5200}}},
		{"a leak", "goroutines left", story{{Kind: kClosed, Value: 2}}},
		{"another's grant", "wrong grant", story{{Kind: kRenew, Text: "wrong grant: …"}}},
		{"a Start from the future", "start after the answer", story{{Kind: kAcquire, At: 1, End: 2, Start: 3, Token: 1}}},
		{"no grant", "lease without a grant", story{{Kind: kHold, Key: "k", Token: 1, At: 1}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			for i := range c.story {
				e := &c.story[i]
				for _, at := range []*int64{&e.At, &e.End, &e.Start, &e.TTL, &e.Waiting, &e.Bound, &e.Head} {
					*at *= ms
				}
			}
			end := event{Kind: kOp, At: 10_000 * ms, End: 10_000 * ms, Bound: 10_000 * ms}
			h := history{events: append(c.story, end), caps: lock.Capabilities{FIFO: true, HoldSurvives: lock.SurvivesRestart}}
			r := h.check()
			if c.violates == "" {
				require.Empty(t, r.violations, "%s", r)
				return
			}
			require.Len(t, r.violations, 1, "%s", r)
			require.Contains(t, r.violations, c.violates, "%s", r)
			require.Contains(t, r.String(), "VIOLATION, "+c.violates)
		})
	}
}
