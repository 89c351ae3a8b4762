package zookeeper

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/go-zookeeper/zk"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/internal/storekit"
)

// stand waits until a's node is first in line. start is from before the node was created,
// and counts only if it was first from then on; zero if that is not known. After any wait
// the node is verified by a write, whose own start counts: the session may have expired
// while nobody said so.
func (a *acquisition) stand(ctx context.Context, start time.Time) (lock.Grant, error) {
	ttl := a.c.ttl // nobody changes it before the wait for the one in front has begun
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	look := !a.afterOurs()
	for {
		beat := a.l.recheck(ttl)
		pause := beat
		if look {
			first, err := a.try(ctx, &start)
			if err == nil && first {
				return a.granted(start)
			}
			if err == nil {
				a.t.reset()
			} else if errors.Is(err, lock.ErrUnavailable) { // within patience
				if a.t.last != nil {
					err = fmt.Errorf("%w: %w", err, a.t.last)
				}
				return lock.Grant{}, err
			} else if !isTransient(err) || a.t.over(err) {
				return lock.Grant{}, a.t.end(ctx, err)
			} else {
				pause = a.t.wait()
			}
		}
		start = time.Time{}
		timer.Reset(pause)
		select {
		case at := <-a.c.handed:
			return a.granted(at)
		case <-a.c.wake:
			look = true
			select {
			case at := <-a.c.handed: // the better news
				return a.granted(at)
			default:
			}
		case <-timer.C:
			look = pause < beat || !a.inPlace(ctx)
		case <-ctx.Done():
			return lock.Grant{}, a.heldBy(ctx, a.t.last)
		case <-a.l.done.Done():
			return lock.Grant{}, lock.ErrClosed
		}
	}
}

// try looks, and verifies a's node if that is first and start zero: then start is set.
func (a *acquisition) try(ctx context.Context, start *time.Time) (first bool, err error) {
	err = storekit.WithinPatience(ctx, func(ctx context.Context) (err error) {
		if first, err = a.look(ctx); err == nil && first && start.IsZero() {
			*start, err = a.verify(ctx)
		}
		return err
	})
	return first, err
}

// recheck is how long a waiter with that TTL goes without a look: a third of its heartbeat, or a
// tenth while events do not arrive.
func (l *Locker) recheck(ttl time.Duration) time.Duration {
	if l.deaf.Load() {
		return storekit.Heartbeat(ttl) / 10
	}
	return storekit.Heartbeat(ttl) / 3
}

// afterOurs makes a wait for the node right in front of it if that is a claim of this
// Locker: nothing can come between the two, so there is no need to look at the line. Request.Waiting
// is told what is known without a look, if that is enough.
func (a *acquisition) afterOurs() bool {
	l, c := a.l, a.c
	if !a.req.Wait {
		return false
	}
	tell := a.req.Waiting != nil && !a.told
	l.mu.Lock()
	before := l.places[place{c.key, c.node.seq - 1}]
	ours := c.phase == waiting && before != nil && before.session == c.session && (!c.shared || !before.shared)
	if ours && tell {
		a.seen, ours = l.ourLine(c, a.behind)
	}
	if ours {
		l.follow(c, before.place())
		a.front, a.nobody = before.node, true
		a.seen.Key = c.key
	}
	l.mu.Unlock()
	if ours && tell {
		a.told = true
		a.req.Waiting(a.seen)
	}
	return ours
}

// ourLine is what is known, without a look at the line, of those in front of c, when it came: that many
// nodes. It is not ok unless this Locker has the holder, which is exclusive, and the first waiters.
// l.mu is held.
func (l *Locker) ourLine(c *claim, count int) (rec lock.Record, ok bool) {
	head := l.heads[c.key]
	if head == nil || head.session != c.session {
		return rec, false
	}
	rec = lock.Record{Key: c.key, Token: head.token, Holders: []lock.Holder{l.known(head)}, HolderCount: 1, WaiterCount: count - 1}
	shown := min(rec.WaiterCount, lock.MaxRecord)
	for seq := head.node.seq + 1; seq != c.node.seq && len(rec.Waiters) < shown && seq-head.node.seq <= maxGaps; seq++ {
		if w := l.places[place{c.key, seq}]; w != nil {
			rec.Waiters = append(rec.Waiters, lock.Waiter{Owner: w.owner, Shared: w.shared})
		}
	}
	return rec, len(rec.Waiters) == shown
}

// maxGaps is how many places behind the holder are looked at for the first waiters: some have been
// left, and some are of other Lockers.
const maxGaps = 4 * lock.MaxRecord

// known is what is known of a holder of ours without asking. l.mu is held.
func (l *Locker) known(c *claim) lock.Holder {
	return lock.Holder{
		Owner: c.owner, Token: c.token, Shared: c.shared, Held: -1, ExpiresIn: -1, Metadata: metadata(c.data),
	}
}

