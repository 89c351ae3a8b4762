// Package faultproxy is a TCP proxy that a test can break: it stands between one client
// and its server, passes bytes, and knows no protocol. It imports the standard library only.
//
//	proxy := faultproxy.New(t, server.Addr())
//	store := mystore.Dial(proxy.Addr())
//
//	heal := proxy.Cut()                                      // no connection lives
//	heal := proxy.Hold(faultproxy.Replies()).Heal            // requests pass, replies wait
//	heal := proxy.Hold(faultproxy.Replies().Nth(2)).Heal     // the second stalls, and what is behind it
//	heal := proxy.Lose(faultproxy.Requests().From(3)).Heal   // the third and all later ones
//	heal := proxy.Drop(faultproxy.Replies().Matching(isEvent)).Heal
//	heal := proxy.Delay(faultproxy.All(), 100*time.Millisecond).Heal // a round trip of 200 ms
//
// # Messages
//
// What a fault counts, holds or drops is a message. Without a framing it is what one
// read from the socket returns: of a client that writes a request at once and waits for
// its reply, one request or reply; of one that pipelines, maybe several. [WithFraming]
// says where messages end. Messages are counted per proxy, over all its connections, from
// when the fault begins, so a sweep over the k-th message gives each client a proxy of
// its own, and looks at [Fault.Hit] to see whether the client got as far as that.
//
// Faults add up: each message meets them in the order in which they began, at the moment
// at which it would be delivered.
package faultproxy

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"testing"
	"time"
)

// pollInterval is the pause before the proxy accepts or dials again.
const pollInterval = 10 * time.Millisecond

// Proxy is the way of one client to a server. The client connects to Addr instead of the
// server's address. All methods are safe for concurrent use.
type Proxy struct {
	listener net.Listener
	target   string
	config
	ctx    context.Context // ends with Close
	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu     sync.Mutex // guards the rest, and the counters of faults
	cut    bool
	seq    int      // of the newest fault
	faults []*Fault // in the order in which they began
	links  map[*link]struct{}
}

type config struct {
	patience time.Duration
	framing  [2]bufio.SplitFunc
}

// Option changes a Proxy.
type Option func(*config)

// WithPatience is how long a new connection waits for the target to listen before it is
// closed: for clients that take an accepted connection for a server that is there. The
// default is 0.
func WithPatience(d time.Duration) Option { return func(c *config) { c.patience = d } }

// WithFraming says where messages end in each direction. A message is the data by which
// split advances; the token it returns is not looked at. A split that is nil makes a
// message of each read, which is the default. An error of split breaks the connection.
func WithFraming(requests, replies bufio.SplitFunc) Option {
	return func(c *config) { c.framing = [2]bufio.SplitFunc{toServer: requests, toClient: replies} }
}

// New starts a proxy to the server at target, and closes it with tb.Cleanup. It ends the
// test if it cannot listen on the loopback interface.
func New(tb testing.TB, target string, opts ...Option) *Proxy {
	tb.Helper()
	p, err := Start(target, opts...)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(p.Close)
	return p
}

// Start is New outside a test: whoever calls it calls Close.
func Start(target string, opts ...Option) (*Proxy, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("faultproxy: %w", err)
	}
	p := &Proxy{listener: listener, target: target, links: make(map[*link]struct{})}
	for _, opt := range opts {
		opt(&p.config)
	}
	p.ctx, p.cancel = context.WithCancel(context.Background())
	p.wg.Go(p.accept)
	return p, nil
}

// Addr is where the client connects to: host and port.
func (p *Proxy) Addr() string { return p.listener.Addr().String() }

// Close breaks all connections and returns when no goroutine of p runs any more. What a
// fault held back is gone.
func (p *Proxy) Close() {
	p.cancel()
	_ = p.listener.Close()
	p.Break()
	p.wg.Wait()
}

// Cut breaks all connections, and closes each new one at once, until heal. When it
// returns, nothing that the client does reaches the server any more.
func (p *Proxy) Cut() (heal func()) {
	p.setCut(true)
	p.Break()
	return func() { p.setCut(false) }
}

func (p *Proxy) setCut(cut bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.cut = cut
}

// Break breaks all connections. New ones may be made.
func (p *Proxy) Break() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for l := range p.links {
		l.close()
	}
}

// Freeze is Hold(All()): connections stay open, new ones are accepted, and nothing passes
// until heal.
func (p *Proxy) Freeze() (heal func()) { return p.Hold(All()).Heal }

// HoldReplies is Hold(Replies()).
func (p *Proxy) HoldReplies() (heal func()) { return p.Hold(Replies()).Heal }

func (p *Proxy) accept() {
	for {
		client, err := p.listener.Accept()
		switch {
		case err == nil:
			p.wg.Go(func() { p.connect(client) })
		case errors.Is(err, net.ErrClosed):
			return
		default: // of this connection only, or for want of a file descriptor
			time.Sleep(pollInterval)
		}
	}
}

// connect serves one connection until it ends.
func (p *Proxy) connect(client net.Conn) {
	server, err := p.dial()
	if err != nil {
		_ = client.Close()
		return
	}
	l := &link{client: client, server: server, done: make(chan struct{})}
	p.mu.Lock()
	refused := p.cut || p.ctx.Err() != nil
	if !refused {
		p.links[l] = struct{}{}
	}
	p.mu.Unlock()
	if refused {
		l.close()
		return
	}
	l.serve(p)
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.links, l)
}

// dial connects to the target, again where that does not listen, as long as patience.
func (p *Proxy) dial() (net.Conn, error) {
	var d net.Dialer
	for deadline := time.Now().Add(p.patience); ; time.Sleep(pollInterval) {
		server, err := d.DialContext(p.ctx, "tcp", p.target)
		if err == nil || p.ctx.Err() != nil || !time.Now().Before(deadline) {
			return server, err
		}
	}
}
