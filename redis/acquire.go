package redis

import (
	"context"
	"errors"
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
	l.registry.Hold(req.Owner, req.Lost)
	g, err := l.acquire(ctx, req)
	if err != nil {
		l.registry.Drop(req.Owner)
		return lock.Grant{}, err
	}
	l.registry.Keep(g)
	return g, nil
}

func (l *Locker) acquire(ctx context.Context, req lock.Request) (lock.Grant, error) {
	if req.Wait || req.Lost != nil {
		if err := l.listener.Await(ctx); err != nil {
			return lock.Grant{}, err
		}
	}
	if req.Wait {
		return l.wait(ctx, req)
	}
	g, no, err := l.acquisition(req).send(ctx)
	if no != nil {
		err = &lock.HeldError{Record: no.Record}
	}
	return g, err
}

// acquisition is one Acquire: the same request, sent as often as it takes.
type acquisition struct {
	l      *Locker
	req    lock.Request
	ttl    int64 // ms
	script *script
	keys   keyset
	args   []any
	unsure bool // a request was sent again after an unknown outcome
	inLine bool // after the first refusal of who waits: the short script is not for those
}

// The places in args that change from one sending to the next.
const (
	argHeartbeat = 4
	argDetail    = 5
	argTTL       = 6
)

// errUndone is the outcome of an acquisition whose owner has been released already.
var errUndone = errors.New("lock: redis: this owner's acquisition has been undone")

func (l *Locker) acquisition(req lock.Request) *acquisition {
	a := &acquisition{
		l: l, req: req, ttl: rediskit.Milliseconds(req.TTL), script: acquireScript, keys: l.keys(req.Key),
	}
	if req.Shared {
		a.script = acquireSharedScript
	}
	a.args = []any{
		req.Owner, a.ttl, l.counterTTL.Milliseconds(), l.process + storekit.EncodeNote(&req), "", "1", "",
	}
	if req.Wait {
		a.args[argHeartbeat] = rediskit.Milliseconds(storekit.Heartbeat(req.TTL))
		a.args[argTTL] = fmt.Sprintf("%013d", a.ttl)
	}
	if req.HeadStart > 0 {
		a.args = append(a.args, microseconds(req.HeadStart))
	}
	return a
}

// send asks once. Exactly one of the three results is set.
func (a *acquisition) send(ctx context.Context) (lock.Grant, *storekit.Refusal, error) {
	if !a.req.Shared && !a.inLine && !a.l.contended.Has(a.req.Key) {
		g, err := a.take(ctx)
		if err != nil || g.Token != 0 {
			return g, nil, err
		}
	}
	start := time.Now()
	reply, unsure, err := a.l.servers.run(ctx, a.script, a.keys.all(), a.args...)
	a.unsure = a.unsure || unsure
	if err != nil {
		return lock.Grant{}, nil, err
	}
	switch r := reply.(type) {
	case int64:
		return a.grant(lock.Token(r), start), nil, nil
	case []any:
		if len(r) == 1 && r[0] == "undone" {
			return lock.Grant{}, nil, errUndone
		}
		no, err := a.refused(r)
		if a.req.Wait {
			a.inLine, a.args[argDetail] = true, "" // it has been told of
		}
		return lock.Grant{}, no, err
	}
	return lock.Grant{}, nil, unexpected(reply)
}

func (a *acquisition) grant(token lock.Token, start time.Time) lock.Grant {
	if a.unsure {
		a.l.doubts.Add(a.req.Owner)
	}
	return lock.Grant{
		Key: a.req.Key, Owner: a.req.Owner, Token: token, Shared: a.req.Shared,
		TTL: time.Duration(a.ttl) * time.Millisecond, Start: start,
	}
}

// take asks by the short script, which grants a free lock that nobody waits for. Else
// nothing has happened, and there is no grant.
func (a *acquisition) take(ctx context.Context) (lock.Grant, error) {
	start := time.Now()
	reply, unsure, err := a.l.servers.run(ctx, takeScript,
		[]string{a.keys.record(), a.keys.counter()}, a.args[:argHeartbeat]...)
	a.unsure = a.unsure || unsure
	if err != nil {
		return lock.Grant{}, err
	}
	token, ok := reply.(int64)
	if !ok || token == 0 {
		return lock.Grant{}, nil
	}
	return a.grant(lock.Token(token), start), nil
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
