package locktest

import (
	"context"
	"errors"
	"iter"
	"maps"
	"path"
	"slices"
	"strings"
	"time"

	lock "github.com/seed-215fdefa/lock"
)

// flaws are what a refServer and its Lockers may do wrong. The zero flaws are none, and the
// first line's are not flaws, but what may be so of a sound store.
type flaws struct {
	far, handshakes, overtakes                                    bool
	noExclusion, reentrant, readersExclude                        bool
	sharedBesideExclusive, exclusiveBesideShared, readerLetsIn    bool
	servesLast, readersOvertake                                   bool
	counterOnly, resetByRelease, resetByExpiry                    bool
	sharedTokenRepeats, mintsLater, retryCreates                  bool
	halfTTL, ttlFromArrival, clientClock                          bool
	renewCreates, renewByKey, versioned, readersLiveTogether      bool
	releaseByKey, releaseByProcess, releaseOfReaders              bool
	undoLeavesGrant, undoLeavesPlace, undoByProcess               bool
	triesLineUp, lateRequests, triesKeepExpired                   bool
	deadProcessKeeps, deadWaitersStay, sweepsOneByOne             bool
	neverWakes, noRecheck, oneWakeForAll, slowToCancel, deafToCtx bool
	forcesAll, forcesSilently, forceWarnsOnly, lostAfterRelease   bool
	tellsTwice, handsOver                                         bool
	lateRenewalShortens, handsOverTTL                             bool
	thawDropsHolds, restartDropsHolds, failoverDropsHolds         bool
	restartDropsTokens, failoverDropsTokens                       bool
	lax                                                           string // what is not validated
	subtle
}

// checkRequest is lock.CheckRequest, except for the value that f is lax about.
func (f flaws) checkRequest(req lock.Request, c lock.Capabilities) error {
	switch f.lax {
	case "key":
		req.Key = "k"
	case "owner":
		req.Owner = "o"
	case "TTL":
		req.TTL = time.Second
	case "metadata":
		req.Metadata = nil
	case "under":
		req.Under = nil
	case "head start":
		req.HeadStart = 0
	}
	return lock.CheckRequest(req, c)
}

// altered is a Locker with methods of its own before those of the refClient.
type altered struct {
	*refClient
	acquire func(ctx context.Context, req lock.Request) (lock.Grant, error)
	renew   func(ctx context.Context, g lock.Grant) (lock.Grant, error)
	release func(ctx context.Context, g lock.Grant) error
	inspect func(ctx context.Context, key string) (lock.Record, error)
	list    func(ctx context.Context, prefix string) iter.Seq2[lock.Record, error]
	force   func(ctx context.Context, key, owner string) error
	watch   func(ctx context.Context, key string, changed func()) error
	caps    func() lock.Capabilities
}

// alter returns a wrap for refHarness: a Locker with what change sets.
func alter(change func(a *altered, c *refClient)) func(*refClient) lock.Locker {
	return func(c *refClient) lock.Locker {
		a := &altered{refClient: c, acquire: c.Acquire, renew: c.Renew, release: c.Release, inspect: c.Inspect, list: c.List, force: c.ForceRelease, watch: c.Watch, caps: c.Capabilities}
		change(a, c)
		return a
	}
}

func (a *altered) Acquire(ctx context.Context, req lock.Request) (lock.Grant, error) {
	return a.acquire(ctx, req)
}

func (a *altered) Renew(ctx context.Context, g lock.Grant) (lock.Grant, error) {
	return a.renew(ctx, g)
}
func (a *altered) Release(ctx context.Context, g lock.Grant) error { return a.release(ctx, g) }
func (a *altered) Inspect(ctx context.Context, key string) (lock.Record, error) {
	return a.inspect(ctx, key)
}

func (a *altered) List(ctx context.Context, prefix string) iter.Seq2[lock.Record, error] {
	return a.list(ctx, prefix)
}

func (a *altered) ForceRelease(ctx context.Context, key, owner string) error {
	return a.force(ctx, key, owner)
}

func (a *altered) Watch(ctx context.Context, key string, changed func()) error {
	return a.watch(ctx, key, changed)
}
func (a *altered) Capabilities() lock.Capabilities { return a.caps() }
func (a *altered) Unwrap() lock.Locker             { return a.refClient }

// acquiring alters what Acquire returns, asking for what being changes.
func acquiring(after func(req lock.Request, begun time.Time, g *lock.Grant, err *error)) func(*refClient) lock.Locker {
	return alter(func(a *altered, c *refClient) {
		a.acquire = func(ctx context.Context, req lock.Request) (lock.Grant, error) {
			begun := time.Now()
			g, err := c.Acquire(ctx, req)
			after(req, begun, &g, &err)
			return g, err
		}
	})
}

