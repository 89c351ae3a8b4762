package locktest_test

import (
	"context"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	lock "github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/locktest"
)

// polling is a store that declares next to nothing: exclusive, and polled for.
type polling struct {
	mu   sync.Mutex // guards keys
	keys map[string]*polled
}

type polled struct {
	lock.Holder
	last    lock.Token
	since   time.Time
	expires time.Time
}

func (p *polling) Capabilities() lock.Capabilities {
	return lock.Capabilities{Store: "polling", TokenSurvives: lock.SurvivesRelease | lock.SurvivesExpiry}
}

// at runs f with key's entry, which says who holds it now: nobody if Owner is empty.
func (p *polling) at(ctx context.Context, key string, f func(k *polled, now time.Time) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	k, now := p.keys[key], time.Now()
	if k == nil {
		k = new(polled)
		p.keys[key] = k
	}
	if !k.expires.After(now) {
		k.Holder = lock.Holder{}
	}
	return f(k, now)
}

func (k *polled) record(key string, now time.Time) lock.Record {
	rec := lock.Record{Key: key, Token: k.last}
	if k.Owner != "" {
		h := k.Holder
		h.Held, h.ExpiresIn = now.Sub(k.since), k.expires.Sub(now)
		rec.Holders, rec.HolderCount = []lock.Holder{h}, 1
	}
	return rec
}

func (p *polling) Acquire(ctx context.Context, req lock.Request) (lock.Grant, error) {
	if err := lock.CheckRequest(req, p.Capabilities()); err != nil {
		return lock.Grant{}, err
	}
	return lock.Poll(ctx, req, 10*time.Millisecond, time.Second, func(ctx context.Context) (lock.Grant, error) {
		g := lock.Grant{Key: req.Key, Owner: req.Owner, TTL: req.TTL, Start: time.Now()}
		err := p.at(ctx, req.Key, func(k *polled, now time.Time) error {
			if k.Owner != "" && k.Owner != req.Owner {
				return &lock.HeldError{Record: k.record(req.Key, now)}
			}
			k.last++
			meta := make(map[string]string)
			for name, value := range req.Metadata {
				meta[name] = value
			}
			k.Holder = lock.Holder{Owner: req.Owner, Token: k.last, Metadata: meta}
			k.since, k.expires = now, now.Add(req.TTL)
			g.Token = k.last
			return nil
		})
		if err != nil {
			return lock.Grant{}, err
		}
		return g, nil
	})
}

func (p *polling) Renew(ctx context.Context, g lock.Grant) (lock.Grant, error) {
	g.Start = time.Now()
	err := p.at(ctx, g.Key, func(k *polled, now time.Time) error {
		if k.Owner != g.Owner || k.Token != g.Token {
			return lock.ErrLost
		}
		k.expires = now.Add(g.TTL)
		return nil
	})
	if err != nil {
		return lock.Grant{}, err
	}
	return g, nil
}

func (p *polling) Release(ctx context.Context, g lock.Grant) error {
	return p.at(ctx, g.Key, func(k *polled, _ time.Time) error {
		switch {
		case k.Owner == g.Owner && (g.Token == 0 || k.Token == g.Token):
			k.Holder = lock.Holder{}
		case g.Token != 0:
			return lock.ErrLost
		}
		return nil
	})
}

func (p *polling) Inspect(ctx context.Context, key string) (rec lock.Record, err error) {
	if err := lock.CheckKey(key); err != nil {
		return rec, err
	}
	err = p.at(ctx, key, func(k *polled, now time.Time) error {
		rec = k.record(key, now)
		return nil
	})
	return rec, err
}

func newPolling(testing.TB) func() lock.Locker {
	p := &polling{keys: map[string]*polled{}}
	return func() lock.Locker { return p }
}

// TestPolling is the suite for a store that somebody else wrote.
func TestPolling(t *testing.T) {
	locktest.Run(t, locktest.Harness{New: newPolling, Around: synctest.Test})
}

func TestPollingOnTheRealClock(t *testing.T) {
	if testing.Short() {
		t.Skip("takes as long as its waiters poll")
	}
	t.Parallel()
	locktest.Run(t, locktest.Harness{New: newPolling, TTL: 200 * time.Millisecond})
}
