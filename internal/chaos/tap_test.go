//go:build linux

package chaos

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync/atomic"
	"time"

	"github.com/seed-215fdefa/lock"
)

// tap is a Locker that writes down what passes. With a flaw it is a store that is broken
// on purpose, for the tests of the checks.
type tap struct {
	lock.Locker
	journal *journal
	flaw    string
}

// opKey is the key of a context's value: the number of the op that a call belongs to.
type opKey struct{}

func (t *tap) Unwrap() lock.Locker { return t.Locker }

func (t *tap) Acquire(ctx context.Context, req lock.Request) (lock.Grant, error) {
	e := event{Kind: kAcquire, At: now(), Key: req.Key, Owner: req.Owner, Shared: req.Shared, Wait: req.Wait, Head: int64(req.HeadStart)}
	e.Op, _ = ctx.Value(opKey{}).(int64)
	then := req.Waiting
	var waiting atomic.Int64
	req.Waiting = func(r lock.Record) {
		waiting.Store(now())
		if then != nil {
			then(r)
		}
	}
	g, err := t.Locker.Acquire(ctx, req)
	g, err = t.spoil(req, g, err)
	e.Waiting, e.Err, e.Text = waiting.Load(), classOf(err), text(err)
	if err == nil {
		e.Token, e.TTL, e.Start = g.Token, int64(g.TTL), monotonic(g.Start)
		if g.Owner != req.Owner || g.Key != req.Key || g.Shared != req.Shared {
			e.Text = fmt.Sprintf("wrong grant: %+v for %+v", g, req)
		}
	}
	var held *lock.HeldError
	if errors.As(err, &held) {
		e.Text = owners(held.Record)
	}
	t.journal.add(e)
	return g, err
}

func owners(r lock.Record) string {
	var all []string
	for _, h := range r.Holders {
		all = append(all, h.Owner)
	}
	return strings.Join(all, ",")
}

// spoil is where the flaw of an Acquire is.
func (t *tap) spoil(req lock.Request, g lock.Grant, err error) (lock.Grant, error) {
	var held *lock.HeldError
	if t.flaw == "two holders" && errors.As(err, &held) && len(held.Record.Holders) > 0 && rand.N(10) == 0 {
		token := held.Record.Holders[0].Token + 1
		return lock.Grant{Key: req.Key, Owner: req.Owner, Token: token, TTL: req.TTL, Start: time.Now(), Shared: req.Shared}, nil
	}
	return g, err
}

func (t *tap) Renew(ctx context.Context, g lock.Grant) (lock.Grant, error) {
	e := event{Kind: kRenew, At: now(), Key: g.Key, Owner: g.Owner, Token: g.Token, Shared: g.Shared}
	n, err := t.Locker.Renew(ctx, g)
	e.Err, e.Text = classOf(err), text(err)
	if err == nil {
		e.TTL, e.Start = int64(n.TTL), monotonic(n.Start)
		if n.Owner != g.Owner || n.Key != g.Key || n.Shared != g.Shared || n.Token != g.Token {
			e.Text = fmt.Sprintf("wrong grant: %+v for %+v", n, g)
		}
	}
	t.journal.add(e)
	return n, err
}

func (t *tap) Release(ctx context.Context, g lock.Grant) error {
	e := event{Kind: kRelease, At: now(), Key: g.Key, Owner: g.Owner, Token: g.Token, Shared: g.Shared}
	err := t.Locker.Release(ctx, g)
	e.Err, e.Text = classOf(err), text(err)
	t.journal.add(e)
	return err
}
