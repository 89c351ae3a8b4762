package locktest

import (
	"fmt"
	"testing"

	lock "github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/locktest/faultproxy"
)

// Strike is a fault of one message between a Locker and its store. Messages count from when
// Harness.Strike returns, over all connections of the Locker.
type Strike struct {
	// Reply selects the K-th message from the store, instead of the K-th to it.
	Reply bool
	// Hold keeps the K-th message, and all later ones in its direction, until heal, which
	// delivers them. Without Hold the K-th message is lost and its connection breaks; later ones
	// pass.
	Hold bool
	// Torn delivers the K-th reply without its last byte, and then breaks the connection. It is
	// set only with Reply, and not with Hold.
	Torn bool
	// K counts from 1.
	K int
}

// String describes s, as in "request 2 lost".
func (s Strike) String() string {
	message, fate := "request", "lost"
	if s.Reply {
		message = "reply"
	}
	switch {
	case s.Hold:
		fate = "held"
	case s.Torn:
		fate = "torn"
	}
	return fmt.Sprintf("%s %d %s", message, s.K, fate)
}

// Apply makes s happen to p's messages, counted from now. Use it in a Harness.Strike if Lockers
// have several servers, with a proxy to each. If they have one, set Harness.Proxy instead.
func (s Strike) Apply(p *faultproxy.Proxy) (struck func() bool, heal func()) {
	messages := faultproxy.Requests()
	if s.Reply {
		messages = faultproxy.Replies()
	}
	var fault *faultproxy.Fault
	switch {
	case s.Hold:
		fault = p.Hold(messages.From(s.K))
	case s.Torn:
		fault = p.Tear(messages.Nth(s.K))
	default:
		fault = p.Lose(messages.Nth(s.K))
	}
	return func() bool { return fault.Hits() > 0 }, fault.Heal
}

// fault returns what does f to a Locker, or nil.
func (h Harness) fault(f Fault) func(testing.TB, lock.Locker) func() {
	if do := h.Faults[f]; do != nil || h.Proxy == nil {
		return do
	}
	switch f {
	case Sever:
		return func(_ testing.TB, l lock.Locker) func() { return h.Proxy(l).Cut() }
	case Freeze:
		return func(_ testing.TB, l lock.Locker) func() { return h.Proxy(l).Freeze() }
	case LoseReply:
		return func(_ testing.TB, l lock.Locker) func() { return h.Proxy(l).HoldReplies() }
	}
	return nil
}

// striker returns what does a Strike to a Locker, or nil.
func (h Harness) striker() func(testing.TB, lock.Locker, Strike) (func() bool, func()) {
	if h.Strike != nil || h.Proxy == nil {
		return h.Strike
	}
	return func(_ testing.TB, l lock.Locker, s Strike) (func() bool, func()) { return s.Apply(h.Proxy(l)) }
}
