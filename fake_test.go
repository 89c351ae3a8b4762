package lock

import (
	"context"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// fake is a store that works, unless a hook stands in for one of its methods. A hook gets
// the method it replaces, and may call it or not.
type fake struct {
	caps    Capabilities
	acquire atomic.Pointer[func(context.Context, Request, acquireFunc) (Grant, error)]
	renew   atomic.Pointer[func(context.Context, Grant, renewFunc) (Grant, error)]
	release atomic.Pointer[func(context.Context, Grant, releaseFunc) error]

	mu      sync.Mutex // guards the rest
	holds   map[string][]fakeHold
	newest  Token
	changed chan struct{} // closed and replaced when a key becomes free
	log     []sent
}

type (
	acquireFunc func(context.Context, Request) (Grant, error)
	renewFunc   func(context.Context, Grant) (Grant, error)
	releaseFunc func(context.Context, Grant) error
)

type fakeHold struct {
	grant    Grant
	until    time.Time
	metadata map[string]string
	lost     func(LostReason)
}

// sent is a call that a fake has seen.
type sent struct {
	op    string
	grant Grant // Key and Owner of an Acquire
	req   Request
	at    time.Time
}

var _ Locker = (*fake)(nil)

func newFake() *fake {
	return &fake{
		caps: Capabilities{
			Store: "fake", Shared: true, EarlyLoss: true, MinTTL: time.Millisecond,
		},
		holds: make(map[string][]fakeHold), changed: make(chan struct{}),
	}
}

func (f *fake) onAcquire(h func(context.Context, Request, acquireFunc) (Grant, error)) {
	f.acquire.Store(&h)
}

func (f *fake) onRenew(h func(context.Context, Grant, renewFunc) (Grant, error)) {
	f.renew.Store(&h)
}

func (f *fake) onRelease(h func(context.Context, Grant, releaseFunc) error) {
	f.release.Store(&h)
}

func (f *fake) Capabilities() Capabilities { return f.caps }

func (f *fake) Acquire(ctx context.Context, req Request) (Grant, error) {
	if err := CheckRequest(req, f.caps); err != nil {
		return Grant{}, err
	}
	f.note(sent{op: "acquire", grant: Grant{Key: req.Key, Owner: req.Owner}, req: req})
	if h := f.acquire.Load(); h != nil {
		return (*h)(ctx, req, f.doAcquire)
	}
	return f.doAcquire(ctx, req)
}

func (f *fake) Renew(ctx context.Context, g Grant) (Grant, error) {
	f.note(sent{op: "renew", grant: g})
	if h := f.renew.Load(); h != nil {
		return (*h)(ctx, g, f.doRenew)
	}
	return f.doRenew(ctx, g)
}

func (f *fake) Release(ctx context.Context, g Grant) error {
	f.note(sent{op: "release", grant: g})
	if h := f.release.Load(); h != nil {
		return (*h)(ctx, g, f.doRelease)
	}
	return f.doRelease(ctx, g)
}

func (f *fake) Inspect(ctx context.Context, key string) (Record, error) {
	if err := ctx.Err(); err != nil {
		return Record{}, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.record(key), nil
}

func (f *fake) doAcquire(ctx context.Context, req Request) (Grant, error) {
	for told := false; ; {
		start := time.Now()
		g, held, changed := f.try(req, start)
		if held == nil {
			return g, nil
		}
		if !req.Wait {
			return Grant{}, held
		}
		if !told && req.Waiting != nil {
			req.Waiting(held.Record)
		}
		told = true
		select {
		case <-ctx.Done():
			held.Err = ctx.Err()
			return Grant{}, held
		case <-changed:
		case <-time.After(time.Second):
		}
	}
}

func (f *fake) try(req Request, now time.Time) (Grant, *HeldError, <-chan struct{}) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, h := range f.live(req.Key) {
		if !req.Shared || !h.grant.Shared {
			return Grant{}, &HeldError{Record: f.record(req.Key)}, f.changed
		}
	}
	f.newest++
	g := Grant{Key: req.Key, Owner: req.Owner, Token: f.newest, TTL: req.TTL, Start: now, Shared: req.Shared}
	f.holds[req.Key] = append(f.holds[req.Key], fakeHold{g, now.Add(g.TTL), req.Metadata, req.Lost})
	return g, nil, nil
}

func (f *fake) doRenew(ctx context.Context, g Grant) (Grant, error) {
	if err := ctx.Err(); err != nil {
		return Grant{}, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for i, h := range f.live(g.Key) {
		if h.grant.Owner == g.Owner && h.grant.Token == g.Token {
			g.Start = time.Now()
			f.holds[g.Key][i].until = g.Start.Add(g.TTL)
			return g, nil
		}
	}
	return Grant{}, &LostError{Reason: ReasonExpired, Token: g.Token}
}

func (f *fake) doRelease(ctx context.Context, g Grant) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for i, h := range f.live(g.Key) {
		if h.grant.Owner == g.Owner && (g.Token == 0 || h.grant.Token == g.Token) {
			f.end(g.Key, i)
			return nil
		}
	}
	if g.Token == 0 {
		return nil
	}
	return &LostError{Reason: ReasonTaken, Token: g.Token}
}

// force ends the grants of key without their holders' doing, and tells them if told.
func (f *fake) force(key string, told bool) {
	f.mu.Lock()
	holds := f.live(key)
	for range holds {
		f.end(key, 0)
	}
	f.mu.Unlock()
	for _, h := range holds {
		if told && h.lost != nil {
			h.lost(ReasonForced)
		}
	}
}

func (f *fake) end(key string, i int) {
	f.holds[key] = slices.Delete(slices.Clone(f.holds[key]), i, i+1)
	close(f.changed)
	f.changed = make(chan struct{})
}

func (f *fake) live(key string) []fakeHold {
	f.holds[key] = slices.DeleteFunc(slices.Clone(f.holds[key]), func(h fakeHold) bool {
		return !h.until.After(time.Now())
	})
	return f.holds[key]
}

func (f *fake) record(key string) Record {
	r := Record{Key: key, Token: f.newest}
	for _, h := range f.live(key) {
		r.Holders = append(r.Holders, Holder{
			Owner: h.grant.Owner, Token: h.grant.Token, Shared: h.grant.Shared,
			Held: -1, ExpiresIn: time.Until(h.until), Metadata: h.metadata,
		})
	}
	return r
}

func (f *fake) note(s sent) {
	s.at = time.Now()
	f.mu.Lock()
	f.log = append(f.log, s)
	f.mu.Unlock()
}

// sent returns the calls of op so far.
func (f *fake) sent(op string) []sent {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(f.log), func(s sent) bool { return s.op != op })
}

