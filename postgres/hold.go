package postgres

import (
	"context"
	"time"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/internal/storekit"
)

// Renew implements [lock.Locker].
func (l *Locker) Renew(ctx context.Context, g lock.Grant) (lock.Grant, error) {
	if err := storekit.CheckRenewal(g); err != nil {
		return lock.Grant{}, err
	}
	if err := l.ready(ctx); err != nil {
		return lock.Grant{}, err
	}
	g.TTL = roundUp(g.TTL)
	start, reply := time.Now(), ""
	var err error
	if !g.Shared {
		reply, _, err = l.db.text(ctx, l.sql.extend, []byte(g.Key), g.Owner, int64(g.Token), g.TTL)
	}
	if err == nil && reply == "" {
		start = time.Now()
		reply, _, err = l.db.text(ctx, l.sql.renew, []byte(g.Key), g.Owner, int64(g.Token), g.Shared, g.TTL)
	}
	if err == nil {
		err = lost(reply, g)
	}
	g.Start = start
	return l.registry.Renewed(g, err)
}

// Release implements [lock.Locker]. If a reply is lost, Release asks again. It returns nil if it
// then finds the grant gone before the grant can have expired: the first request must have
// released it.
func (l *Locker) Release(ctx context.Context, g lock.Grant) error {
	if err := lock.CheckGrant(g); err != nil {
		return err
	}
	if err := l.ready(ctx); err != nil {
		return err
	}
	l.registry.Drop(g.Owner)
	return l.doubts.Release(ctx, g, l.end, l.undo)
}

// end ends a grant, an exclusive one by the plain statement unless somebody may wait.
func (l *Locker) end(ctx context.Context, g lock.Grant) error {
	var doubt bool
	if !g.Shared && l.free.has(g.Key) {
		reply, unsure, err := l.db.text(ctx, l.sql.drop, []byte(g.Key), g.Owner, int64(g.Token))
		if err != nil || reply == done {
			return err
		}
		doubt = unsure
	}
	reply, unsure, err := l.handOver(ctx, g)
	switch {
	case err != nil:
		return err
	case (doubt || unsure) && reply != forced && storekit.Vanished(g) == 0:
		return nil // by the first sending
	}
	return lost(reply, g)
}

func (l *Locker) undo(ctx context.Context, g lock.Grant) error {
	_, _, err := l.telling(ctx, l.sql.undo, []byte(g.Key), g.Owner, storekit.UndoLife)
	return err
}

// telling runs a function that ends a grant and notifies those who wait for that. Where they
// cannot be (the right is missing, or the server's queue is full, which it says when it commits),
// it ends all the same, and they find out by themselves.
func (l *Locker) telling(ctx context.Context, sql string, args ...any) (reply string, unsure bool, err error) {
	reply, unsure, err = l.db.text(ctx, sql, append(args, true)...)
	if s := state(err); s == insufficientPrivilege || s == programLimit {
		var again bool
		reply, again, err = l.db.text(ctx, sql, append(args, false)...)
		unsure = unsure || again
	}
	return reply, unsure, err
}

const (
	done   = "1" // the reply of functions that have done what they were asked
	forced = "3" // of those that find that the grant was ended by force
)

// lost reads the reply to a renewal or a release.
func lost(reply string, g lock.Grant) error {
	switch reply {
	case done:
		return nil
	case "0":
		return &lock.LostError{Reason: storekit.Vanished(g), Token: g.Token}
	case "2":
		return &lock.LostError{Reason: lock.ReasonTaken, Token: g.Token}
	case forced:
		return &lock.LostError{Reason: lock.ReasonForced, Token: g.Token}
	}
	return unexpected(reply)
}
