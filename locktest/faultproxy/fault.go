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

// Messages selects the messages that a fault affects.
type Messages struct {
	directions [2]bool
	first      int // counted from 1
	last       int // 0 is no end
	match      func(message []byte) bool
}

// Requests returns all messages from the client to the server.
func Requests() Messages { return Messages{directions: [2]bool{toServer: true}, first: 1} }

// Replies returns all messages from the server to the client.
func Replies() Messages { return Messages{directions: [2]bool{toClient: true}, first: 1} }

// All returns the messages of both directions, counted together.
func All() Messages { return Messages{directions: [2]bool{true, true}, first: 1} }

// From returns the k-th of m and all after it. k counts from 1; From panics if it is below 1.
func (m Messages) From(k int) Messages {
	if k < 1 {
		panic(fmt.Sprintf("faultproxy: message %d: they are counted from 1", k))
	}
	m.first, m.last = k, 0
	return m
}

// Nth returns only the k-th of m. k counts from 1; Nth panics if it is below 1.
func (m Messages) Nth(k int) Messages {
	m = m.From(k)
	m.last = k
	return m
}

// Matching returns the messages of m for which match returns true, and counts only these. match
// must not keep or change the message. It runs under a mutex of the proxy, so it must not call
// the proxy.
func (m Messages) Matching(match func(message []byte) bool) Messages {
	m.match = match
	return m
}

type action int

const (
	pass action = iota
	hold
	lose
	tear
	drop
	delay
)

// Fault affects some messages of a Proxy until it is healed. All methods are safe for concurrent
// use.
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

// Hold keeps messages back until Heal, which delivers them. Later messages on the same
// connection wait with them; other connections go on. If the client hangs up meanwhile, its
// messages are delivered all the same.
func (p *Proxy) Hold(m Messages) *Fault { return p.begin(m, hold, 0) }

// Lose breaks the connection of a message instead of delivering it.
func (p *Proxy) Lose(m Messages) *Fault { return p.begin(m, lose, 0) }

// Tear delivers a message without its last byte and then breaks its connection, like a server
// killed while it writes.
func (p *Proxy) Tear(m Messages) *Fault { return p.begin(m, tear, 0) }

// Drop removes messages; their connection lives on.
func (p *Proxy) Drop(m Messages) *Fault { return p.begin(m, drop, 0) }

// Delay delivers messages d later, in their order. Up to 256 may be under way in each direction of
// a connection. Delay does not delay connecting.
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

// Hit returns a channel that is closed when the fault has affected a message.
func (f *Fault) Hit() <-chan struct{} { return f.hit }

// Hits returns how many messages the fault has affected.
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
