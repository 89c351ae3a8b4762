package locktest

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	lock "github.com/seed-215fdefa/lock"
)

// history is what came of a round. All times are since the round began.
type history struct {
	plan  plan
	ttl   time.Duration
	caps  lock.Capabilities
	fake  bool // the round was in fake time: what happened can happen again
	begun time.Time

	mu     sync.Mutex // guards the rest, while the round runs
	calls  []*call    // in the order in which they began
	owners map[string]*tenure
	lives  []*tenure // in the order in which they began
	jobs   []*job    // in the order in which they began
	flaws  []violation
}

// call is one call of a Locker, of a fault, or by a Locker.
type call struct {
	op         string // acquire, renew, release, undo, inspect, list, force, a fault; lost and waiting are the Locker's
	proc, key  int    // key is -1 if it is about all
	t          *tenure
	begin, end time.Duration
	limit      time.Duration // when its ctx ends
	over       bool          // it has returned
	ended      error         // of its ctx, by then
	dull       bool          // one of many that say the same

	grant  lock.Grant
	start  time.Duration // grant.Start
	err    error
	recs   []lock.Record
	reason lock.LostReason
	fault  Fault
}

// tenure is an owner's life, from its Acquire on.
type tenure struct {
	step
	name    string // short, for people; how owner begins
	owner   string
	acquire *call
	acts    []*call // the owner's renewals, releases and undos, one after the other
	forces  []*call // what others did to it
	waiting *call   // of Request.Waiting; nil if it was not called
	losses  []*call // of Request.Lost
	worker  *worker // whose Client it is of; nil for one without
	job     int     // the step of the Client's call, if it is known
}

func (t *tenure) granted() bool { return t.acquire.over && t.acquire.err == nil }

// excludes reports whether t's grant and u's may not be at one time.
func (t *tenure) excludes(u *tenure) bool {
	return t != u && t.key == u.key && (!t.shared || !u.shared)
}

// unknown reports whether c may have been done, and may be done yet.
func (c *call) unknown() bool {
	return !c.over || c.err != nil && !errors.Is(c.err, lock.ErrLost) && (!errors.Is(c.err, lock.ErrHeld) || c.t.wait)
}

func (c *call) lost() bool { return c.over && errors.Is(c.err, lock.ErrLost) }

// now is the time since the round began.
func (h *history) now() time.Duration { return time.Since(h.begun) }

// add notes c, which begins now.
func (h *history) add(c *call) *call {
	h.mu.Lock()
	defer h.mu.Unlock()
	c.begin = h.now()
	h.calls = append(h.calls, c)
	return c
}

// finish notes that c has returned what set fills in. ctx is that of the call.
func (h *history) finish(ctx context.Context, c *call, set func()) {
	h.mu.Lock()
	defer h.mu.Unlock()
	c.end, c.over, c.ended = h.now(), true, ctx.Err()
	set()
}

// told notes what a Locker told by itself.
func (h *history) told(c *call, to func(t *tenure)) {
	h.mu.Lock()
	defer h.mu.Unlock()
	c.begin = h.now()
	c.end, c.over = c.begin, true
	h.calls = append(h.calls, c)
	to(c.t)
}

// faults are those of the round.
func (h *history) faults() (fs []*call) {
	for _, c := range h.calls {
		if c.fault != 0 {
			fs = append(fs, c)
		}
	}
	return fs
}

// name is an owner's short name.
func (h *history) name(owner string) string {
	if t := h.owners[owner]; t != nil {
		return t.name
	}
	return owner
}

// write prints the calls that v may be about, one a line: those for its key, or for all
// keys, at about its time. A round that was shrunk is printed whole.
func (h *history) write(b *strings.Builder, v violation) {
	calls := slices.Clone(h.calls)
	slices.SortStableFunc(calls, func(a, b *call) int { return cmp.Compare(a.begin, b.begin) })
	for _, c := range calls {
		near := h.fake || c.begin <= v.when.to+h.ttl && (!c.over || c.end >= v.when.from-h.ttl)
		if near && !c.dull && (c.key < 0 || v.key < 0 || c.key == v.key) {
			h.line(b, c)
		}
	}
}

func (h *history) line(b *strings.Builder, c *call) {
	who := "  "
	if c.proc >= 0 {
		who = fmt.Sprintf("p%d", c.proc)
	}
	owner := ""
	if c.t != nil {
		owner = c.t.name
	}
	key := "all"
	if c.key >= 0 {
		key = keyName(c.key)
	}
	end := "never"
	if c.over {
		end = ms(c.end)
	}
	fmt.Fprintf(b, "\t%10s %10s  %s %-4s %-5s %s\n", ms(c.begin), end, who, owner, key, h.describe(c))
}

// describe says what c was and what came of it.
func (h *history) describe(c *call) string {
	what := c.op
	switch {
	case c.op == "acquire":
		mode := "exclusive"
		if c.t.shared {
			mode = "shared"
		}
		what = fmt.Sprintf("acquire %s, TTL %v", mode, c.t.ttl)
		if c.t.wait {
			what += ", waits"
		}
		if c.t.head > 0 {
			what += fmt.Sprintf(", head start %v", c.t.head)
		}
	case c.op == "lost":
		return fmt.Sprintf("is told: lost, %v", c.reason)
	case c.op == "waiting":
		return "is told: stands in line"
	case c.fault == Sever:
		return c.fault.String() + ", for good"
	case c.fault != 0:
		return c.fault.String() + " until then"
	}
	switch {
	case !c.over:
		return what + ": has not returned"
	case c.err != nil:
		return what + ": " + h.short(c.err)
	case c.grant.Token != 0:
		return fmt.Sprintf("%s: token %d, Start %s, TTL %v: until %s", what, c.grant.Token, ms(c.start), c.grant.TTL, ms(c.start+c.grant.TTL))
	case len(c.recs) > 0:
		return what + ": " + h.records(c.recs)
	}
	return what + ": ok"
}

// short is err without what the history has already.
func (h *history) short(err error) string {
	var held *lock.HeldError
	if errors.As(err, &held) {
		s := "held: " + h.records([]lock.Record{held.Record})
		if held.Err != nil {
			s += ": " + held.Err.Error()
		}
		return s
	}
	return err.Error()
}

func (h *history) records(recs []lock.Record) string {
	var parts []string
	for _, rec := range recs {
		for _, x := range rec.Holders {
			parts = append(parts, fmt.Sprintf("%s holds %s, token %d, for %v more", h.name(x.Owner), rec.Key, x.Token, x.ExpiresIn))
		}
		for _, x := range rec.Waiters {
			parts = append(parts, fmt.Sprintf("%s waits for %s", h.name(x.Owner), rec.Key))
		}
	}
	if len(parts) == 0 {
		return "nobody"
	}
	return strings.Join(parts, "; ")
}

// ms is d in milliseconds, to the microsecond.
func ms(d time.Duration) string { return fmt.Sprintf("%.3f", float64(d)/float64(time.Millisecond)) }
