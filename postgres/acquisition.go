package postgres

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/seed-215fdefa/lock"
)

// acquisition is one Acquire: the same request, sent as often as it takes.
type acquisition struct {
	l        *Locker
	req      lock.Request
	beat     time.Duration // the heartbeat that keeps a place in line
	metadata any           // string, or nil
	inLine   bool          // refusals stand in line
	detail   bool          // the next refusal says who is in front
	refused  bool          // it was: what is for free locks is not tried again
	doubtful bool          // a copy of the request may still be on its way
	last     *refusal
}

// refusal is why an acquisition was not granted.
type refusal struct {
	record  lock.Record
	recheck time.Duration // after which nothing known is in the way
	ahead   int           // waiters that are
}

// errUndone is the outcome of an acquisition whose owner has been released already.
var errUndone = errors.New("lock: postgres: this owner's acquisition has been undone")

func (l *Locker) acquisition(req lock.Request) *acquisition {
	return &acquisition{l: l, req: req, beat: min(req.TTL, 5*time.Second), metadata: encodeMetadata(req.Metadata)}
}

// send asks once. Exactly one of the three results is set.
func (a *acquisition) send(ctx context.Context) (lock.Grant, *refusal, error) {
	if a.mayBeFree() {
		g, err := a.take(ctx)
		if err != nil || g.Token != 0 {
			return g, nil, err
		}
	}
	var beat any
	if a.inLine {
		beat = a.beat
		if a.last == nil {
			leave, err := a.l.gates.enter(ctx, a.req.Key)
			if err != nil {
				return lock.Grant{}, nil, err
			}
			defer leave()
		}
	}
	start := time.Now()
	reply, err := a.ask(ctx, a.l.sql.acquire, []byte(a.req.Key), a.req.Owner, a.req.TTL, a.req.Shared,
		a.l.process, a.l.poll == 0, a.metadata, beat, a.detail)
	if err != nil {
		return lock.Grant{}, nil, err
	}
	if token, err := lock.ParseToken(reply); err == nil {
		return a.grant(token, start), nil, nil
	}
	no, err := a.decode(reply)
	return lock.Grant{}, no, err
}

// mayBeFree tells whether take is worth a try.
func (a *acquisition) mayBeFree() bool {
	return !a.req.Shared && !a.refused && !a.l.contended.Has(a.req.Key)
}

// look is send for one who stands in line already. As long as somebody alive is in front,
// and nobody has woken it, it only keeps its place, which is cheap: no row is locked that
// others want, and a long line costs no more than a short one.
func (a *acquisition) look(ctx context.Context, woken bool) (lock.Grant, *refusal, error) {
	if woken || a.last == nil || a.last.ahead == 0 {
		return a.send(ctx)
	}
	reply, _, err := a.l.db.text(ctx, a.l.sql.keep, []byte(a.req.Key), a.req.Owner, a.beat)
	if err != nil {
		return lock.Grant{}, nil, err
	}
	if reply != behind {
		return a.send(ctx)
	}
	a.l.contended.Add(a.req.Key)
	return lock.Grant{}, &refusal{record: a.last.record, recheck: a.beat, ahead: a.last.ahead}, nil
}

// take asks for a lock that is free and that nobody waits for. Else nothing has happened,
// and there is no grant.
func (a *acquisition) take(ctx context.Context) (lock.Grant, error) {
	sql := a.l.sql.take
	if a.l.known.Has(a.req.Key) {
		sql = a.l.sql.retake
	}
	start := time.Now()
	reply, err := a.ask(ctx, sql, []byte(a.req.Key), a.req.Owner, a.req.TTL, a.l.hears(), a.metadata)
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
// server: what was sent may still be on its way then, too.
func (a *acquisition) ask(ctx context.Context, sql string, args ...any) (string, error) {
	reply, unsure, err := a.l.db.text(ctx, sql, args...)
	a.doubtful = a.doubtful || unsure || err != nil
	return reply, err
}

func (a *acquisition) grant(token lock.Token, start time.Time) lock.Grant {
	if a.doubtful {
		a.l.doubts.Add(a.req.Owner)
	}
	a.l.known.Add(a.req.Key)
	return lock.Grant{
		Key: a.req.Key, Owner: a.req.Owner, Token: token, Shared: a.req.Shared,
		TTL: a.req.TTL, Start: start,
	}
}

// decode reads what the function acquire says when it does not grant.
func (a *acquisition) decode(reply string) (*refusal, error) {
	var r struct {
		Undone         bool
		Recheck, Ahead int64
		Holders        []holderJSON
		Line           []waiterJSON
	}
	if err := json.Unmarshal([]byte(reply), &r); err != nil {
		return nil, unexpected(reply)
	}
	if r.Undone {
		return nil, errUndone
	}
	a.l.contended.Add(a.req.Key)
	a.refused = true
	no := &refusal{record: lock.Record{Key: a.req.Key}, recheck: micros(r.Recheck), ahead: int(r.Ahead)}
	no.record.Holders, no.record.Waiters = holders(r.Holders), waiters(r.Line)
	for _, h := range no.record.Holders {
		no.record.Token = max(no.record.Token, h.Token)
	}
	a.last = no
	return no, nil
}

func unexpected(reply string) error {
	return fmt.Errorf("lock: postgres: unexpected reply %.80q", reply)
}
