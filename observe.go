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
	// Call Close in a goroutine of its own: it waits for the functions of Do, and one of them
	// may be what tells of a loss, by a call of a Lease's method.
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
//     EventReleasedLost of the same Owner. With [WithMinHold] that comes when the key is
//     released, not when Do returns; from Close, which leaves the key to its TTL, it is an
//     EventReleased with ErrClosed.
//
// A Do, TryDo, Lock or TryLock whose arguments are valid ends with an EventGranted or an
// EventFailed. A grant that arrives too late is granted and lost; the call then asks again
// with another Owner, or ends with an EventFailed without an Owner. A DoAll has the
// events of one such call for each key that it asks for. A nested call that runs under an outer lease
// ([WithReentrant]) has no events.
const (
	EventContended    EventKind = iota + 1 // the key is held, and the call waits
	EventGranted                           // the lease begins
	EventFailed                            // the call has no lease; Err says why
	EventRenewed                           // the lease's TTL was restarted
	EventRenewFailed                       // one renewal failed, and will be retried; Err says why
	EventLost                              // the lease was lost; Err is a *LostError
	EventReleased                          // the lease was released, after its minimum hold; Err is the store's if it has not confirmed
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
	Waited     time.Duration // EventContended, EventGranted, EventFailed: since the call began to ask for Key
	Held       time.Duration // EventLost, EventReleased, EventReleasedLost: since the grant began
	Slack      time.Duration // EventRenewed, EventRenewFailed: until the deadline before the renewal
	Err        error
}

// outbox keeps the events of one Owner in order. It is guarded by the engine's mutex.
type outbox struct {
	events []pending
	busy   bool // somebody is telling them, and goes on until there are no more
}

// pending is an event that is to be told.
type pending struct {
	ctx context.Context
	Event
}

// tell has l's observers told of ev when the section is over.
func (s *section) tell(ctx context.Context, l *Lease, ev Event) {
	if l.post(ctx, ev) {
		s.note(chore{tell: l})
	}
}

// post puts ev into l's outbox, and reports whether there is anybody to tell. e.mu is held.
func (l *Lease) post(ctx context.Context, ev Event) bool {
	if len(l.cfg.observers) == 0 {
		return false
	}
	ev.Store, ev.Key, ev.Shared, ev.Token = l.e.name, l.grant.Key, l.grant.Shared, l.grant.Token
	if ev.Kind != EventFailed || l.grant.Token == 0 {
		ev.Owner = l.grant.Owner
	}
	if l.events == nil {
		l.events = new(outbox)
	}
	l.events.events = append(l.events.events, pending{ctx, ev})
	return true
}

// observe tells l's events, unless somebody is at it: then he goes on with them, and an
// Observer that has caused one need not wait for itself.
func (l *Lease) observe() {
	e, box := l.e, l.events
	e.mu.Lock()
	if box.busy {
		e.mu.Unlock()
		return
	}
	box.busy = true
	defer func() { // also if an Observer panics
		box.busy = false
		e.mu.Unlock()
	}()
	for len(box.events) > 0 {
		p := box.events[0]
		box.events = box.events[1:]
		e.mu.Unlock()
		func() {
			defer e.mu.Lock()
			for _, o := range l.cfg.observers {
				o.Observe(p.ctx, p.Event)
			}
		}()
	}
}
