package postgres

import (
	"context"
	"encoding/json"
	"fmt"
	"runtime"
	"strconv"
	"time"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/internal/storekit"
)

// wait stands in line. No connection is held meanwhile.
func (a *acquisition) wait(ctx context.Context) (lock.Grant, error) {
	box := a.l.registry.Join(a.req.Owner)
	defer a.l.registry.Leave(a.req.Owner, box)
	w := storekit.Wait{
		Request: a.req, Mailbox: box, Closed: a.l.closed, Classify: classify,
		Claim: a.look, Recheck: a.l.registry.Recheck,
	}
	return w.Run(ctx)
}

// look is claim for a waiter. As long as somebody alive is in front, and nobody has woken it, it
// only keeps its place, which is cheap: no row is locked that others want, and a long line costs
// no more than a short one.
func (a *acquisition) look(ctx context.Context, woken bool) (lock.Grant, *storekit.Refusal, error) {
	if a.last.Key == "" {
		return a.lineUp(ctx)
	}
	if woken || a.ahead == 0 {
		return a.claim(ctx)
	}
	reply, _, err := a.l.db.textWithin(ctx, waiterLimit, a.l.sql.keep, []byte(a.req.Key), a.req.Owner, storekit.Heartbeat(a.req.TTL))
	if err != nil {
		return lock.Grant{}, nil, err
	}
	if a.ahead, err = strconv.Atoi(reply); err != nil || a.ahead == 0 { // it is the first, or its place is gone
		return a.claim(ctx)
	}
	return lock.Grant{}, &storekit.Refusal{Record: a.last, Recheck: a.l.pollAfter(time.Hour, a.ahead)}, nil
}

// lineUp is claim for a newcomer. It may have to wait for the row, so newcomers take turns and leave
// connections to others. While the server answers newcomers, waiting for a turn is no sign of trouble,
// and neither is a claim that ctx cut short.
func (a *acquisition) lineUp(ctx context.Context) (lock.Grant, *storekit.Refusal, error) {
	if err := a.listen(ctx); err != nil {
		return lock.Grant{}, nil, err
	}
	moves := func() bool {
		last := a.l.linedUp.Load()
		return last != nil && storekit.Elapsed(*last) < lock.Patience
	}
	select {
	case a.l.liningUp <- struct{}{}:
		defer func() { <-a.l.liningUp }()
	case <-ctx.Done():
		if moves() {
			return lock.Grant{}, nil, fmt.Errorf("%w: %w", storekit.ErrQueued, ctx.Err())
		}
		return lock.Grant{}, nil, ctx.Err()
	}
	begun := time.Now()
	g, no, err := a.claim(ctx)
	if err == nil {
		now := time.Now()
		a.l.linedUp.Store(&now)
	} else if ctx.Err() != nil && storekit.Elapsed(begun) < lock.Patience/2 && moves() {
		err = storekit.Queued(err)
	}
	return g, no, err
}

// pollAfter is when to look again who was refused: when nothing known is in the way any more, or,
// if nobody wakes it, sooner the nearer it is to the front.
func (l *Locker) pollAfter(end time.Duration, ahead int) time.Duration {
	if l.poll == 0 {
		return end
	}
	return min(end, l.poll*time.Duration(1+ahead))
}

// handOver releases a grant. When the next in line waits in this process too, the same
// statement grants to it, and the reply, for which start was taken before the request was
// sent, is its proof: a hand-over in one round trip. If that reply is lost the waiter finds
// its grant when it looks again, which it is told to do at once.
func (l *Locker) handOver(ctx context.Context, g lock.Grant) (reply string, unsure bool, err error) {
	start := time.Now()
	reply, unsure, err = l.telling(ctx, l.sql.release, []byte(g.Key), g.Owner, int64(g.Token), g.Shared, l.process)
	if err != nil || unsure {
		l.registry.WakeAll()
	}
	if err != nil || len(reply) < 2 {
		if reply == done {
			l.free.add(g.Key) // nobody waits any more
		}
		return reply, unsure, err
	}
	var next struct {
		Owner string
		Token lock.Token
		Wake  []string
	}
	if err := json.Unmarshal([]byte(reply), &next); err != nil {
		return "", unsure, unexpected(reply)
	}
	l.free.remove(g.Key)
	for _, owner := range next.Wake {
		l.registry.Wake(owner)
	}
	if next.Token != 0 {
		l.registry.Deliver(next.Owner, storekit.Handover{Token: next.Token, Start: start})
		runtime.Gosched() // the next holder goes first: those behind it wait for its release
	}
	return done, unsure, nil
}