// asking alters the request.
func asking(before func(ctx *context.Context, req *lock.Request)) func(*refClient) lock.Locker {
	return alter(func(a *altered, c *refClient) {
		a.acquire = func(ctx context.Context, req lock.Request) (lock.Grant, error) {
			asked := req
			before(&ctx, &req)
			g, err := c.Acquire(ctx, req)
			if err == nil {
				g.Key, g.Owner, g.TTL, g.Shared = asked.Key, asked.Owner, asked.TTL, asked.Shared
			}
			return g, err
		}
	})
}

// folding stores each key under another name.
func folding(fold func(key string) string) func(*refClient) lock.Locker {
	return alter(func(a *altered, c *refClient) {
		a.acquire = func(ctx context.Context, req lock.Request) (lock.Grant, error) {
			key := req.Key
			req.Key = fold(key)
			g, err := c.Acquire(ctx, req)
			if err == nil {
				g.Key = key
			}
			return g, err
		}
		a.renew = func(ctx context.Context, g lock.Grant) (lock.Grant, error) {
			key := g.Key
			g.Key = fold(key)
			g, err := c.Renew(ctx, g)
			if err == nil {
				g.Key = key
			}
			return g, err
		}
		a.release = func(ctx context.Context, g lock.Grant) error {
			g.Key = fold(g.Key)
			return c.Release(ctx, g)
		}
		a.inspect = func(ctx context.Context, key string) (lock.Record, error) {
			rec, err := c.Inspect(ctx, fold(key))
			rec.Key = key
			return rec, err
		}
	})
}

// renewing alters what Renew returns.
func renewing(after func(g *lock.Grant)) func(*refClient) lock.Locker {
	return alter(func(a *altered, c *refClient) {
		a.renew = func(ctx context.Context, g lock.Grant) (lock.Grant, error) {
			g, err := c.Renew(ctx, g)
			if err == nil {
				after(&g)
			}
			return g, err
		}
	})
}

// inspecting alters what Inspect returns.
func inspecting(after func(c *refClient, rec *lock.Record, err *error)) func(*refClient) lock.Locker {
	return alter(func(a *altered, c *refClient) {
		a.inspect = func(ctx context.Context, key string) (lock.Record, error) {
			rec, err := c.Inspect(ctx, key)
			rec.Holders = slices.Clone(rec.Holders)
			after(c, &rec, &err)
			return rec, err
		}
	})
}

// listing alters List; declaring alters Capabilities.
func listing(list func(ctx context.Context, c *refClient, prefix string, yield func(lock.Record, error) bool)) func(*refClient) lock.Locker {
	return alter(func(a *altered, c *refClient) {
		a.list = func(ctx context.Context, prefix string) iter.Seq2[lock.Record, error] {
			return func(yield func(lock.Record, error) bool) { list(ctx, c, prefix, yield) }
		}
	})
}

func declaring(change func(c *lock.Capabilities)) func(*refClient) lock.Locker {
	return alter(func(a *altered, c *refClient) {
		a.caps = func() lock.Capabilities {
			caps := c.Capabilities()
			change(&caps)
			return caps
		}
	})
}

// reasonAfter is a store that tells nothing early, and the reason of a loss after n renewals.
func reasonAfter(n int) func(*refClient) lock.Locker {
	return alter(func(a *altered, c *refClient) {
		a.caps = func() lock.Capabilities {
			caps := c.Capabilities()
			caps.EarlyLoss = false
			return caps
		}
		a.renew = func(ctx context.Context, g lock.Grant) (lock.Grant, error) {
			g, err := c.Renew(ctx, g)
			var lost *lock.LostError
			if n > 0 && errors.As(err, &lost) {
				n--
				lost.Reason = 0
			}
			return g, err
		}
	})
}

// tokenFirst draws the token in a request before that for the grant.
func tokenFirst(a *altered, c *refClient) {
	a.acquire = func(ctx context.Context, req lock.Request) (lock.Grant, error) {
		var token lock.Token
		if err := c.roundTrip(ctx, func(now time.Time) { token = c.s.mint(c.s.key(req.Key, now), req, now) }); err != nil {
			return lock.Grant{}, err
		}
		g, err := c.Acquire(ctx, req)
		if err != nil {
			return g, err
		}
		err = c.roundTrip(ctx, func(now time.Time) {
			k := c.s.key(req.Key, now)
			if h := k.holder(req.Owner); h != nil {
				h.token = token
			}
			k.token = max(token, k.token-1)
		})
		g.Token = token
		return g, err
	}
}

// glob lists by pattern instead of by prefix.
func glob(ctx context.Context, c *refClient, prefix string, yield func(lock.Record, error) bool) {
	for rec, err := range c.List(ctx, "") {
		if ok, _ := path.Match(prefix+"*", rec.Key); err != nil || ok || strings.Contains(rec.Key, "/") && strings.HasPrefix(rec.Key, prefix) {
			if !yield(rec, err) {
				return
			}
		}
	}
}

func without(m map[string]string, bad func(k string) bool) map[string]string {
	m = maps.Clone(m)
	maps.DeleteFunc(m, func(k, _ string) bool { return bad(k) })
	return m
}
