package faultproxy

import (
	"fmt"
	"slices"
	"time"
)

type direction int

const (
	toServer direction = iota
	toClient
)

// Messages says which messages a fault befalls.
type Messages struct {
	directions [2]bool
	first      int // counted from 1
	last       int // 0 is no end
	match      func(message []byte) bool
}

// Requests are all messages from the client to the server.
func Requests() Messages { return Messages{directions: [2]bool{toServer: true}, first: 1} }

// Replies are all messages from the server to the client.
func Replies() Messages { return Messages{directions: [2]bool{toClient: true}, first: 1} }

// All are the messages of both directions, counted together.
func All() Messages { return Messages{directions: [2]bool{true, true}, first: 1} }

// From returns the k-th of m, counted from 1, and all after it. It panics if k is below 1.
func (m Messages) From(k int) Messages {
	if k < 1 {
		panic(fmt.Sprintf("faultproxy: message %d: they are counted from 1", k))
	}
	m.first, m.last = k, 0
	return m
}

// Nth returns the k-th of m only, counted from 1. It panics if k is below 1.
func (m Messages) Nth(k int) Messages {
	m = m.From(k)
	m.last = k
	return m
}

// Matching returns those of m for which match returns true; only these are counted then.
// match must not keep or change the message. It is called under a mutex of the proxy and
// must not call it.
func (m Messages) Matching(match func(message []byte) bool) Messages {
	m.match = match
	return m
}

type action int

const (
	pass action = iota
	hold
	lose
	drop
	delay
)

// Fault is what happens to some messages of a Proxy, until it is healed. All methods are
// safe for concurrent use.
type Fault struct {
	p        *Proxy
	messages Messages
	act      action
	latency  time.Duration
	seq      int           // of the proxy's faults
	healed   chan struct{} // closed by Heal
	hit      chan struct{} // closed by the first message that it befalls

	seen, hits int // p.mu guards them
}

// Hold keeps messages back until Heal, which delivers them. What comes behind one on the
// same connection waits with it; other connections pass on. A client that hangs up
// meanwhile does not take back what it sent.
func (p *Proxy) Hold(m Messages) *Fault { return p.begin(m, hold, 0) }

// Lose breaks the connection of a message instead of delivering it.
func (p *Proxy) Lose(m Messages) *Fault { return p.begin(m, lose, 0) }

// Drop takes messages out and keeps their connection.
func (p *Proxy) Drop(m Messages) *Fault { return p.begin(m, drop, 0) }

// Delay delivers messages d later, in their order. It does not limit how many are under
// way, and does not delay the making of a connection.
func (p *Proxy) Delay(m Messages, d time.Duration) *Fault { return p.begin(m, delay, d) }

func (p *Proxy) begin(m Messages, act action, latency time.Duration) *Fault {
	f := &Fault{p: p, messages: m, act: act, latency: latency, healed: make(chan struct{}), hit: make(chan struct{})}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.seq++
	f.seq = p.seq
	p.faults = append(p.faults, f)
	return f
}

// Heal ends the fault. It may be called more than once.
func (f *Fault) Heal() {
	f.p.mu.Lock()
	defer f.p.mu.Unlock()
	if i := slices.Index(f.p.faults, f); i >= 0 {
		f.p.faults = slices.Delete(f.p.faults, i, i+1)
		close(f.healed)
	}
}

// Hit is closed when the fault has befallen a message.
func (f *Fault) Hit() <-chan struct{} { return f.hit }

// Hits is how many messages the fault has befallen.
func (f *Fault) Hits() int {
	f.p.mu.Lock()
	defer f.p.mu.Unlock()
	return f.hits
}

// next counts data at the faults that began after the seq-th, up to the first that
// befalls it, and returns that one, or nil.
func (p *Proxy) next(d direction, data []byte, seq int) *Fault {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, f := range p.faults {
		if f.seq > seq && f.act != delay && f.befalls(d, data) {
			return f
		}
	}
	return nil
}

// delay is for how long data is under way.
func (p *Proxy) delay(d direction, data []byte) (latency time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, f := range p.faults {
		if f.act == delay && f.befalls(d, data) {
			latency += f.latency
		}
	}
	return latency
}

// befalls counts data and reports whether the fault is about it. p.mu is held.
func (f *Fault) befalls(d direction, data []byte) bool {
	m := f.messages
	if !m.directions[d] || m.match != nil && !m.match(data) {
		return false
	}
	f.seen++
	if f.seen < m.first || m.last > 0 && f.seen > m.last {
		return false
	}
	if f.hits == 0 {
		close(f.hit)
	}
	f.hits++
	return true
}
