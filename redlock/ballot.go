package redlock

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/seed-215fdefa/lock"
)

// vote is what a node's answer comes to.
type vote uint8

const (
	pending vote = iota
	yes
	blank // yes, without the proposed token
	has   // no, since the owner has this node's vote by another acquisition
	no
	fresh   // no, since the node is new or has lost its data
	unknown // an error: it may have been executed or not
)

// ballot asks all nodes one question, and is decided as soon as its rule says so.
type ballot struct {
	nodes  []*node
	quorum int
	read   func(i int, a answer) vote // called for each answer, under no mutex
	rule   func(*ballot) bool         // called under mu
	late   func(i int, v vote)        // if not nil, called for each that comes after the decision
	moves  func() bool                // if not nil: whether an answer has come closer since the last call

	mu      sync.Mutex // guards the rest until it is decided; then nothing changes
	decided bool
	answers []answer
	votes   []vote
	done    chan struct{} // closed when it is decided
}

func (l *Locker) newBallot(rule func(*ballot) bool, read func(int, answer) vote) *ballot {
	return &ballot{
		nodes: l.nodes, quorum: l.quorum, read: read, rule: rule,
		answers: make([]answer, len(l.nodes)), votes: make([]vote, len(l.nodes)), done: make(chan struct{}),
	}
}

// poll sends q to all nodes. await must follow.
func (l *Locker) poll(q question, rule func(*ballot) bool, read func(int, answer) vote) *ballot {
	b := l.newBallot(rule, read)
	b.send(q)
	return b
}

// errBusy is for a node that has not answered another request of the same owner.
var errBusy = errors.New("it has not answered the last request yet")

func (b *ballot) send(q question) {
	for i, n := range b.nodes {
		n.ask(q, func(a answer) { b.add(i, a) })
	}
}

func (b *ballot) add(i int, a answer) {
	v := b.read(i, a)
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case !b.decided:
		if b.answers[i], b.votes[i] = a, v; b.rule(b) {
			b.decide()
		}
	case b.late != nil:
		b.late(i, v)
	}
}

func (b *ballot) decide() {
	b.decided = true
	close(b.done)
}

func (b *ballot) count(v vote) (n int) {
	for _, have := range b.votes {
		if have == v {
			n++
		}
	}
	return n
}

// had is the token that the owner has on a quorum by another acquisition, or 0.
func (b *ballot) had() lock.Token {
	if b.count(has) < b.quorum {
		return 0
	}
	nodes := make(map[lock.Token]int)
	for i, v := range b.votes {
		if v != has {
			continue
		}
		token := readHas(b.answers[i].reply)
		if nodes[token]++; token != 0 && nodes[token] == b.quorum {
			return token
		}
	}
	return 0
}

// awaited is how many answers are worth waiting for: all that are missing, but not those of
// silent nodes when the others can make a quorum by themselves. One that abstains is no part of
// any: a silent node's answer may be the one that makes it.
func (b *ballot) awaited() int {
	missing, mute, sound := 0, 0, 0
	for i, n := range b.nodes {
		silent := n.silent.Load()
		if _, _, abstaining := abstains(b.answers[i].reply); !silent && !abstaining {
			sound++
		}
		if b.votes[i] == pending {
			missing++
			if silent {
				mute++
			}
		}
	}
	if sound >= b.quorum {
		return missing - mute
	}
	return missing
}

// The rules.

// granting: a quorum has voted, or knows of a grant of the owner, or cannot any more, and a quorum has
// said why. When nodes are new it matters whether all of them are.
func granting(b *ballot) bool {
	if f := b.count(fresh); f > 0 && f+b.count(pending) == len(b.nodes) {
		return b.awaited() == 0
	}
	n, waits := b.count(yes)+b.count(blank), b.count(pending)
	heard := len(b.nodes) - waits - b.count(unknown)
	return n >= b.quorum || b.had() != 0 || n+b.count(has)+waits < b.quorum && heard >= b.quorum || b.awaited() == 0
}

// inVain tells whether n votes, with those that may come, are no quorum, or nothing more is
// worth waiting for. A silent node's vote is not waited for and may come all the same.
func (b *ballot) inVain(n int) bool {
	return n+b.count(pending) < b.quorum || b.awaited() == 0
}

// agreeing: a quorum has said yes, or cannot any more.
func agreeing(b *ballot) bool {
	n := b.count(yes)
	return n >= b.quorum || b.inVain(n)
}

// ending: a quorum has said yes, or no quorum can have had it, or all have answered. While what is
// left may look like a quorum to others, silent nodes are waited for, too.
func ending(b *ballot) bool {
	if b.lingers() {
		return b.count(pending) == 0
	}
	n := b.count(yes)
	return n >= b.quorum || b.inVain(n+b.count(unknown))
}

// lingers reports whether others may be refused for what this ballot is to end: who asks for votes
// cannot know what a node that abstains has granted.
func (b *ballot) lingers() bool {
	left, mute := b.count(pending)+b.count(unknown), 0
	for _, a := range b.answers {
		if _, _, ok := abstains(a.reply); ok {
			mute++
		}
	}
	return left > 0 && left+mute >= b.quorum
}

// hearing: all have answered.
func hearing(b *ballot) bool { return b.awaited() == 0 }

const (
	// firstTimeout is how long a node may take for the first answer ever: it must be
	// connected to, and learn the scripts. go-redis takes half a second to tell that it is refused.
	firstTimeout = 2 * time.Second

	// releaseTimeout is for releases, which nobody repeats: go-redis tries only once a second
	// to reach a server that it could not connect to for some time.
	releaseTimeout = 5 * time.Second
)

// await returns nil when the ballot is decided, or has been by the timeout: nodes that have
// not answered by then are silent. Else it returns ctx.Err() or ErrClosed.
func (l *Locker) await(ctx context.Context, b *ballot) error {
	return l.awaitFor(ctx, b, l.timeout)
}

func (l *Locker) awaitFor(ctx context.Context, b *ballot, timeout time.Duration) error {
	timer := time.NewTimer(timeout)
	defer timer.Stop()
	for first := true; ; first = false {
		select {
		case <-b.done:
			return nil
		case <-timer.C:
			if more := firstTimeout - timeout; first && more > 0 && b.strangers() {
				timer.Reset(more)
				continue
			}
			if b.moves != nil && b.moves() {
				timer.Reset(timeout)
				continue
			}
			b.end(true)
			return nil
		case <-ctx.Done():
			b.end(false)
			return ctx.Err()
		case <-l.closed.Done():
			b.end(false)
			return lock.ErrClosed
		}
	}
}

// strangers tells whether it waits for nodes that have never answered.
func (b *ballot) strangers() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	for i, n := range b.nodes {
		if b.votes[i] == pending && !n.met.Load() {
			return true
		}
	}
	return false
}

// end decides it as it stands.
func (b *ballot) end(timeout bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.decided {
		return
	}
	for i, n := range b.nodes {
		if timeout && b.votes[i] == pending {
			n.silent.Store(true)
			b.answers[i].err = n.why(errNoAnswer)
		}
	}
	b.decide()
}
