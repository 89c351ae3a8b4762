package zookeeper

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/go-zookeeper/zk"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/internal/storekit"
)

// wait is an Acquire that waits: until its node is first in line.
func (a *acquisition) wait(ctx context.Context) (lock.Grant, error) {
	w := storekit.Wait{
		Request: a.req, Mailbox: a.c.box, Closed: a.l.done, Classify: classify, Claim: a.claim, Recheck: a.l.recheck,
	}
	return w.Run(ctx)
}

// recheck is how long a waiter with that TTL goes without a look at its place.
func (l *Locker) recheck(ttl time.Duration) time.Duration {
	return storekit.Recheck(ttl, l.deaf.Load())
}

// afterOurs makes a wait for the node right in front of it if that is a claim of this
// Locker: nothing can come between the two, so there is no need to look at the line. Where
// Request.Waiting is to be told, what is known without a look must be enough for that.
func (a *acquisition) afterOurs() bool {
	l, c := a.l, a.c
	if !a.req.Wait || a.count == 0 { // then that claim's node has gone, though nobody has heard so yet
		return false
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	before := l.places[place{c.key, c.node.seq - 1}]
	if c.phase != waiting || before == nil || before.session != c.session || c.shared && before.shared {
		return false
	}
	rec, all := l.known(c, a.count)
	if !all && a.req.Waiting != nil {
		return false
	}
	l.follow(c, before.place())
	a.front, a.ours, a.seen = before.node, true, rec
	return true
}

// known is what is known, without a look at the line, of those in front of c: that many nodes. It
// is all that a Record tells if this Locker has the holder, which is exclusive, and the first
// waiters. l.mu is held.
func (l *Locker) known(c *claim, count int) (rec lock.Record, all bool) {
	rec = lock.Record{Key: c.key}
	head := l.heads[c.key]
	if head == nil || head.session != c.session {
		return rec, false
	}
	rec.Token, rec.HolderCount, rec.WaiterCount = head.token, 1, count-1
	rec.Holders = []lock.Holder{{Owner: head.owner, Token: head.token, Held: -1, ExpiresIn: -1, Metadata: note(head.data).Metadata}}
	shown := min(rec.WaiterCount, lock.MaxRecord)
	for seq := head.node.seq + 1; seq != c.node.seq && len(rec.Waiters) < shown && seq-head.node.seq <= maxGaps; seq++ {
		if w := l.places[place{c.key, seq}]; w != nil && !w.node.try {
			rec.Waiters = append(rec.Waiters, lock.Waiter{Owner: w.owner, Shared: w.shared})
		}
	}
	return rec, len(rec.Waiters) == shown
}

// maxGaps is how many places behind the holder are looked at for the first waiters: some have been
// left, and some are of other Lockers.
const maxGaps = 4 * lock.MaxRecord

// maxLooks is how often a try looks: tries that saw the last holder have left by the fourth.
const maxLooks = 5

// look reads the line. It reports whether a is first; else a.seen has who is in front, and a
// waits for the last of them, if it asked to.
//
// A try looks again if none but tries are in its way, since they may be about to leave: if each took
// the next for the holder, a free key could be refused without end. A refused try leaves within two
// round trips of its last look. So one that is still there at the next look, after two, is the holder.
func (a *acquisition) look(ctx context.Context) (first bool, err error) {
	for range maxLooks {
		last := a.front
		first, err = a.lookOnce(ctx)
		if first || err != nil || a.req.Wait || a.front.name == "" || a.front == last {
			break
		}
		a.start = time.Time{} // it has waited since
	}
	return first, err
}

func (a *acquisition) lookOnce(ctx context.Context) (first bool, err error) {
	l, c := a.l, a.c
	last := a.front
	a.front = node{}
	if err := a.current(); err != nil {
		return false, err
	}
	line, err := l.line(ctx, c.key)
	if err != nil {
		return false, err
	}
	a.disown(line)
	front, first, present := ahead(line, c.node)
	if !present {
		return false, errGone
	}
	if first {
		return true, nil
	}
	before := line[:slices.IndexFunc(line, func(n node) bool { return n.name == c.node.name })]
	if a.req.Wait {
		a.follow(front)
	} else if a.front = firstTry(before, c.shared); a.front.name != "" && a.front == last {
		return false, nil // a.seen has it
	}
	if a.req.Wait && (a.req.Waiting == nil || a.seen.Key != "") { // nobody is told
		l.mu.Lock()
		defer l.mu.Unlock()
		a.seen, _ = l.known(c, len(before))
		return false, nil
	}
	rec, err := l.inFront(ctx, c.key, before)
	if err != nil {
		a.front = node{} // what is in front is not known: the next claim looks again
		return false, err
	}
	a.seen = rec
	return false, nil
}

// current returns an error if a's wait is over, and errGone if its node went with a session, or with a
// grant that has ended already.
func (a *acquisition) current() error {
	l, c := a.l, a.c
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case c.undone:
		return storekit.ErrUndone
	case c.refused != nil:
		return c.refused
	case c.phase == ended, l.conn.SessionID() != c.session:
		return errGone
	}
	return nil
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

// follow makes a wait for front: by way of its claim if that is ours, else by a watch.
func (a *acquisition) follow(front node) {
	l, c := a.l, a.c
	p := place{c.key, front.seq}
	l.mu.Lock()
	ours := l.places[p]
	if c.phase == waiting {
		l.follow(c, p)
	}
	a.front, a.ours = front, ours != nil && ours.node.name == front.name
	l.mu.Unlock()
	if !a.ours {
		l.watch(p, l.path(c.key, front.name))
	}
}

// inPlace is the recheck of a waiter that nobody has woken: it reports whether the one in
// front, and a's own session, are still there.
func (a *acquisition) inPlace(ctx context.Context) bool {
	if a.current() != nil {
		return false
	}
	front := a.l.path(a.c.key, a.front.name) // now: given up, the call may read it while a goes on
	exists, err := call(ctx, func() (bool, error) {
		exists, _, err := a.l.conn.Exists(front)
		return exists, err
	})
	if err == nil && !exists && !a.ours {
		a.l.deaf.Store(true) // there was a watch, and no event: till one comes
	}
	return err == nil && exists
}

// verify proves by a write that a's node is there, and so its session. It returns the time
// before the write was sent. The write also makes the time of the grant the node's mtime.
func (a *acquisition) verify(ctx context.Context) (start time.Time, err error) {
	l, c := a.l, a.c
	u := &unit{ops: []any{&zk.SetDataRequest{Path: l.path(c.key, c.node.name), Data: c.data, Version: -1}}}
	err = l.lane.do(ctx, u)
	switch {
	case errors.Is(err, zk.ErrNoNode), err == nil && u.session != 0 && u.session != c.session:
		return start, errGone
	case err == nil && u.session == 0:
		return start, zk.ErrSessionMoved
	case err != nil: // u may be under way still
		return start, err
	}
	return u.start, nil
}
