package redis

import (
	"context"
	"fmt"
	"time"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/internal/rediskit"
	"github.com/seed-215fdefa/lock/internal/storekit"
)

// Acquire implements [lock.Locker]. TTLs round up to milliseconds.
func (l *Locker) Acquire(ctx context.Context, req lock.Request) (lock.Grant, error) {
	if err := lock.CheckRequest(req, l.Capabilities()); err != nil {
		return lock.Grant{}, err
	}
	if err := l.ready(ctx); err != nil {
		return lock.Grant{}, err
	}
	hold := l.registry.Hold(req.Owner, req.Lost)
	g, err := l.acquire(ctx, req)
	if err != nil {
		l.registry.Failed(req.Owner, hold)
		return lock.Grant{}, err
	}
	l.registry.Keep(g)
	return g, nil
}

func (l *Locker) acquire(ctx context.Context, req lock.Request) (lock.Grant, error) {
	begun := time.Now()
	if req.Wait || req.Lost != nil {
		if err := l.listener.Await(ctx); err != nil {
			return lock.Grant{}, err
		}
	}
	a := l.acquisition(req)
	if g, err := a.quick(ctx); err != nil || g.Token != 0 {
		return g, err
	}
	slow := new(acquisition) // it leaves the stack only here
	*slow = a
	if req.Wait {
		return slow.wait(ctx, begun)
	}
	var g lock.Grant
	var no *storekit.Refusal
	err := storekit.WithinPatienceSince(ctx, begun, func(ctx context.Context) (err error) {
		g, no, err = slow.send(ctx)
		return err
	})
	if no != nil {
		err = l.doubts.Tried(ctx, req, &lock.HeldError{Record: no.Record}, slow.unsure, l.undo)
	}
	return g, err
}

// acquisition is one Acquire: the same request, sent as often as it takes.
type acquisition struct {
	l      *Locker
	req    lock.Request
	ttl    int64 // ms
	keys   keyset
	free   bool // the lock may be free, and nobody wait for it: ask by the short script
	unsure bool // a request was sent again after an unknown outcome
	told   bool // the line was returned: once is enough
}

func (l *Locker) acquisition(req lock.Request) acquisition {
	return acquisition{
		l: l, req: req, ttl: rediskit.Milliseconds(req.TTL), keys: l.keys(req.Key),
		free: !req.Shared && !l.contended.Has(req.Key),
	}
}

// take is the short script, which grants a free lock that nobody waits for. Else it does
// nothing, and returns 0.
func (a *acquisition) take() rediskit.Eval {
	return takeScript.With([]string{a.keys.record(), a.keys.counter()}, a.req.Owner, a.ttl, a.l.counterMS, a.note())
}

// ask is the script that lines up, too.
func (a *acquisition) ask() rediskit.Eval {
	script, heartbeat, detail, ttl := acquireScript, any(""), "1", ""
	if a.req.Shared {
		script = acquireSharedScript
	}
	if a.told {
		detail = ""
	}
	if a.req.Wait {
		heartbeat, ttl = rediskit.Milliseconds(storekit.Heartbeat(a.req.TTL)), fmt.Sprintf("%013d", a.ttl)
	}
	args := []any{a.req.Owner, a.ttl, a.l.counterMS, a.note(), heartbeat, detail, ttl}
	if a.req.HeadStart > 0 {
		args = append(args, microseconds(a.req.HeadStart))
	}
	return script.With(a.keys.all(), args...)
}

// note is who asks, for others to see: a string.
func (a *acquisition) note() any {
	if s := storekit.EncodeNote(&a.req); s != "" {
		return a.l.process + s
	}
	return a.l.processArg
}

// quick asks once, if the answer will come at once, without what a wait needs. If it brings no
// grant send asks again, and tells why. An error is that of ctx.
func (a *acquisition) quick(ctx context.Context) (lock.Grant, error) {
	if !a.free {
		return lock.Grant{}, nil
	}
	start := time.Now()
	reply, sent, err := a.l.servers.quick(ctx, a.take())
	if err != nil {
		a.unsure = sent && !rediskit.IsReply(err)
		return lock.Grant{}, ctx.Err()
	}
	return a.taken(reply, start), nil
}

// taken is the grant by the short script, if it has granted.
func (a *acquisition) taken(reply any, start time.Time) lock.Grant {
	token, ok := reply.(int64)
	a.free = false
	if !ok || token == 0 {
		return lock.Grant{}
	}
	return a.grant(lock.Token(token), start)
}

// send asks once. Exactly one of the three results is set.
func (a *acquisition) send(ctx context.Context) (lock.Grant, *storekit.Refusal, error) {
	start := time.Now()
	if a.free {
		reply, unsure, err := a.l.servers.run(ctx, a.take())
		a.unsure = a.unsure || unsure
		if err != nil {
			return lock.Grant{}, nil, err
		}
		if g := a.taken(reply, start); g.Token != 0 {
			return g, nil, nil
		}
		start = time.Now()
	}
	reply, unsure, err := a.l.servers.run(ctx, a.ask())
	a.unsure = a.unsure || unsure
	if err != nil {
		return lock.Grant{}, nil, err
	}
	switch r := reply.(type) {
	case int64:
		return a.grant(lock.Token(r), start), nil, nil
	case []any:
		if len(r) == 1 && r[0] == "undone" {
			return lock.Grant{}, nil, storekit.ErrUndone
		}
		no, err := a.refused(r)
		a.told = a.req.Wait
		return lock.Grant{}, no, err
	}
	return lock.Grant{}, nil, unexpected(reply)
}

func (a *acquisition) grant(token lock.Token, start time.Time) lock.Grant {
	if a.unsure || storekit.Elapsed(start) >= a.req.TTL { // then its owner may be in line again
		a.l.doubts.Add(a.req.Owner)
	}
	return lock.Grant{
		Key: a.req.Key, Owner: a.req.Owner, Token: token, Shared: a.req.Shared,
		TTL: time.Duration(a.ttl) * time.Millisecond, Start: start,
	}
}

// refused reads the reply of an acquire script that did not grant.
func (a *acquisition) refused(r []any) (*storekit.Refusal, error) {
	if len(r) != 11 || r[0] != "held" {
		return nil, unexpected(r)
	}
	a.l.contended.Add(a.req.Key)
	rec, err := recordOf(a.req.Key, a.keys, r[2:])
	if err != nil {
		return nil, err
	}
	for _, h := range rec.Holders {
		rec.Token = max(rec.Token, h.Token)
	}
	no := &storekit.Refusal{Record: rec}
	if recheck := number(r[1]); recheck >= 0 {
		no.Recheck = time.Duration(recheck+1) * time.Millisecond // a key lives to the end of its last one
	}
	return no, nil
}

func unexpected(reply any) error { return fmt.Errorf("lock: redis: unexpected reply %v", reply) }
