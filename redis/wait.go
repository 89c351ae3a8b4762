package redis

import (
	"context"
	"time"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/internal/storekit"
)

// wait stands in line until the lock is granted, or ctx or the Locker ends. The place in
// line is the caller's to undo. begun is when the Acquire began.
//
// A waiter claims when a release has woken it, when the server said that a claim may succeed
// (a holder's TTL or the heartbeat of the first waiter ends), and at each recheck, which
// keeps the place. Each claim verifies by itself, and its Start is taken before it is sent,
// so a wake-up is only a hint.
func (a *acquisition) wait(ctx context.Context, begun time.Time) (lock.Grant, error) {
	l := a.l
	box := l.registry.Join(a.req.Owner)
	defer l.registry.Leave(a.req.Owner, box)
	w := storekit.Wait{
		Request: a.req, Mailbox: box, Closed: l.closed, Classify: classify, Recheck: l.registry.Recheck,
		Begun: begun,
		Claim: func(ctx context.Context, _ bool) (lock.Grant, *storekit.Refusal, error) { return a.send(ctx) },
	}
	g, err := w.Run(ctx)
	if err != nil {
		return lock.Grant{}, err
	}
	return a.grant(g.Token, g.Start), nil
}
