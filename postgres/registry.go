package postgres

import (
	"context"
	"strings"
	"sync"
	"time"

	"github.com/seed-215fdefa/lock"
)

// registry is who waits here, and who wants to hear of a loss.
type registry struct {
	ctx    context.Context // ends with the Locker
	cancel context.CancelFunc

	mu      sync.Mutex // guards the rest; held for no I/O and no callback
	waiters map[string]*place
	holders map[string]*holder
	sweepAt int // how many holders are enough to look for dead ones
}

func newRegistry() *registry {
	r := &registry{waiters: make(map[string]*place), holders: make(map[string]*holder)}
	r.ctx, r.cancel = context.WithCancel(context.Background())
	return r
}

// place is where a waiter listens. Both channels have room for one.
type place struct {
	wakeup  chan struct{}
	granted chan handover
}

// handover is a grant that the release of another holder in this process brought.
type handover struct {
	token lock.Token
	start time.Time
}

// holder is who has a grant, or asks for one, and wants to hear of its loss.
type holder struct {
	lost  func(lock.LostReason)
	until time.Time // the end of the grant; zero while it is asked for
}

// wait registers a waiter until leave.
func (r *registry) wait(owner string) *place {
	p := &place{make(chan struct{}, 1), make(chan handover, 1)}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.waiters[owner] = p
	return p
}

func (r *registry) leave(owner string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.waiters, owner)
}

// hold registers a holder's callback, before its grant can be forced. It is called until
// drop, or until the end that keep has told. Now and then those are forgotten whose grants
// ended without a release.
func (r *registry) hold(owner string, lost func(lock.LostReason)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.holders[owner] = &holder{lost: lost}
	if len(r.holders) < r.sweepAt {
		return
	}
	now := time.Now()
	for o, h := range r.holders {
		if !h.until.IsZero() && now.After(h.until) {
			delete(r.holders, o)
		}
	}
	r.sweepAt = max(64, 2*len(r.holders))
}

// keep tells when g, which was granted or renewed, ends.
func (r *registry) keep(g lock.Grant) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if h := r.holders[g.Owner]; h != nil {
		h.until = g.Start.Add(g.TTL)
	}
}

// drop forgets a holder: its callback is not called any more, unless that has begun.
func (r *registry) drop(owner string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.holders, owner)
}

// heard takes the payload of a notification.
func (r *registry) heard(payload string) {
	if owner, ok := strings.CutPrefix(payload, "wake "); ok {
		r.wake(owner)
	} else if owner, ok := strings.CutPrefix(payload, "forced "); ok {
		r.forced(owner)
	}
}

func (r *registry) wake(owner string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if p := r.waiters[owner]; p != nil {
		signal(p.wakeup)
	}
}

func (r *registry) wakeAll() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, p := range r.waiters {
		signal(p.wakeup)
	}
}

// granted passes a grant to its waiter. If that has given up, its undo, which is sent after
// it has, finds the grant.
func (r *registry) granted(owner string, h handover) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if p := r.waiters[owner]; p != nil {
		select {
		case p.granted <- h:
		default: // it has this grant already
		}
	}
}

// forced takes the callback out before it is called, so that it is called at most once.
func (r *registry) forced(owner string) {
	r.mu.Lock()
	h := r.holders[owner]
	delete(r.holders, owner)
	r.mu.Unlock()
	if h != nil {
		h.lost(lock.ReasonForced)
	}
}

// signal never blocks: one wake-up that has not been seen yet is as good as two.
func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
