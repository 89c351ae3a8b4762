package httplock

import (
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/internal/service"
)

var (
	_ lock.Locker  = (*Locker)(nil)
	_ lock.Admin   = (*Locker)(nil)
	_ lock.Watcher = (*Locker)(nil)
)

// Locker is a client of the service. Make one with [New]. It is safe for concurrent use. Besides the
// methods of [lock.Locker], [lock.Admin] and [lock.Watcher], it has these:
//
//   - Connect(ctx) error asks the service for its store's capabilities. If it has succeeded before
//     the first call of Capabilities, that returns these, without EarlyLoss. Otherwise the Locker
//     declares, for good, that shared locks and head starts may be asked for, and promises nothing
//     beyond the contract; the service then refuses what its store lacks. Call Connect before
//     lock.New. It may be called again after an error.
//   - Close() error ends this Locker's waits with ErrClosed. All later calls return ErrClosed.
//     Grants remain until their TTL expires. Close is idempotent.
//
// If the reply to a Release is lost, Release asks again. It returns nil if it then finds the grant
// gone before the grant can have expired: the first request must have released it. List,
// ForceRelease and Watch are ErrUnsupported if the service's store does not have them. Request.Lost
// is not called. A renewal can learn of a forced loss before the service has learned why; then the
// LostError has no reason.
type Locker struct {
	client
	transport transport
}

type client = service.Client

// Option sets up a [Locker].
type Option func(*Locker)

// WithHTTPClient sets the client that sends requests; it stays the caller's. Its Timeout must be
// 0, or longer than 5 s. If it speaks HTTP/2, set HTTP2.SendPingTimeout of its Transport: without, all
// requests go into a connection that is dead, for minutes. Default: a client that keeps up to 256
// connections, and closes one of HTTP/2 that is silent for 8 s.
func WithHTTPClient(c *http.Client) Option { return func(l *Locker) { l.transport.client = c } }

// WithBearerToken sends "Authorization: Bearer" and token with each request. Errors do not show
// it. Default: no such header.
func WithBearerToken(token string) Option { return func(l *Locker) { l.transport.token = token } }

// New returns a Locker on the service at baseURL, such as "https://locks.example.com". It does
// no I/O. baseURL may have a path, if a proxy serves /v1 below it. If there are several
// replicas, give the URL of a load balancer, or a name that resolves to all of them. Every call
// returns an error if the URL or an option is bad.
func New(baseURL string, opts ...Option) *Locker {
	l := &Locker{transport: transport{base: strings.TrimRight(baseURL, "/")}}
	t := &l.transport
	u, err := url.Parse(baseURL)
	switch {
	case err != nil: // which would quote a password
		err = fmt.Errorf("%w: httplock: the service's URL cannot be parsed", lock.ErrInvalid)
	case u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.RawQuery != "" || u.Fragment != "":
		err = fmt.Errorf("%w: httplock: the service's URL %q: must be http or https, a host, and at most a path", lock.ErrInvalid, u.Redacted())
	}
	for _, o := range opts {
		if o == nil {
			err = fmt.Errorf("%w: httplock: option is nil", lock.ErrInvalid)
			continue
		}
		o(l)
	}
	if t.client == nil {
		if base, ok := http.DefaultTransport.(*http.Transport); ok {
			t.own = base.Clone()
		} else { // the program has wrapped it
			t.own = &http.Transport{Proxy: http.ProxyFromEnvironment, ForceAttemptHTTP2: true, IdleConnTimeout: 90 * time.Second, TLSHandshakeTimeout: 10 * time.Second}
		}
		t.own.MaxIdleConns, t.own.MaxIdleConnsPerHost = 0, 256
		// Else a request that is given up leaves a dead connection in use until TCP notices, in minutes.
		t.own.HTTP2 = &http.HTTP2Config{SendPingTimeout: 5 * time.Second, PingTimeout: 3 * time.Second}
		t.client = &http.Client{Transport: t.own, CheckRedirect: func(*http.Request, []*http.Request) error {
			return http.ErrUseLastResponse // a lock is not elsewhere
		}}
	}
	service.Setup(&l.client, "http", t, err)
	return l
}

// Close ends this Locker's waits: see [Locker].
func (l *Locker) Close() error {
	if l.transport.own != nil {
		defer l.transport.own.CloseIdleConnections()
	}
	return l.client.Close()
}
