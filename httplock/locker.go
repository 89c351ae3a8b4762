package httplock

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/internal/storekit"
)

var (
	_ lock.Locker  = (*Locker)(nil)
	_ lock.Admin   = (*Locker)(nil)
	_ lock.Watcher = (*Locker)(nil)
)

// Locker is a client of the service. Make one with [New]. It is safe for concurrent use.
type Locker struct {
	base   string // without a slash at the end
	client *http.Client
	own    *http.Transport // nil if client is the caller's
	token  string
	err    error // of an option or the address; returned by every call
	doubts storekit.Doubts
	closed context.Context
	close  context.CancelFunc

	learned atomic.Pointer[lock.Capabilities] // what the service has said; nil until Connect
	once    sync.Once                         // guards the setting of caps
	caps    lock.Capabilities                 // what Capabilities returns
}

// Option sets up a [Locker].
type Option func(*Locker)

// WithHTTPClient sets the client that sends requests; it stays the caller's. Its Timeout must be
// 0, or longer than 5 s. Default: a client that keeps up to 256 connections.
func WithHTTPClient(c *http.Client) Option { return func(l *Locker) { l.client = c } }

// WithBearerToken sends "Authorization: Bearer" and token with each request. Errors do not show
// it. Default: no such header.
func WithBearerToken(token string) Option { return func(l *Locker) { l.token = token } }

// New returns a Locker on the service at baseURL, such as "https://locks.example.com". It does
// no I/O. baseURL may have a path, if a proxy serves /v1 below it. If there are several
// replicas, give the URL of a load balancer, or a name that resolves to all of them. Every call
// returns an error if the URL or an option is bad.
func New(baseURL string, opts ...Option) *Locker {
	l := &Locker{base: strings.TrimRight(baseURL, "/")}
	l.closed, l.close = context.WithCancel(context.Background())
	u, err := url.Parse(baseURL)
	switch {
	case err != nil: // which would quote a password
		l.err = fmt.Errorf("%w: httplock: the service's URL cannot be parsed", lock.ErrInvalid)
	case u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.RawQuery != "" || u.Fragment != "":
		l.err = fmt.Errorf("%w: httplock: the service's URL %q: must be http or https, a host, and at most a path", lock.ErrInvalid, u.Redacted())
	}
	for _, o := range opts {
		if o == nil {
			l.err = fmt.Errorf("%w: httplock: option is nil", lock.ErrInvalid)
			continue
		}
		o(l)
	}
	if l.client == nil {
		l.own = http.DefaultTransport.(*http.Transport).Clone()
		l.own.MaxIdleConns, l.own.MaxIdleConnsPerHost = 0, 256
		l.client = &http.Client{Transport: l.own, CheckRedirect: func(*http.Request, []*http.Request) error {
			return http.ErrUseLastResponse // a lock is not elsewhere
		}}
	}
	return l
}

// Connect asks the service for its store's capabilities, for Capabilities to return. Call it
// before giving the Locker to lock.New. It may be called again after an error.
func (l *Locker) Connect(ctx context.Context) error {
	if err := l.ready(ctx); err != nil {
		return err
	}
	var b serviceBody
	if err := l.repeat(ctx, http.MethodGet, "/v1", nil, &b); err != nil {
		return err
	}
	c := b.capabilities()
	l.learned.Store(&c)
	return nil
}

// Capabilities implements [lock.Locker]. If [Locker.Connect] has succeeded before the first call
// of Capabilities, they are those of the service's store, without EarlyLoss. Otherwise the
// Locker declares, for good, that shared locks and head starts may be asked for, and promises
// nothing beyond the contract. The service then refuses what its store lacks.
func (l *Locker) Capabilities() lock.Capabilities {
	l.once.Do(func() { l.caps = l.known() })
	return l.caps
}

// known is what can be said of the service so far.
func (l *Locker) known() lock.Capabilities {
	if c := l.learned.Load(); c != nil {
		return *c
	}
	return lock.Capabilities{Store: "http", Shared: true, Priority: true}
}

// Close ends this Locker's waits with ErrClosed. All later calls return ErrClosed. Grants remain
// until their TTL expires. Close is idempotent.
func (l *Locker) Close() error {
	l.close()
	if l.own != nil {
		l.own.CloseIdleConnections()
	}
	return nil
}

// ready is what every call does before any I/O, once it has checked its arguments.
func (l *Locker) ready(ctx context.Context) error {
	switch {
	case l == nil || l.closed == nil:
		return fmt.Errorf("%w: httplock: the Locker was not made by New", lock.ErrInvalid)
	case l.err != nil:
		return l.err
	case l.closed.Err() != nil:
		return lock.ErrClosed
	}
	return ctx.Err()
}

// Renew implements [lock.Locker].
func (l *Locker) Renew(ctx context.Context, g lock.Grant) (lock.Grant, error) {
	if err := storekit.CheckRenewal(g); err != nil {
		return lock.Grant{}, err
	}
	if err := l.ready(ctx); err != nil {
		return lock.Grant{}, err
	}
	start := time.Now()
	var b grantBody
	err := l.repeat(ctx, http.MethodPost, path(g.Key, "renew"), toGrant(g), &b)
	if err != nil {
		return lock.Grant{}, vanished(err, g)
	}
	g.TTL, g.Start = time.Duration(b.TTL), start
	return g, nil
}

// Release implements [lock.Locker]. If a reply is lost, Release asks again. It returns nil if it
// then finds the grant gone before the grant can have expired: the first request must have
// released it.
func (l *Locker) Release(ctx context.Context, g lock.Grant) error {
	if err := lock.CheckGrant(g); err != nil {
		return err
	}
	if err := l.ready(ctx); err != nil {
		return err
	}
	return l.doubts.Release(ctx, g, l.end, l.undo)
}

func (l *Locker) end(ctx context.Context, g lock.Grant) error {
	unsure, err := l.send(ctx, http.MethodPost, path(g.Key, "release"), toGrant(g), nil)
	if lost := (*lock.LostError)(nil); unsure && errors.As(err, &lost) && lost.Reason == 0 && storekit.Vanished(g) == 0 {
		return nil
	}
	return vanished(err, g)
}

func (l *Locker) undo(ctx context.Context, g lock.Grant) error {
	return l.repeat(ctx, http.MethodPost, path(g.Key, "release"), grantBody{Owner: g.Owner}, nil)
}

// Inspect implements [lock.Locker].
func (l *Locker) Inspect(ctx context.Context, key string) (lock.Record, error) {
	if err := lock.CheckKey(key); err != nil {
		return lock.Record{}, err
	}
	if err := l.ready(ctx); err != nil {
		return lock.Record{}, err
	}
	var b recordBody
	if err := l.repeat(ctx, http.MethodGet, path(key, ""), nil, &b); err != nil {
		return lock.Record{}, err
	}
	return b.record(), nil
}

func toGrant(g lock.Grant) grantBody {
	return grantBody{Owner: g.Owner, Token: g.Token, TTL: duration(g.TTL), Shared: g.Shared}
}

// vanished gives a loss of which the service does not know the reason the one that this machine
// knows: the service does not know when g began.
func vanished(err error, g lock.Grant) error {
	if lost := (*lock.LostError)(nil); errors.As(err, &lost) {
		if lost.Token = g.Token; lost.Reason == 0 {
			lost.Reason = storekit.Vanished(g)
		}
	}
	return err
}

func path(key, verb string) string {
	if verb != "" {
		verb = ":" + verb
	}
	return locksPath + escapeKey(key) + verb
}
