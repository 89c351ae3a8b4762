package postgres

import (
	"context"
	"encoding/json"
	"runtime"
	"time"

	"github.com/seed-215fdefa/lock"
)

// patience is how long a waiter goes on through errors of the server, such as those of a
// restart or a failover, before Acquire returns the last one.
const patience = 10 * time.Second

// wait stands in line until the lock is granted, or ctx or the Locker ends. The place in
// line is the caller's to undo.
//
// It looks again and again: when a release has woken it, when what is in the way ends by
// itself, and at each third of its own heartbeat, which keeps the place. Each look that may
// grant verifies by itself, and its Start is taken before it is sent, so a wake-up is only a
// hint. No connection is held meanwhile.
func (l *Locker) wait(ctx context.Context, req lock.Request) (lock.Grant, error) {
	a := l.acquisition(req)
	if a.mayBeFree() { // then there is nothing to wait for
		g, err := a.take(ctx)
		if err != nil || g.Token != 0 {
			return g, err
		}
		a.refused = true
	}
	p := l.registry.wait(req.Owner)
	defer l.registry.leave(req.Owner)
	caller := ctx
	ctx, cancel := context.WithCancel(caller)
	defer cancel()
	defer context.AfterFunc(l.registry.ctx, cancel)() // Close ends what is under way too
	a.inLine, a.detail = true, req.Waiting != nil
	timer := time.NewTimer(a.beat)
	defer timer.Stop()
	var last lock.Record
	healthy := time.Now()
	for first, woken := true, false; ; {
		g, no, err := a.look(ctx, woken)
		switch {
		case err == nil && no == nil:
			return g, nil
		case ctx.Err() != nil:
			return lock.Grant{}, ended(caller, last)
		case err != nil:
			if first || permanent(err) || time.Since(healthy) > patience {
				return lock.Grant{}, err
			}
			timer.Reset(min(a.beat/3, maxPause))
		default:
			healthy = time.Now()
			last = no.record
			if first && req.Waiting != nil {
				req.Waiting(last)
			}
			first, a.detail = false, false
			timer.Reset(l.nextLook(no, a.beat/3))
		}
		woken = false
		select {
		case h := <-p.granted:
			return a.grant(h.token, h.start), nil
		case <-p.wakeup:
			woken = true
		case <-timer.C:
		case <-ctx.Done():
			return lock.Grant{}, ended(caller, last)
		}
	}
}

// handOver releases a grant. When the next in line waits in this process too, the same
// statement grants to it, and the reply, for which start was taken before the request was
// sent, is its proof: a hand-over in one round trip. If that reply is lost the waiter finds
// its grant when it looks again, which it is told to do at once.
func (l *Locker) handOver(ctx context.Context, g lock.Grant) (reply string, unsure bool, err error) {
	start := time.Now()
	reply, unsure, err = l.db.text(ctx, l.sql.release, []byte(g.Key), g.Owner, int64(g.Token), g.Shared, l.process)
	if err != nil || unsure {
		l.registry.wakeAll()
	}
	if err != nil || len(reply) < 2 {
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
	for _, owner := range next.Wake {
		l.registry.wake(owner)
	}
	if next.Token != 0 {
		l.registry.granted(next.Owner, handover{next.Token, start})
		runtime.Gosched() // the next holder goes first: those behind it wait for its release
	}
	return done, unsure, nil
}

// nextLook is when to claim again without being woken: when nothing known is in the way any
// more, and no later than the beat. One who polls looks sooner, the nearer it is to the front.
func (l *Locker) nextLook(no *refusal, beat time.Duration) time.Duration {
	next := min(no.recheck+time.Millisecond, beat)
	if l.poll > 0 {
		next = min(next, l.poll*time.Duration(1+no.ahead))
	}
	return next
}

// ended is the error of a wait that ctx ended, or Close: ErrHeld too if the key was seen held.
func ended(ctx context.Context, last lock.Record) error {
	switch {
	case ctx.Err() == nil:
		return lock.ErrClosed
	case last.Key == "":
		return ctx.Err()
	}
	return &lock.HeldError{Record: last, Err: ctx.Err()}
}
