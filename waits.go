package lock

import (
	"context"
	"maps"
	"slices"
	"time"
)

// This file is about the waits of calls whose ctx carries leases. The cycles among those of one
// Client are found here, without the store. Each begins with a wait: a grant begins no wait,
// and a lease that nobody waits under keeps nobody waiting for ever. So it is enough to look
// when a wait begins, and the one that would close a cycle is its only victim.

// waitUnder is the wait of a call under leases, from await to arrive. The engine's mutex guards
// all but under, which does not change.
type waitUnder struct {
	under  []string       // the owners of the leases, as a Request names them
	owner  string         // of the call's try
	also   *call          // another one that waits for the key
	victim *DeadlockError // what has ended the call
}

// owners are those of the leases that c carries, the innermost first, as many as a Request may
// tell of. They may be of several Clients: an owner is unique.
func (c *fnContext) owners() []string {
	var owners [MaxRecord]string
	n := 0
	for ; c != nil && n < len(owners); c = c.outer {
		l := c.lease
		l.e.mu.Lock()
		if l.live() {
			owners[n] = l.grant.Owner
			n++
		}
		l.e.mu.Unlock()
	}
	return slices.Clone(owners[:n])
}

// live are the leases of e that c carries and that have not ended. e.mu is held.
func (c *fnContext) live(e *engine) (live []*Lease) {
	for ; c != nil; c = c.outer {
		if l := c.lease; l.e == e && l.live() {
			live = append(live, l)
		}
	}
	return live
}

// blockedBy reports whether k waits until l is released.
func (k *call) blockedBy(l *Lease) bool {
	return k.key == l.grant.Key && (!k.cfg.shared || !l.grant.Shared)
}

// await notes that k waits for its key, if it does so under leases. It returns an error, and
// notes nothing, if that would be a deadlock.
func (k *call) await() error {
	if !k.waits() || k.under == nil {
		return nil
	}
	owners := k.under.owners()
	if len(owners) == 0 {
		return nil
	}
	var s section
	s.enter(&k.c.engine)
	defer s.leaveLater()
	k.nested = &waitUnder{under: owners, also: s.e.waits[k.key]}
	if cycle := s.cycle(k); cycle != nil {
		k.nested = nil
		return &DeadlockError{Deadlock{cycle}}
	}
	s.e.waits[k.key] = k
	return nil
}

// arrive ends k's wait.
func (s *section) arrive(k *call) {
	if k.nested == nil {
		return
	}
	first := s.e.waits[k.key]
	for at := &first; *at != nil; at = &(*at).nested.also {
		if *at == k {
			*at = k.nested.also
			break
		}
	}
	if k.nested = nil; first == nil {
		delete(s.e.waits, k.key)
	} else {
		s.e.waits[k.key] = first
	}
}

// claim is a lease that stands in somebody's way.
type claim struct {
	lease *Lease
	call  *call  // which waits under it
	next  *claim // what that one waits for; nil if call is k itself
}

// cycle is the one that a wait of k would close, or nil. It looks for those who wait for k's
// leases, then for those who wait for theirs, until it comes to a lease that k waits for.
func (s *section) cycle(k *call) []DeadlockWait {
	if len(s.e.waits) == 0 {
		return nil
	}
	var claims []*claim
	add := func(c *call, next *claim) {
		for _, l := range c.under.live(s.e) {
			claims = append(claims, &claim{l, c, next})
		}
	}
	add(k, nil)
	seen := make(map[*call]bool)
	for len(claims) > 0 {
		c := claims[0]
		claims = claims[1:]
		if k.blockedBy(c.lease) {
			return s.tellCycle(k, c)
		}
		for o := s.e.waits[c.lease.grant.Key]; o != nil; o = o.nested.also {
			if !seen[o] && o.blockedBy(c.lease) {
				seen[o] = true
				add(o, c)
			}
		}
	}
	return nil
}

// tellCycle is the cycle from k, which waits for c, and so on.
func (s *section) tellCycle(k *call, c *claim) (cycle []DeadlockWait) {
	for ; c != nil; k, c = c.call, c.next {
		cycle = append(cycle, DeadlockWait{Key: k.key, Waiter: s.waiter(k), For: c.lease.grant.Owner})
	}
	return cycle
}

// waiter is what a Record says of k.
func (s *section) waiter(k *call) Waiter {
	return Waiter{
		Owner: k.nested.owner, Shared: k.cfg.shared, Waited: s.now - k.mark.at,
		Metadata: maps.Clone(k.cfg.metadata), Under: slices.Clone(k.nested.under),
	}
}

// asks notes the owner by which k asks.
func (k *call) asks(owner string) {
	k.c.engine.mu.Lock()
	defer k.c.engine.mu.Unlock()
	k.nested.owner = owner
}

// lookOut has the Client look for deadlocks, every now and then until ctx ends.
func (k *call) lookOut(ctx context.Context) {
	t := time.NewTicker(k.cfg.detect)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
			k.c.look(k.cfg.detect)
		}
	}
}

// look looks for deadlocks across Clients, and ends those of c's calls that are the victims. One
// look is for all of them: however many wait, there are no more than two in the time that
// each waits before it looks.
func (c *Client) look(every time.Duration) {
	e := &c.engine
	mine := e.beginLook(every)
	if len(mine) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(e.bg, Patience)
	defer cancel()
	// An error of the store is no reason to give up: the waits themselves may go on.
	found, _ := findDeadlocks(ctx, c.detector, true, mine)
	var s section
	s.enter(e)
	defer s.leave()
	e.looking = false
	for _, d := range found {
		victim := d.Cycle[0]
		for k := e.waits[victim.Key]; k != nil; k = k.nested.also {
			if w := k.nested; w.owner == victim.Waiter.Owner && w.victim == nil {
				w.victim = &DeadlockError{d}
				s.note(chore{ends: [2]context.CancelCauseFunc{k.cancel}, cause: w.victim})
			}
		}
	}
}

// beginLook returns the waits that are to look now; none if another look is under way, or has
// just been.
func (e *engine) beginLook(every time.Duration) (mine []DeadlockWait) {
	var s section
	s.enter(e)
	defer s.leave()
	if e.looking || s.now < e.lookedAt+every/2 {
		return nil
	}
	for _, k := range e.waits {
		for ; k != nil; k = k.nested.also {
			if d := k.cfg.detect; d > 0 && s.now-k.mark.at >= d {
				mine = append(mine, DeadlockWait{Key: k.key, Waiter: s.waiter(k)})
			}
		}
	}
	if len(mine) > 0 {
		e.looking, e.lookedAt = true, s.now
	}
	return mine
}
