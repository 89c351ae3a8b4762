package locktest

import (
	"fmt"
	"testing"

	lock "github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/locktest/faultproxy"
)

// Strike is a fault that befalls one message between a Locker and its store, counted from
// when Harness.Strike returns, over all connections of the Locker.
type Strike struct {
	// Reply is for the K-th message from the store, instead of the K-th to it.
	Reply bool
	// Hold keeps the K-th message, and all later ones in its direction, until heal, which
	// delivers them. Without it the K-th is lost, and its connection breaks; later ones pass.
	Hold bool
	// K is counted from 1.
	K int
}

// String is as in "request 2 lost".
func (s Strike) String() string {
	message, fate := "request", "lost"
	if s.Reply {
		message = "reply"
	}
	if s.Hold {
		fate = "held"
	}
	return fmt.Sprintf("%s %d %s", message, s.K, fate)
}

// apply lets s befall p's messages.
func (s Strike) apply(p *faultproxy.Proxy) (struck func() bool, heal func()) {
	messages := faultproxy.Requests()
	if s.Reply {
		messages = faultproxy.Replies()
	}
	var fault *faultproxy.Fault
	if s.Hold {
		fault = p.Hold(messages.From(s.K))
	} else {
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
	return func(_ testing.TB, l lock.Locker, s Strike) (func() bool, func()) { return s.apply(h.Proxy(l)) }
}