// look reads the line. It reports whether a is first; else a waits for the one in front of
// it, or is refused if it did not ask to wait.
func (a *acquisition) look(ctx context.Context) (first bool, err error) {
	l, c := a.l, a.c
	if err := a.current(); err != nil {
		return false, err
	}
	line, err := l.line(ctx, c.key)
	if err != nil {
		return false, err
	}
	a.disown(line)
	front, first, present := ahead(line, c.node)
	switch {
	case !present:
		return false, errGone
	case first:
		return true, nil
	case !a.req.Wait:
		return false, a.refused(ctx, line)
	}
	a.wait(front)
	a.seen = lock.Record{Key: c.key}
	if a.req.Waiting != nil && !a.told {
		if a.seen, err = l.inFront(ctx, c.key, before(line, c.node)); err != nil {
			return false, err
		}
		a.told = true
		a.req.Waiting(a.seen)
	}
	return false, nil
}

// before is the part of line in front of n.
func before(line []node, n node) []node {
	return line[:max(0, slices.IndexFunc(line, func(m node) bool { return m.name == n.name }))]
}

// current returns errGone if a's node is of a session that has ended.
func (a *acquisition) current() error {
	if a.l.conn.SessionID() != a.c.session {
		return errGone
	}
	if undone := a.l.isUndone(a.c); undone {
		return errUndone
	}
	return nil
}

func (r *registry) isUndone(c *claim) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return c.undone || c.phase == ended
}

// disown deletes other nodes of a's owner: of a session that has ended and is about to take
// them with it, or of a request that was given up.
func (a *acquisition) disown(line []node) {
	for _, n := range line {
		if n.owner == a.c.owner && n.name != a.c.node.name {
			a.l.discard(a.l.path(a.c.key, n.name))
		}
	}
}

// wait makes a wait for front: by way of its claim if that is ours, else by a watch.
func (a *acquisition) wait(front node) {
	l, c := a.l, a.c
	p := place{c.key, front.seq}
	l.mu.Lock()
	ours := l.places[p]
	if c.phase == waiting {
		l.follow(c, p)
	}
	a.front, a.nobody = front, ours != nil && ours.node.name == front.name
	l.mu.Unlock()
	if !a.nobody {
		l.watch(p, l.path(c.key, front.name))
	}
}

// inPlace is the recheck of a waiter that nobody has woken: it reports whether the one in
// front, and a's own session, are still there.
func (a *acquisition) inPlace(ctx context.Context) bool {
	if a.current() != nil {
		return false
	}
	exists, err := call(ctx, func() (bool, error) {
		exists, _, err := a.l.conn.Exists(a.l.path(a.c.key, a.front.name))
		return exists, err
	})
	if err == nil && !exists && !a.nobody {
		a.l.deaf.Store(true) // there was a watch, and no event: till one comes
	}
	return err == nil && exists
}

// verify proves by a write that a's node is there, and so its session. It returns the time
// before the write was sent. The write also makes the time of the grant the node's mtime.
func (a *acquisition) verify(ctx context.Context) (start time.Time, err error) {
	l, c := a.l, a.c
	u := &unit{
		size: len(c.data),
		ops:  []any{&zk.SetDataRequest{Path: l.path(c.key, c.node.name), Data: c.data, Version: -1}},
	}
	err = l.lane.do(ctx, u)
	switch {
	case errors.Is(err, zk.ErrNoNode), err == nil && u.session != 0 && u.session != c.session:
		return start, errGone
	case err == nil && u.session == 0:
		return start, zk.ErrConnectionClosed
	case err != nil:
		return start, err
	}
	return u.start, nil
}

// refused takes a's node out of the line, and says who has the lock.
func (a *acquisition) refused(ctx context.Context, line []node) error {
	l, c := a.l, a.c
	l.busy.Add(c.key)
	gone := make(chan error, 1)
	go func() { gone <- l.remove(ctx, c) }()
	var rec lock.Record
	err := again(ctx, l.done, func() (err error) {
		rec, err = l.inFront(ctx, c.key, before(line, c.node))
		return err
	})
	if gone := <-gone; gone != nil {
		err = gone
	}
	if err != nil {
		a.seen = rec
		a.seen.Key = c.key
		return err
	}
	return &lock.HeldError{Record: rec}
}

// heldBy is the error of a wait that ctx ended. trouble is what the store said last, if it was
// in trouble.
func (a *acquisition) heldBy(ctx context.Context, trouble error) error {
	end := storekit.Ended(ctx, nil, trouble)
	if a.seen.Key == "" {
		return end
	}
	if len(a.seen.Holders) == 0 {
		a.seen = a.l.oursInFront(a.c)
	}
	return &lock.HeldError{Record: a.seen, Err: end}
}

// oursInFront is what is known of the holder without asking: when it is a claim of this Locker.
func (l *Locker) oursInFront(c *claim) lock.Record {
	rec := lock.Record{Key: c.key}
	l.mu.Lock()
	defer l.mu.Unlock()
	if head := l.heads[c.key]; head != nil {
		rec.Token, rec.Holders, rec.HolderCount = head.token, []lock.Holder{l.known(head)}, 1
	}
	return rec
}
