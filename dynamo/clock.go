package dynamo

import (
	"sync"
	"time"

	"github.com/seed-215fdefa/lock"
)

const (
	// hostSkew is by how much the clocks of DynamoDB's hosts may differ: what was stamped
	// by one of them is over by another's clock that much later.
	hostSkew = 100 * time.Millisecond

	// drift is the part of a time span by which two clocks may disagree on it: twice the
	// 500 ppm by which NTP slews at most.
	drift = 1000

	// staleAfter is how long bounds of DynamoDB's clock are used without a response that
	// confirms them. The drift of so long a time is a part of ExpirySlack.
	staleAfter = 2 * time.Minute

	dateStep = time.Second // the resolution of the Date header, which is cut off
)

// clock keeps two bounds of DynamoDB's clock, made of the Date headers of responses and of
// this machine's monotonic clock. After one response they are a second apart; each further
// one that comes near the turn of a second narrows them, to about a round trip.
//
// This machine's wall clock has no part in them. It only tells whether the machine has
// slept: then the monotonic clock stood still, and the bounds are made anew.
type clock struct {
	mu    sync.Mutex // guards the rest
	lower bound
	upper bound
	heard time.Time // when the last response came; zero: none that tells the time
	wall  time.Time // the same by the wall clock alone
}

// bound says that DynamoDB's clock was not before, or not after, micros at local time at.
type bound struct {
	at     time.Time
	micros int64
}

// moment is a look at the clock.
type moment struct {
	local        time.Time // on this machine, with a monotonic reading
	lower, upper int64     // bounds of DynamoDB's clock at that time, in µs since 1970
}

func (b bound) lowerAt(t time.Time) int64 {
	d := t.Sub(b.at).Microseconds()
	return b.micros + d - d/drift
}

func (b bound) upperAt(t time.Time) int64 {
	d := t.Sub(b.at).Microseconds()
	return b.micros + d + d/drift
}

// learn takes a response's Date. DynamoDB wrote it after the request was sent and before
// the response came. A Date that contradicts the bounds replaces them: this machine has
// slept, or DynamoDB's hosts differ, or their clock was set. jump is by how much this machine's wall
// clock went on more than the monotonic one between sent and came: if it has slept there, nobody knows
// how long before came the Date was written.
func (c *clock) learn(sent, came, date time.Time, jump time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if jump.Abs() > hostSkew {
		c.heard = time.Time{}
		return
	}
	micros := date.UnixMicro()
	lower, upper := bound{came, micros}, bound{sent, micros + dateStep.Microseconds()}
	fresh := !c.reliable(came)
	if fresh || micros > c.lower.lowerAt(came) {
		c.lower = lower
	}
	if fresh || upper.upperAt(came) < c.upper.upperAt(came) {
		c.upper = upper
	}
	if c.lower.lowerAt(came) > c.upper.upperAt(came) {
		c.lower, c.upper = lower, upper
	}
	c.heard, c.wall = came, came.Round(0)
}

// now looks at the clock. It is not ok if no response tells the time, or none that is
// recent enough: then one must be asked for.
func (c *clock) now() (m moment, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	t := time.Now()
	if !c.reliable(t) {
		return moment{}, false
	}
	return moment{t, c.lower.lowerAt(t), c.upper.upperAt(t)}, true
}

// reliable tells whether the bounds may be carried on to t. The caller holds mu.
func (c *clock) reliable(t time.Time) bool {
	if c.heard.IsZero() {
		return false
	}
	mono := t.Sub(c.heard)
	wall := t.Round(0).Sub(c.wall)
	return mono <= staleAfter && (wall-mono).Abs() <= hostSkew+mono/drift
}

// off tells whether a response's Date shows that a moment's upper bound was too low, so
// that what was stamped by it ends before its time.
func (m moment) off(came, date time.Time) bool {
	return !date.IsZero() && m.behind(moment{local: came, lower: date.UnixMicro()})
}

// behind is off by what is known of the time later.
func (m moment) behind(later moment) bool {
	return later.lower > bound{m.local, m.upper}.upperAt(later.local)+hostSkew.Microseconds()
}

// tooLow is m without its upper bound: what was stamped by it is behind for ever.
func (m moment) tooLow() moment { return moment{local: m.local} }

// over tells whether an expiry has passed by DynamoDB's clock, whichever host stamped it.
func (m moment) over(expiry int64) bool { return m.left(expiry) <= 0 }

// left is how long it takes until over, as far as is known now. No lease takes longer than
// lock.MaxTTL, whatever was written.
func (m moment) left(expiry int64) time.Duration {
	return time.Duration(min(expiry-m.lower, micros(lock.MaxTTL)))*time.Microsecond + hostSkew
}
