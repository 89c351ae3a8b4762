package lock

import "time"

const (
	// maxStep is how far wall and monotonic clock may drift apart between two looks
	// without being called a jump: the two are not read in the same instant.
	maxStep = 20 * time.Millisecond
	// lookEvery is the longest time between two comparisons while leases are held.
	lookEvery = time.Second
	// verifyPart of the TTL is how long a lease has to verify itself after a jump.
	verifyPart = 10

	never = time.Duration(1<<63 - 1)
)

// clock is the time at which an engine lives, in nanoseconds since it was made: the
// monotonic clock, which stands still while a machine sleeps, plus all forward jumps
// that the wall clock has made against it. A deadline in this time thus moves closer by
// itself when a jump is seen. It is guarded by the engine's mutex, so that looks are
// ordered: a look from before a jump, compared after it, would be a jump back.
type clock struct {
	read   func() (now time.Time, wallNanos int64)
	base   time.Time
	offset int64         // wall less monotonic at the last look
	skew   time.Duration // the sum of forward jumps
	jumps  uint64        // how many, backward ones too
	jumped time.Duration // when the last was seen
}

func systemClock() (time.Time, int64) {
	t := time.Now()
	return t, t.UnixNano()
}

// look returns the time, and whether a jump was seen. One that happened while there was
// nothing to look for is seen late, but before the next call begins, and so concerns no
// lease.
func (c *clock) look() (now time.Duration, jump bool) {
	if c.base.IsZero() {
		c.base, c.offset = c.read()
	}
	mono, step := c.compare()
	if step > maxStep || step < -maxStep {
		// A thread that was preempted between its reads of the two clocks sees a jump
		// that is none, and its successor one back. The second read is right.
		mono, step = c.compare()
	}
	c.offset += int64(step)
	if step <= maxStep && step >= -maxStep {
		return mono + c.skew, false
	}
	c.skew += max(step, 0)
	c.jumps++
	c.jumped = mono + c.skew
	return c.jumped, true
}

func (c *clock) compare() (mono, step time.Duration) {
	now, wall := c.read()
	mono = now.Sub(c.base)
	return mono, time.Duration(wall - int64(mono) - c.offset)
}

// mark is the clock at a moment. What a reply says of the time at which its request was
// sent, it says under the skew of then.
type mark struct {
	at, skew time.Duration
	jumps    uint64
}

func (c *clock) mark(now time.Duration) mark { return mark{now, c.skew, c.jumps} }

// jumpedSince reports whether a jump has been seen since m.
func (c *clock) jumpedSince(m mark) bool { return c.jumps != m.jumps }

// at is the engine's time of a local time t, given the skew that t was taken under.
func (c *clock) at(t time.Time, skew time.Duration) time.Duration {
	return t.Sub(c.base) + skew
}

// local is the local time at which d will be, unless the clock jumps.
func (c *clock) local(d time.Duration) time.Time {
	return c.base.Add(d - c.skew)
}