func (f *fake) held(key string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.live(key)) > 0
}

var errIO = errors.New("connection reset")

// What hooks do.
func failRenew(context.Context, Grant, renewFunc) (Grant, error) { return Grant{}, errIO }

func freezeRenew(ctx context.Context, _ Grant, _ renewFunc) (Grant, error) {
	<-ctx.Done()
	return Grant{}, ctx.Err()
}

func freezeRelease(ctx context.Context, _ Grant, _ releaseFunc) error {
	<-ctx.Done()
	return ctx.Err()
}

func plainRenew(ctx context.Context, g Grant, f renewFunc) (Grant, error) { return f(ctx, g) }
func failRelease(context.Context, Grant, releaseFunc) error               { return errIO }
func plainRelease(ctx context.Context, g Grant, f releaseFunc) error      { return f(ctx, g) }
func freezeAcquire(ctx context.Context, _ Request, _ acquireFunc) (Grant, error) {
	<-ctx.Done()
	return Grant{}, ctx.Err()
}

// ttlTen is the TTL of the tests; its default drift is 102 ms.
const (
	ttlTen   = 10 * time.Second
	deadline = ttlTen - 102*time.Millisecond
)

// client is one of f with a TTL of ttlTen, closed at the end of t.
func client(t *testing.T, f *fake, opts ...Option) *Client {
	t.Helper()
	c := New(f, append([]Option{WithTTL(ttlTen)}, opts...)...)
	require.NoError(t, c.Err())
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Hour)
		defer cancel()
		require.NoError(t, c.Close(ctx))
		require.Empty(t, leftovers(c))
	})
	return c
}

// leftovers are the leases that c's engine has something to do for.
func leftovers(c *Client) []*Lease {
	c.engine.mu.Lock()
	defer c.engine.mu.Unlock()
	return slices.Clone(c.engine.heap)
}

func mustLock(t *testing.T, c *Client, key string, opts ...Option) *Lease {
	t.Helper()
	l, err := c.TryLock(context.Background(), key, opts...)
	require.NoError(t, err)
	return l
}

// lostAs checks that err is a loss for reason.
func lostAs(t *testing.T, reason LostReason, err error) {
	t.Helper()
	_ = lossAs(t, reason, err)
}

// lossAs checks that err is a loss for reason, and returns it.
func lossAs(t *testing.T, reason LostReason, err error) *LostError {
	t.Helper()
	var lost *LostError
	require.ErrorAs(t, err, &lost)
	require.ErrorIs(t, err, ErrLost)
	require.Equal(t, reason.String(), lost.Reason.String())
	return lost
}

// failedAs checks that err is an *Error of op on key.
func failedAs(t *testing.T, op, key string, err error) {
	t.Helper()
	var e *Error
	require.ErrorAs(t, err, &e)
	require.Equal(t, op, e.Op)
	require.Equal(t, key, e.Key)
}

// recorder is an Observer that keeps what it saw.
type recorder struct {
	mu     sync.Mutex
	events []Event
	ctxs   []context.Context
}

func (r *recorder) Observe(ctx context.Context, e Event) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.events = append(r.events, e)
	r.ctxs = append(r.ctxs, ctx)
}

func (r *recorder) kinds() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	names := make([]string, 0, len(r.events))
	for _, e := range r.events {
		names = append(names, e.Kind.String())
	}
	return names
}

func (r *recorder) last() Event {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.events[len(r.events)-1]
}
