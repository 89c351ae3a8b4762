package redis

import (
	"context"
	"errors"
	"runtime"
	"time"

	goredis "github.com/redis/go-redis/v9"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/internal/rediskit"
)

// patience is how long a waiter goes on through errors of the server, such as those of a
// restart or a failover, before Acquire returns the last one.
const patience = 10 * time.Second

// wait stands in line until the lock is granted, or ctx or the Locker ends. The place in
// line is the caller's to undo.
func (l *Locker) wait(ctx context.Context, req lock.Request) (lock.Grant, error) {
	place := l.subscriber.wait(req.Owner, req.Lost)
	defer l.subscriber.leave(req.Owner)
	err := l.subscriber.await(ctx)
	var g lock.Grant
	if err == nil {
		g, err = l.stand(ctx, req, place)
	}
	l.settle(g, req, err)
	return g, err
}

// stand claims the lock again and again: when a release has woken it, when the server said
// that a claim may succeed (a holder's TTL or the heartbeat of the first waiter ends), and
// at each third of its own heartbeat, which keeps the place. Each claim verifies by itself,
// and its Start is taken before it is sent, so a wake-up is only a hint.
func (l *Locker) stand(ctx context.Context, req lock.Request, p *place) (lock.Grant, error) {
	a := l.acquisition(req)
	a.lineUp(req.Waiting != nil)
	beat := a.heartbeat / 3
	timer := time.NewTimer(beat)
	defer timer.Stop()
	var last lock.Record
	healthy := time.Now()
	for first := true; ; {
		g, no, err := a.send(ctx)
		switch {
		case err == nil && no == nil:
			return g, nil
		case ctx.Err() != nil:
			return lock.Grant{}, ended(ctx, last)
		case err != nil:
			if first || permanent(err) || time.Since(healthy) > patience {
				return lock.Grant{}, err
			}
			timer.Reset(min(beat, maxPause))
		default:
			healthy = time.Now()
			last = no.record
			if first {
				first = false
				a.lineUp(false)
				if req.Waiting != nil {
					req.Waiting(last)
				}
			}
			timer.Reset(nextLook(no.recheck, beat))
		}
		select {
		case h := <-p.granted:
			return a.grant(h.token, h.start), nil
		case <-p.wakeup:
		case <-timer.C:
		case <-ctx.Done():
			return lock.Grant{}, ended(ctx, last)
		case <-l.subscriber.ctx.Done():
			return lock.Grant{}, lock.ErrClosed
		}
	}
}

// handOver releases an exclusive grant. When the next in line waits in this process too,
// the same script grants to it, and the reply, for which start was taken before the
// request was sent, is its proof: a hand-over in one round trip. If that reply is lost the
// waiter finds its grant when it looks again, which it is told to do at once.
func (l *Locker) handOver(ctx context.Context, g lock.Grant, k keyset) (reply any, sent int, err error) {
	start := time.Now()
	reply, sent, err = l.runner.run(ctx, releaseScript, k.all(),
		identity(g), l.channels(), l.process, l.counterTTL.Milliseconds())
	if err != nil || sent > 1 {
		l.subscriber.wakeAll()
	}
	next, ok := reply.([]any)
	if !ok || len(next) != 2 {
		return reply, sent, err
	}
	token, _ := next[1].(int64)
	l.subscriber.granted(text(next[0]), handover{lock.Token(token), start})
	runtime.Gosched() // the next holder goes first: those behind it wait for its release
	return int64(1), sent, nil
}

// nextLook is when to claim again without being woken: no later than the beat. A key is
// gone a millisecond after its last one.
func nextLook(recheck, beat time.Duration) time.Duration {
	if recheck < 0 {
		return beat
	}
	return min(recheck+time.Millisecond, beat)
}

// ended is the error of a wait that ctx ended: ErrHeld too if the key was seen held.
func ended(ctx context.Context, last lock.Record) error {
	if last.Key == "" {
		return ctx.Err()
	}
	return &lock.HeldError{Record: last, Err: ctx.Err()}
}

// permanent tells whether asking again cannot help.
func permanent(err error) bool {
	return rediskit.IsReply(err) && !notNow(err) || errors.Is(err, goredis.ErrClosed) ||
		errors.Is(err, errUndone) || errors.Is(err, errForeign)
}
