package postgres

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/internal/storekit"
)

// acquisition is one Acquire: the same request, sent as often as it takes.
type acquisition struct {
	l        *Locker
	req      lock.Request
	metadata any  // string: the note; or nil
	refused  bool // by the plain statement, or the function
	doubtful bool // a copy of the request may still be on its way
	ahead    int  // waiters in front, as of the last look; 0 if it is not in line
	last     lock.Record
}

// Acquire implements [lock.Locker]. TTLs round up to microseconds.
func (l *Locker) Acquire(ctx context.Context, req lock.Request) (lock.Grant, error) {
	if err := lock.CheckRequest(req, l.Capabilities()); err != nil {
		return lock.Grant{}, err
	}
	if err := l.ready(ctx); err != nil {
		return lock.Grant{}, err
	}
	req.TTL = roundUp(req.TTL)
	if l.poll > 0 {
		req.Lost = nil
	}
	a := &acquisition{l: l, req: req}
	if note := storekit.EncodeNote(&req); note != "" {
		a.metadata = note
	}
	hold := l.registry.Hold(req.Owner, req.Lost)
	g, err := a.run(ctx)
	if err != nil {
		l.registry.Failed(req.Owner, hold)
		return lock.Grant{}, err
	}
	l.registry.Keep(g)
	if a.doubtful || storekit.Elapsed(g.Start) >= g.TTL { // then its owner may be in line again
		l.doubts.Add(req.Owner)
	}
	if !a.refused && !req.Shared {
		l.free.add(req.Key)
	}
	return g, nil
}

func (a *acquisition) run(ctx context.Context) (g lock.Grant, err error) {
	known := !a.req.Shared && a.l.free.has(a.req.Key) // then there is nothing to wait for
	if known || !a.req.Wait {
		err = storekit.WithinPatience(ctx, func(ctx context.Context) (err error) {
			g, err = a.try(ctx, known)
			return err
		})
		err = a.l.doubts.Tried(ctx, a.req, err, a.doubtful, a.l.undo)
		if err != nil || g.Token != 0 {
			return g, err
		}
	}
	return a.wait(ctx)
}

// try asks by the plain statement if the key is known, and by the function if it does not wait.
func (a *acquisition) try(ctx context.Context, known bool) (g lock.Grant, err error) {
	if err := a.listen(ctx); err != nil {
		return g, err
	}
	if known {
		g, err = a.take(ctx)
		if err != nil || g.Token != 0 {
			return g, err
		}
		a.refused = true
	}
	if a.req.Wait {
		return g, nil
	}
	g, no, err := a.claim(ctx)
	if no != nil {
		err = &lock.HeldError{Record: no.Record}
	}
	return g, err
}

// listen has this Locker hear of what the request needs to hear of.
func (a *acquisition) listen(ctx context.Context) error {
	if a.l.poll == 0 && (a.req.Wait || a.req.Lost != nil) {
		return a.l.listener.Await(ctx)
	}
	return nil
}

// claim asks for the lock by the function, which stands in line if that is asked for.
func (a *acquisition) claim(ctx context.Context) (lock.Grant, *storekit.Refusal, error) {
	var beat any
	if a.req.Wait {
		beat = storekit.Heartbeat(a.req.TTL)
	}
	detail := !a.req.Wait || a.req.Waiting != nil && a.last.Key == ""
	start := time.Now()
	reply, err := a.ask(ctx, a.l.sql.acquire, []byte(a.req.Key), a.req.Owner, a.req.TTL, a.req.Shared,
		a.l.process, a.l.poll == 0, a.metadata, beat, detail, roundUp(a.req.HeadStart).Microseconds())
	if err != nil {
		return lock.Grant{}, nil, err
	}
	if token, err := lock.ParseToken(reply); err == nil {
		return a.grant(token, start), nil, nil
	}
	no, err := a.refusal(reply)
	return lock.Grant{}, no, err
}

// take asks for a lock that is free and that nobody waits for. Else nothing has happened, and
// there is no grant.
func (a *acquisition) take(ctx context.Context) (lock.Grant, error) {
	var process any
	if a.l.poll == 0 {
		process = a.l.process
	}
	start := time.Now()
	reply, err := a.ask(ctx, a.l.sql.take, []byte(a.req.Key), a.req.Owner, a.req.TTL, process, a.metadata)
	if err != nil || reply == "" {
		return lock.Grant{}, err
	}
	token, err := lock.ParseToken(reply)
	if err != nil {
		return lock.Grant{}, unexpected(reply)
	}
	return a.grant(token, start), nil
}

// ask sends a request. A waiter goes on after an error, such as a pooler's that has lost its
// server: what was sent may still be on its way then.
func (a *acquisition) ask(ctx context.Context, sql string, args ...any) (string, error) {
	limit := a.l.db.limit
	if a.last.Key != "" {
		limit = waiterLimit
	}
	reply, unsure, err := a.l.db.textWithin(ctx, limit, sql, args...)
	a.doubtful = a.doubtful || unsure
	return reply, err
}

func (a *acquisition) grant(token lock.Token, start time.Time) lock.Grant {
	return lock.Grant{
		Key: a.req.Key, Owner: a.req.Owner, Token: token, TTL: a.req.TTL, Start: start, Shared: a.req.Shared,
	}
}

// refusal reads what the function acquire says when it does not grant.
func (a *acquisition) refusal(reply string) (*storekit.Refusal, error) {
	var r struct {
		Undone  bool
		Recheck int64
		Ahead   int
		Record  recordJSON
	}
	if err := json.Unmarshal([]byte(reply), &r); err != nil {
		return nil, unexpected(reply)
	}
	if r.Undone {
		return nil, storekit.ErrUndone
	}
	a.l.free.remove(a.req.Key)
	a.refused, a.ahead, a.last = true, r.Ahead, r.Record.record(a.req.Key)
	// A timer of the server's counts µs, one of this machine's ms.
	return &storekit.Refusal{Record: a.last, Recheck: a.l.pollAfter(micros(r.Recheck)+time.Millisecond, r.Ahead)}, nil
}

func unexpected(reply string) error {
	return fmt.Errorf("lock: postgres: unexpected reply %.80q", reply)
}
