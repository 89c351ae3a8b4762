package redlock_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"slices"
	"sync"
	"testing"
	"time"

	goredis "github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/internal/storetest"
	"github.com/seed-215fdefa/lock/internal/testserver"
	"github.com/seed-215fdefa/lock/locktest/faultproxy"
	"github.com/seed-215fdefa/lock/redlock"
)

// minority is how many of five nodes may fail.
const minority = 2

// long has nodes that have lost their data abstain for longer than a test takes.
var long = redlock.WithMaxTTL(time.Hour)

// world is five servers and a prefix.
type world struct {
	servers []*testserver.Server
	prefix  string
	plain   []*goredis.Client // of the nodes, beside all Lockers
	proxied bool              // processes have a proxy to each node
	oneWay  time.Duration     // from a proxied process to its nodes
	patient bool              // clients wait for a node for longer than a test does for anything
}

func sharedWorld(tb testing.TB) world {
	tb.Helper()
	return newWorld(tb, testserver.SharedRedlock(tb))
}

// ownWorld is five servers of the test's own, to break.
func ownWorld(tb testing.TB, args ...string) world {
	tb.Helper()
	return newWorld(tb, testserver.Redlock(tb, args...))
}

func newWorld(tb testing.TB, servers []*testserver.Server) world {
	w := world{servers: servers, prefix: testserver.Prefix()}
	for _, s := range servers {
		rdb := goredis.NewClient(&goredis.Options{Addr: s.Addr()})
		tb.Cleanup(func() { _ = rdb.Close() })
		w.plain = append(w.plain, rdb)
	}
	return w
}

// pause freezes all at once, so that no lease is renewed by a majority meanwhile.
func (w world) pause() {
	var all sync.WaitGroup
	for _, s := range w.servers {
		all.Go(s.Pause)
	}
	all.Wait()
}

func (w world) resume() {
	for _, s := range w.servers {
		s.Resume()
	}
}

// process is one Locker with a network of its own to each node, which a test can break.
type process struct {
	*redlock.Locker
	world
	nodes   []goredis.UniversalClient
	nets    []*network
	proxies []*faultproxy.Proxy // none if it is not proxied
}

// open starts a process. It is patient with a busy machine, unless opts say otherwise.
func (w world) open(tb testing.TB, opts ...redlock.Option) *process {
	tb.Helper()
	return w.reaching(tb, []int{0, 1, 2, 3, 4}, opts...)
}

// reaching starts a process that reaches only these nodes.
func (w world) reaching(tb testing.TB, nodes []int, opts ...redlock.Option) *process {
	tb.Helper()
	p := &process{world: w}
	for i, s := range w.servers {
		n := &network{conns: make(map[*wire]struct{}), cut: !slices.Contains(nodes, i)}
		p.nets = append(p.nets, n)
		addr := s.Addr()
		if w.proxied {
			proxy := faultproxy.New(tb, addr)
			proxy.Delay(faultproxy.All(), w.oneWay)
			p.proxies, addr = append(p.proxies, proxy), proxy.Addr()
		}
		o := &goredis.Options{Addr: addr, Dialer: n.dial}
		if w.patient {
			o.ReadTimeout = 2 * storetest.Patience
		}
		p.nodes = append(p.nodes, goredis.NewClient(o))
	}
	p.Locker = redlock.New(p.nodes, append([]redlock.Option{
		redlock.WithPrefix(w.prefix), redlock.WithTimeout(5 * time.Second),
	}, opts...)...)
	tb.Cleanup(func() {
		_ = p.Close()
		for _, rdb := range p.nodes {
			_ = rdb.Close()
		}
	})
	return p
}

// forget deletes all that the nodes know under the prefix, their own state included.
func (w world) forget(tb testing.TB) {
	tb.Helper()
	ctx := storetest.Bounded(tb)
	for i := range w.servers {
		rdb := w.plain[i]
		names, err := rdb.Keys(ctx, w.prefix+"*").Result()
		require.NoError(tb, err)
		if len(names) > 0 {
			require.NoError(tb, rdb.Del(ctx, names...).Err())
		}
	}
}

// network is the way of one process to one node.
type network struct {
	mu    sync.Mutex // guards the rest
	cut   bool       // nothing passes
	muted bool       // replies get lost, and their connections with them
	conns map[*wire]struct{}
	trap  *trap
}

