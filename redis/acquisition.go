package redis

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/seed-215fdefa/lock"
)

// acquisition is one Acquire: the same request, sent as often as it takes.
type acquisition struct {
	l         *Locker
	req       lock.Request
	ttl       int64 // ms
	heartbeat time.Duration
	script    *script
	keys      keyset
	args      []any
	doubtful  bool // a request was sent again after an unknown outcome
	inLine    bool // after the first refusal of who waits: the short script is not for those
}

// The places in args that change from one sending to the next.
const (
	argHeartbeat = 4
	argDetail    = 5
	argTTL       = 6
)

// refusal is why an acquisition was not granted.
type refusal struct {
	record  lock.Record
	recheck time.Duration // when another look makes sense; negative = unknown
}

// errUndone is the outcome of an acquisition whose owner has been released already.
var errUndone = errors.New("lock: redis: this owner's acquisition has been undone")

func (l *Locker) acquisition(req lock.Request) *acquisition {
	a := &acquisition{
		l: l, req: req, ttl: milliseconds(req.TTL), script: acquireScript,
		heartbeat: min(req.TTL, 5*time.Second), keys: l.keys(req.Key),
	}
	if req.Shared {
		a.script = acquireSharedScript
	}
	a.args = []any{req.Owner, a.ttl, l.counterTTL.Milliseconds(), tail(l.process, req.Metadata), "", "", ""}
	return a
}

// lineUp makes the following sends stand in line when refused, and the next one return the
// line if detail is set.
func (a *acquisition) lineUp(detail bool) {
	a.args[argHeartbeat], a.args[argDetail] = milliseconds(a.heartbeat), ""
	a.args[argTTL] = fmt.Sprintf("%013d", a.ttl)
	if detail {
		a.args[argDetail] = "1"
	}
}

// send asks once. Exactly one of the three results is set.
func (a *acquisition) send(ctx context.Context) (lock.Grant, *refusal, error) {
	if !a.req.Shared && !a.inLine && !a.l.contended.Has(a.req.Key) {
		g, err := a.take(ctx)
		if err != nil || g.Token != 0 {
			return g, nil, err
		}
	}
	start := time.Now()
	reply, sent, err := a.l.runner.run(ctx, a.script, a.keys.all(), a.args...)
	a.doubtful = a.doubtful || sent > 1
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
		a.inLine = a.req.Wait
		return lock.Grant{}, no, err
	}
	return lock.Grant{}, nil, fmt.Errorf("lock: redis: unexpected reply %v", reply)
}

func (a *acquisition) grant(token lock.Token, start time.Time) lock.Grant {
	if a.doubtful {
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
	reply, sent, err := a.l.runner.run(ctx, takeScript,
		[]string{a.keys.record(), a.keys.counter()}, a.args[:argHeartbeat]...)
	a.doubtful = a.doubtful || sent > 1
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
func (a *acquisition) refused(r []any) (*refusal, error) {
	if len(r) < 7 || r[0] != "held" {
		return nil, fmt.Errorf("lock: redis: unexpected reply %v", r)
	}
	a.l.contended.Add(a.req.Key)
	recheck, _ := r[1].(int64)
	now, _ := parseMicros(text(r[2]))
	no := &refusal{
		record:  lock.Record{Key: a.req.Key},
		recheck: time.Duration(recheck) * time.Millisecond,
	}
	if recheck < 0 {
		no.recheck = -1
	}
	if s := text(r[3]); s != "" {
		pttl, _ := r[4].(int64)
		h, ok := parseRecord(s, now, pttl)
		if !ok {
			return nil, foreign(a.keys.record(), s)
		}
		no.record.Holders = []lock.Holder{h}
	}
	no.record.Holders = append(no.record.Holders, readersOf(r[5], r[6], now)...)
	for _, h := range no.record.Holders {
		no.record.Token = max(no.record.Token, h.Token)
	}
	if len(r) == 9 {
		no.record.Waiters = waitersOf(r[7], r[8], now, a.req.Owner)
	}
	return no, nil
}

func readersOf(owners, infos any, now int64) []lock.Holder {
	names, values := texts(owners), texts(infos)
	var holders []lock.Holder
	for i := range min(len(names), len(values)) {
		if h, ok := parseReader(names[i], values[i], now); ok {
			holders = append(holders, h)
		}
	}
	return holders
}

// waitersOf is the live part of a line, as far as the waiter named until, if it is there.
func waitersOf(line, waiters any, now int64, until string) []lock.Waiter {
	entries := make(map[string]string)
	pairs := texts(waiters)
	for i := 0; i+1 < len(pairs); i += 2 {
		entries[pairs[i]] = pairs[i+1]
	}
	var live []lock.Waiter
	for _, owner := range texts(line) {
		if owner == until {
			break
		}
		if w, ok := parseWaiter(owner, entries[owner], now); ok {
			live = append(live, w)
		}
	}
	return live
}

func text(v any) string {
	s, _ := v.(string)
	return s
}

func texts(v any) []string {
	list, _ := v.([]any)
	all := make([]string, len(list))
	for i, e := range list {
		all[i] = text(e)
	}
	return all
}
