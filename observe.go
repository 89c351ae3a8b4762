package lock

import (
	"context"
	"time"
)

// Observer sees what happens to the locks of a [Client], for logs, metrics and traces.
type Observer interface {
	// Observe is called synchronously and under no mutex; it must be safe for concurrent
	// use and should return at once, since the work waits for it. ctx is that of the
	// call the event belongs to, or a background one for renewals and losses.
	Observe(ctx context.Context, e Event)
}

// EventKind says what happened.
type EventKind uint8

// The kinds of an [Event], and what its Elapsed means for each.
const (
	EventContended    EventKind = iota + 1 // the key is taken, and a wait begins; Elapsed: since the call
	EventGranted                           // Elapsed: waited, since the call
	EventFailed                            // no grant, Err says why; Elapsed: since the call
	EventRenewed                           // Elapsed: slack left before the old deadline
	EventRenewFailed                       // one try failed, Err says why; Elapsed: slack left
	EventLost                              // Err is a *LostError; Elapsed: held, since the grant
	EventReleased                          // the hold ended; Elapsed: held. Err: the store's, if it has not confirmed
	EventReleasedLost                      // a release found the grant gone; Err is a *LostError; Elapsed: held
)

// String names the kind in lower case.
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

// Event is one thing that happened to a lock.
type Event struct {
	Kind       EventKind
	Key, Owner string
	Token      Token // 0 before a grant
	Shared     bool
	Queue      int           // Contended: waiters in front
	Elapsed    time.Duration // waited, held, or slack left, by Kind
	Err        error
}
