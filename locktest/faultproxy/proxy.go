// Package faultproxy is a TCP proxy that a test can break. It stands between one client and its
// server, passes bytes, and knows no protocol. It imports the standard library only.
//
//	proxy := faultproxy.New(t, server.Addr())
//	store := mystore.Dial(proxy.Addr())
//
//	heal := proxy.Cut()                                      // no connection lives
//	heal := proxy.Hold(faultproxy.Replies()).Heal            // requests pass, replies wait
//	heal := proxy.Hold(faultproxy.Replies().Nth(2)).Heal     // the second stalls, and what is behind it
//	heal := proxy.Lose(faultproxy.Requests().From(3)).Heal   // the third and all later ones
//	heal := proxy.Tear(faultproxy.Replies().Nth(1)).Heal     // the first, without its last byte
//	heal := proxy.Drop(faultproxy.Replies().Matching(isEvent)).Heal
//	heal := proxy.Delay(faultproxy.All(), 100*time.Millisecond).Heal // a round trip of 200 ms
//
// # Messages
//
// Faults count, hold and drop messages. By default a message is what one read from the socket
// returns. If a client writes each request at once and waits for the reply, that is one request
// or reply. If it pipelines, it may be several. [WithFraming] says where messages end.
//
// Messages are counted per proxy, over all its connections, from when the fault begins. So to
// try each k-th message in turn, give each client a proxy of its own. [Fault.Hit] tells whether
// the client got as far as message k.
//
// Several faults may be active. Each message meets them in the order in which they began, when
// it would be delivered. A Delay is the exception: it meets messages when the proxy reads them.
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

// Proxy forwards the connections of one client to a server. The client connects to Addr instead
// of the server's address. All methods are safe for concurrent use.
type Proxy struct {
	listener net.Listener
	target   string
	config
	ctx    context.Context // ends with Close
	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu     sync.Mutex // guards the rest, and the counters of faults
	cuts   int        // that are not healed
	seq    int        // of the newest fault
	faults []*Fault   // in the order in which they began
	links  map[*link]struct{}
}

type config struct {
	patience time.Duration
	framing  [2]bufio.SplitFunc
}

// Option changes a Proxy.
type Option func(*config)

// WithPatience sets how long a new connection waits for the target to listen before it is
// closed. Use it if clients take an accepted connection as proof that the server is up. Default
// 0.
func WithPatience(d time.Duration) Option { return func(c *config) { c.patience = d } }

// WithFraming says where messages end in each direction. A message is the data by which split
// advances; the token it returns does not matter. A nil split, the default, makes a message of
// each read. An error of split breaks the connection.
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

// Start is New outside a test. The caller must call Close.
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

// Addr returns the host and port that the client connects to.
func (p *Proxy) Addr() string { return p.listener.Addr().String() }

// Close breaks all connections and returns when no goroutine of p runs any more. Messages that a
// fault held back are lost.
func (p *Proxy) Close() {
	p.cancel()
	_ = p.listener.Close()
	p.Break()
	p.wg.Wait()
}

// Cut breaks all connections, and closes each new one at once, until heal. Once it returns,
// nothing from the client reaches the server.
func (p *Proxy) Cut() (heal func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.cuts++
	p.breakAll()
	return sync.OnceFunc(func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.cuts--
	})
}

// Break breaks all connections. New ones may be made.
func (p *Proxy) Break() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.breakAll()
}

// breakAll is Break. p.mu is held.
func (p *Proxy) breakAll() {
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
	l := &link{client: client}
	l.ctx, l.cancel = context.WithCancel(p.ctx)
	defer l.close()
	p.mu.Lock()
	refused := p.cuts > 0 || p.ctx.Err() != nil
	if !refused {
		p.links[l] = struct{}{}
	}
	p.mu.Unlock()
	if refused {
		return
	}
	defer func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		delete(p.links, l)
	}()
	server, err := p.dial(l.ctx)
	if err != nil {
		return
	}
	p.mu.Lock()
	l.server = server
	p.mu.Unlock()
	if l.ctx.Err() == nil {
		l.serve(p)
	}
}

// dial connects to the target, again where that does not listen, as long as patience.
func (p *Proxy) dial(ctx context.Context) (net.Conn, error) {
	var d net.Dialer
	for deadline := time.Now().Add(p.patience); ; time.Sleep(pollInterval) {
		server, err := d.DialContext(ctx, "tcp", p.target)
		if err == nil || ctx.Err() != nil || !time.Now().Before(deadline) {
			return server, err
		}
	}
}
