package redlock

import (
	"slices"
	"time"

	"github.com/seed-215fdefa/lock"
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
	lead   = 100 * time.Millisecond // how far ahead of the clocks a guess is, for the way there
	window = 250 * time.Millisecond // how far ahead of its own clock a node takes it
)

// guess is a token that a quorum will take for new, if its clocks are as far ahead of this one as
// when the last guess was bad.
func (l *Locker) guess() lock.Token {
	return lock.Token(time.Now().Add(lead).UnixMicro() + l.ahead.Load())
}

// agreed is the least token that all voters in b would record, who have not all recorded the guess.
func (l *Locker) agreed(b *ballot, guess lock.Token) (token lock.Token) {
	var clocks []int64
	for i, v := range b.votes {
		if v != yes && v != blank {
			continue
		}
		micros, least := readMicros(b.answers[i].reply)
		if v == yes {
			least = guess
		}
		token = max(token, least)
		clocks = append(clocks, micros)
	}
	slices.Sort(clocks) // of the few that are off most are on the outside
	l.ahead.Store(clocks[len(clocks)/2] - time.Now().UnixMicro())
	return token
}
