package redis_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"testing"

	goredis "github.com/redis/go-redis/v9"

	"github.com/seed-215fdefa/lock/internal/testserver"
	"github.com/seed-215fdefa/lock/locktest/faultproxy"
	"github.com/seed-215fdefa/lock/redis"
)

// process is one Locker with a network of its own, which a test can break.
type process struct {
	*redis.Locker
	rdb    goredis.UniversalClient
	net    *network
	server *testserver.Server
	proxy  *faultproxy.Proxy // nil: its way is direct
}

// open starts a process on server.
func open(tb testing.TB, server *testserver.Server, opts ...redis.Option) *process {
	tb.Helper()
	return openAt(tb, server, server.Addr(), opts...)
}

// openAt is open for one whose way to server begins at addr.
func openAt(tb testing.TB, server *testserver.Server, addr string, opts ...redis.Option) *process {
	tb.Helper()
	n := &network{conns: make(map[*wire]struct{})}
	rdb := goredis.NewClient(&goredis.Options{Addr: addr, Dialer: n.dial})
	p := &process{Locker: redis.New(rdb, opts...), rdb: rdb, net: n, server: server}
	tb.Cleanup(func() {
		_ = p.Close()
		_ = rdb.Close()
	})
	return p
}

// patient has p's client, which has made no connection yet, wait for the server for longer than a
// test waits for the end of a call.
func (p *process) patient() {
	o := p.rdb.(*goredis.Client).Options()
	o.ReadTimeout, o.WriteTimeout = 2*patience, 2*patience
}

// network is the way of one process to its servers.
type network struct {
	mu    sync.Mutex // guards the rest
	dials int        // since drop
	cut   bool       // nothing passes
	mute  bool       // replies get lost, and their connections with them
	deaf  bool       // messages to subscribers get lost
	lossy bool       // the next reply gets lost, and its connection with it
	armed bool       // the next reply is held back
	held  int        // replies that are
	thaw  chan struct{}
	gate  chan struct{} // if not nil nobody subscribes until it is closed
	conns map[*wire]struct{}
}

var errCut = errors.New("network is cut")

func (n *network) dial(ctx context.Context, kind, addr string) (net.Conn, error) {
	n.mu.Lock()
	cut := n.cut
	n.dials++
	n.mu.Unlock()
	if cut {
		return nil, errCut
	}
	var d net.Dialer
	c, err := d.DialContext(ctx, kind, addr)
	if err != nil {
		return nil, err
	}
	w := &wire{Conn: c, net: n}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.cut { // meanwhile
		_ = c.Close()
		return nil, errCut
	}
	n.conns[w] = struct{}{}
	return w, nil
}

// sever cuts the process off for good, as if it had been killed.
func (n *network) sever() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.cut = true
	for w := range n.conns {
		_ = w.Conn.Close()
	}
}

// drop breaks all connections; new ones may be made.
func (n *network) drop() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.dials = 0
	for w := range n.conns {
		_ = w.Conn.Close()
	}
}

// dialled counts the connections that were asked for since drop.
func (n *network) dialled() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.dials
}

// stall holds back the next reply, and so its connection, until heal.
func (n *network) stall() (heal func()) {
	n.mu.Lock()
	defer n.mu.Unlock()
	thaw := make(chan struct{})
	n.armed, n.held, n.thaw = true, 0, thaw
	return func() { close(thaw) }
}

// stalled counts the replies that stall has held back.
func (n *network) stalled() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.held
}

// set changes one of the flags, and returns what changes it back.
func (n *network) set(flag *bool) (heal func()) {
	n.mu.Lock()
	defer n.mu.Unlock()
	*flag = true
	return func() {
		n.mu.Lock()
		defer n.mu.Unlock()
		*flag = false
	}
}

type wire struct {
	net.Conn
	net        *network
	subscriber bool // guarded by net.mu
}

func (w *wire) Write(b []byte) (int, error) {
	var gate chan struct{}
	w.net.mu.Lock()
	if bytes.Contains(b, []byte("\r\nsubscribe\r\n")) {
		w.subscriber, gate = true, w.net.gate
	}
	w.net.mu.Unlock()
	if gate != nil {
		<-gate
	}
	return w.Conn.Write(b)
}

func (w *wire) Read(b []byte) (int, error) {
	for {
		n, err := w.Conn.Read(b)
		w.net.mu.Lock()
		lose, drop := w.net.mute && !w.subscriber, w.net.deaf && w.subscriber
		if err == nil && w.net.lossy && !w.subscriber {
			w.net.lossy, lose = false, true
		}
		var thaw chan struct{}
		if err == nil && w.net.armed && !w.subscriber {
			w.net.armed, thaw = false, w.net.thaw
			w.net.held++
		}
		w.net.mu.Unlock()
		if thaw != nil {
			<-thaw
		}
		switch {
		case err != nil:
			return n, err
		case lose:
			_ = w.Conn.Close()
			return 0, io.EOF
		case !drop:
			return n, nil
		}
	}
}

func (w *wire) Close() error {
	w.net.mu.Lock()
	defer w.net.mu.Unlock()
	delete(w.net.conns, w)
	return w.Conn.Close()
}
