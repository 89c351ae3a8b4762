package redlock

import (
	"slices"
	"sync/atomic"
	"time"
)

// A token is the answer to a question that costs a round trip of its own: which number do a
// quorum of nodes take for new? A Locker that guesses the answer gets it with the votes, in
// the same round trip.
//
// What a node takes for new is above its counter, and neither below its clock nor far ahead
// of it; then the vote records it (lua/mint.lua). So a grant whose token a quorum has
// recorded is one for which
//
//   - any later grant of the key has votes from one of those nodes at least, where its token
//     must be higher: tokens rise, whatever the clocks say;
//   - the token is no lower than the clocks of a quorum, and at most window ahead of the
//     slowest of them, or one above an older token: if all nodes that could tell have lost
//     their data, and abstained for MaxTTL since, the clock alone makes the next token
//     higher, as long as the clocks differ by less than MaxTTL - window. Where all nodes are
//     new none abstains; these begin a second above their clocks instead.
//
// Where only a key's record is deleted, on all nodes, they do not know what they have lost:
// then a good guess that follows a bad one at once may be up to window lower.
//
// If the guess was bad (a clock is off, a request was slow, another process was faster) the
// votes say what would have been high enough, and the highest of that is written back to
// those nodes where the owner still holds. That, again by a quorum, records a token with the
// same two properties: it is above the counters of a quorum as of their votes, and no
// grant can have come between on a node where the owner has held ever since.
const (
	lead   = 50 * time.Millisecond  // how far ahead of the clocks a guess is, for the way there
	window = 250 * time.Millisecond // how far ahead of its own clock a node takes it
)

// epoch is what the clocks are compared with, by the monotonic clock of this process.
var epoch = time.Now()

func ownMicros() int64 { return time.Since(epoch).Microseconds() }

// clock is an estimate of a node's clock.
type clock struct{ ahead atomic.Int64 } // node's µs, less own µs; 0 is unknown

// saw notes that the node's clock has just shown micros.
func (c *clock) saw(micros int64) {
	if micros > 0 {
		c.ahead.Store(micros - ownMicros())
	}
}

// propose guesses a token that a quorum will take for new; 0 when too little is known. It
// goes by the fastest clock that is not much faster than those of a quorum.
func propose(nodes []*node, quorum int) int64 {
	var buf [16]int64
	ahead := buf[:0]
	for _, n := range nodes {
		if a := n.clock.ahead.Load(); a != 0 {
			ahead = append(ahead, a)
		}
	}
	if len(ahead) < quorum {
		return 0
	}
	slices.Sort(ahead)
	best := ahead[quorum-1]
	for _, a := range ahead[quorum:] {
		if a-ahead[0] < (window / 2).Microseconds() {
			best = a
		}
	}
	return best + ownMicros() + lead.Microseconds()
}
