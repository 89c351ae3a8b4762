package lock

import (
	"context"
	"time"
)

// Observer sees what happens to the locks of a [Client], for logs, metrics and traces.
// See [WithObserver].
type Observer interface {
	// Observe is called without a mutex and may call any method of Client and Lease. It
	// must be safe for concurrent use, and should return quickly: the work waits for it.
	// ctx is that of the call which caused the event, or a background one for renewals,
	// losses and releases that nobody waits for.
	//
	// The events of one Owner arrive one after another, in the order in which they
	// happened. Observe gets an event that happens meanwhile, be it caused by Observe
	// itself, when it has returned.
	Observe(ctx context.Context, e Event)
}

// EventKind says what happened.
type EventKind uint8

// The kinds of an [Event].
//
// A call to the store has an Owner, and its events come in pairs:
//
//   - EventContended is followed by exactly one EventGranted or EventFailed of the
//     same Owner. An EventGranted or EventFailed may also come without it.
//   - EventGranted is followed by exactly one EventLost, EventReleased or
//     EventReleasedLost of the same Owner.
//
// A Do, TryDo, Lock or TryLock whose arguments are valid ends with an EventGranted or an
// EventFailed. A grant that arrives too late is granted and lost; the call then asks again
// with another Owner, or ends with an EventFailed without an Owner. A nested call that
// runs under an outer lease ([WithReentrant]) has no events.
const (
	EventContended    EventKind = iota + 1 // the key is held, and the call waits
	EventGranted                           // the lease begins
	EventFailed                            // the call has no lease; Err says why
	EventRenewed                           // the lease's TTL was restarted
	EventRenewFailed                       // one renewal failed, and will be retried; Err says why
	EventLost                              // the lease was lost; Err is a *LostError
	EventReleased                          // the lease was released; Err is the store's if it has not confirmed
	EventReleasedLost                      // the store had lost the lease before its release; Err is a *LostError
)

// String returns the kind in lower case, such as "renew failed".
func (k EventKind) String() string {
	names := [...]string{
		"unknown", "contended", "granted", "failed", "renewed", "renew failed",
		"lost", "released", "released lost",
	}
	if int(k) >= len(names) {
		k = 0
	}
	return names[k]
}

// Event is one thing that happened to a lock. Fields that do not belong to its Kind are
// zero.
type Event struct {
	Kind   EventKind
	Store  string // Capabilities.Store
	Key    string
	Owner  string // identifies the request and its grant; empty if nothing was sent
	Token  Token  // 0 before the grant
	Shared bool

	Queue      int           // EventContended: how many waiters are ahead
	SameClient bool          // EventContended, EventFailed: a lease of this Client holds the key
	Waited     time.Duration // EventContended, EventGranted, EventFailed: since the call began
	Held       time.Duration // EventLost, EventReleased, EventReleasedLost: since the grant began
	Slack      time.Duration // EventRenewed, EventRenewFailed: until the deadline before the renewal
	Err        error
}

// measured is e with d in the field that d has for e's Kind.
func (e Event) measured(d time.Duration) Event {
	switch e.Kind {
	case EventContended, EventGranted, EventFailed:
		e.Waited = d
	case EventRenewed, EventRenewFailed:
		e.Slack = d
	default:
		e.Held = d
	}
	return e
}