var errCut = errors.New("network is cut")

func (n *network) dial(ctx context.Context, kind, addr string) (net.Conn, error) {
	n.mu.Lock()
	cut := n.cut
	n.mu.Unlock()
	if cut {
		return nil, &net.OpError{Op: "dial", Net: kind, Err: errCut}
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

// sever cuts the process off, as if it had been killed.
func (n *network) sever() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.cut = true
	for w := range n.conns {
		_ = w.Conn.Close()
	}
}

// trap catches the next request that has all of texts in it. To the process its connection
// is lost then, or just slow; the server gets it when the test says so.
type trap struct {
	texts  []string
	slow   bool
	cuts   bool          // it cuts the network too
	then   *trap         // not nil: the server gets the request, its reply is lost, and this is set
	caught chan struct{} // closed when it has
	wire   *wire
	bytes  []byte
}

func (n *network) set(t *trap) *trap {
	t.caught = make(chan struct{})
	n.mu.Lock()
	defer n.mu.Unlock()
	n.trap = t
	return t
}

// catches is called under net.mu.
func (t *trap) catches(w *wire, b []byte) bool {
	if t == nil {
		return false
	}
	for _, text := range t.texts {
		if !bytes.Contains(b, []byte(text)) {
			return false
		}
	}
	if t.then != nil {
		w.net.trap, w.losing = t.then, true
		close(t.caught)
		return false
	}
	t.wire, t.bytes = w, bytes.Clone(b)
	w.net.trap, w.taken, w.lost, w.net.cut = nil, true, !t.slow, t.cuts
	for other := range w.net.conns {
		if t.cuts && other != w {
			_ = other.Conn.Close()
		}
	}
	close(t.caught)
	return true
}

// await returns when it has caught something.
func (t *trap) await(tb testing.TB) {
	tb.Helper()
	select {
	case <-t.caught:
	case <-time.After(storetest.Patience):
		require.FailNow(tb, "nothing like it was sent", "%q", t.texts)
	}
}

// deliver lets the server have what was caught. Unless the process still waits for the reply
// it returns when that has been executed.
func (t *trap) deliver(tb testing.TB) {
	tb.Helper()
	w := t.wire
	w.net.mu.Lock()
	w.taken = false
	gone := w.lost
	w.net.mu.Unlock()
	if gone {
		require.NoError(tb, w.SetDeadline(time.Time{}))
	}
	_, err := w.Conn.Write(t.bytes)
	require.NoError(tb, err)
	if gone {
		_, err = w.Conn.Read(make([]byte, 512))
		require.NoError(tb, err)
		require.NoError(tb, w.Conn.Close())
	}
}

func (n *network) heal() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.cut = false
}

func (n *network) mute(on bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.muted = on
}

type wire struct {
	net.Conn
	net    *network
	taken  bool // by a trap, which will use it; guarded by net.mu, as is lost
	lost   bool // to the process
	losing bool // its next reply gets lost; guarded likewise
}

func (w *wire) Write(b []byte) (int, error) {
	w.net.mu.Lock()
	caught := w.net.trap.catches(w, b)
	w.net.mu.Unlock()
	if caught {
		return len(b), nil
	}
	return w.Conn.Write(b)
}

func (w *wire) Read(b []byte) (int, error) {
	w.net.mu.Lock()
	lost := w.lost
	w.net.mu.Unlock()
	if lost {
		return 0, io.EOF
	}
	n, err := w.Conn.Read(b)
	w.net.mu.Lock()
	lose := w.net.muted || w.losing
	w.net.mu.Unlock()
	if err == nil && lose {
		_ = w.Conn.Close()
		return 0, io.EOF
	}
	return n, err
}

func (w *wire) Close() error {
	w.net.mu.Lock()
	defer w.net.mu.Unlock()
	delete(w.net.conns, w)
	if w.taken {
		w.lost = true
		return nil
	}
	return w.Conn.Close()
}

// pool is how many connections p has to node i.
func (p *process) pool(i int) int { return int(p.nodes[i].PoolStats().TotalConns) }

// grantOf is what undoes req.
func grantOf(req lock.Request) lock.Grant {
	return lock.Grant{Key: req.Key, Owner: req.Owner}
}
