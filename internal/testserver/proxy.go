package testserver

import (
	"io"
	"net"
	"sync"
	"testing"
	"time"
)

// Proxy is the way of one client to a server, which a test can break. The client connects
// to Addr instead of the server's. It passes bytes and knows no protocol. All methods are
// safe for concurrent use.
type Proxy struct {
	listener net.Listener
	target   string
	patience time.Duration // how long a new connection waits for the target to listen
	wg       sync.WaitGroup

	mu     sync.Mutex // guards the rest
	closed bool
	cut    bool
	toward valve // client to server
	back   valve // server to client
	links  map[*link]struct{}
}

// valve is what happens to one direction's bytes.
type valve struct {
	shut chan struct{} // if not nil, bytes wait until it is closed
	lose bool          // bytes are dropped, and their connection with them
	drop func([]byte) bool
}

// link is one connection through the proxy.
type link struct{ client, server net.Conn }

// NewProxy gives the test a proxy to the server at target.
func NewProxy(tb testing.TB, target string) *Proxy {
	tb.Helper()
	return newProxy(tb, target, 0)
}

// newProxy is NewProxy with patience, for clients that take an accepted connection for a
// server that listens.
func newProxy(tb testing.TB, target string, patience time.Duration) *Proxy {
	tb.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatalf("testserver: proxy: %v", err)
	}
	p := &Proxy{listener: l, target: target, patience: patience, links: make(map[*link]struct{})}
	p.wg.Go(p.accept)
	tb.Cleanup(p.close)
	return p
}

// Addr is where the client connects to.
func (p *Proxy) Addr() string { return p.listener.Addr().String() }

// Cut breaks all connections and refuses new ones until heal.
func (p *Proxy) Cut() (heal func()) {
	p.mu.Lock()
	p.cut = true
	p.mu.Unlock()
	p.Break()
	return func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.cut = false
	}
}

// Break breaks all connections. New ones may be made.
func (p *Proxy) Break() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for l := range p.links {
		l.close()
	}
}

// Freeze holds all bytes back until heal, which delivers them. Connections stay open, and
// new ones are accepted.
func (p *Proxy) Freeze() (heal func()) {
	healToward, healBack := p.hold(&p.toward), p.hold(&p.back)
	return func() {
		healToward()
		healBack()
	}
}

// HoldReplies lets requests through but holds the server's bytes back until heal, which
// delivers them.
func (p *Proxy) HoldReplies() (heal func()) { return p.hold(&p.back) }

// LoseReplies lets requests through. A connection on which the server answers breaks
// instead of passing the answer on, until heal.
func (p *Proxy) LoseReplies() (heal func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.back.lose = true
	return func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.back.lose = false
	}
}

// DropReplies drops those chunks that the server sends for which drop returns true, until
// heal, and keeps the connection. A chunk is what one read returns: of a protocol with
// frames, one or more frames, as a rule whole.
func (p *Proxy) DropReplies(drop func(chunk []byte) bool) (heal func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.back.drop = drop
	return func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.back.drop = nil
	}
}

func (p *Proxy) hold(v *valve) (heal func()) {
	shut := make(chan struct{})
	p.mu.Lock()
	defer p.mu.Unlock()
	v.shut = shut
	return func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		if v.shut == shut {
			v.shut = nil
			close(shut)
		}
	}
}

func (p *Proxy) accept() {
	for {
		client, err := p.listener.Accept()
		if err != nil {
			return
		}
		p.wg.Go(func() { p.connect(client) })
	}
}

func (p *Proxy) connect(client net.Conn) {
	server, err := p.dial()
	if err != nil {
		_ = client.Close()
		return
	}
	l := &link{client, server}
	p.mu.Lock()
	refused := p.cut || p.closed
	if !refused {
		p.links[l] = struct{}{}
	}
	p.mu.Unlock()
	if refused {
		l.close()
		return
	}
	p.wg.Go(func() { p.pass(l, server, client, &p.toward) })
	p.pass(l, client, server, &p.back)
}

// dial connects to the target, again where that does not listen, as long as patience.
func (p *Proxy) dial() (net.Conn, error) {
	for deadline := time.Now().Add(p.patience); ; time.Sleep(pollInterval) {
		server, err := net.Dial("tcp", p.target)
		p.mu.Lock()
		closed := p.closed
		p.mu.Unlock()
		if err == nil || closed || !time.Now().Before(deadline) {
			return server, err
		}
	}
}

// pass moves bytes from src to dst until the link ends.
func (p *Proxy) pass(l *link, dst io.Writer, src io.Reader, v *valve) {
	defer func() {
		l.close()
		p.mu.Lock()
		defer p.mu.Unlock()
		delete(p.links, l)
	}()
	buf := make([]byte, 64<<10)
	for {
		n, err := src.Read(buf)
		if err != nil {
			return
		}
		p.mu.Lock()
		shut := v.shut
		p.mu.Unlock()
		if shut != nil {
			<-shut
		}
		p.mu.Lock()
		lose, drop := v.lose, v.drop
		p.mu.Unlock()
		if lose {
			return
		}
		if drop != nil && drop(buf[:n]) {
			continue
		}
		if _, err := dst.Write(buf[:n]); err != nil {
			return
		}
	}
}

func (p *Proxy) close() {
	_ = p.listener.Close()
	p.mu.Lock()
	p.closed = true
	for _, v := range []*valve{&p.toward, &p.back} {
		if v.shut != nil {
			close(v.shut)
			v.shut = nil
		}
	}
	for l := range p.links {
		l.close()
	}
	p.mu.Unlock()
	p.wg.Wait()
}

func (l *link) close() {
	_ = l.client.Close()
	_ = l.server.Close()
}
