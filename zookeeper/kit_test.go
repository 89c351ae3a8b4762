package zookeeper_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-zookeeper/zk"
	"github.com/stretchr/testify/require"

	"github.com/seed-215fdefa/lock/internal/storetest"
	"github.com/seed-215fdefa/lock/internal/testserver"
	"github.com/seed-215fdefa/lock/locktest/faultproxy"
	"github.com/seed-215fdefa/lock/zookeeper"
)

const (
	tick    = 200 * time.Millisecond // of the test servers
	timeout = 5 * time.Second        // of most sessions
	distant = 10 * time.Second       // of those whose case takes dozens of long round trips
	long    = 30 * time.Second       // of those that are to outlast the test
)

// silent drops what the client would say about the faults that the tests make.
type silent struct{}

func (silent) Printf(string, ...any) {}

// dial opens a session.
func dial(tb testing.TB, timeout time.Duration, addrs ...string) *zk.Conn {
	tb.Helper()
	return dialBy(tb, new(gate).dial, timeout, addrs...)
}

func dialBy(tb testing.TB, dialer zk.Dialer, timeout time.Duration, addrs ...string) *zk.Conn {
	tb.Helper()
	conn, _, err := zk.Connect(addrs, timeout, zk.WithLogger(silent{}), zk.WithLogInfo(false), zk.WithDialer(dialer))
	require.NoError(tb, err)
	tb.Cleanup(func() {
		drain(conn)
		conn.Close()
	})
	storetest.Eventually(tb, "a session", func() bool { return conn.State() == zk.StateHasSession })
	return conn
}

// drain has the replies that are on their way come in, since zk.Conn.CreateContainer reads
// one that comes while the connection is being closed, and races with it.
func drain(conn *zk.Conn) {
	if conn.State() != zk.StateHasSession {
		return
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _, _ = conn.Exists("/")
	}()
	select {
	case <-done:
	case <-time.After(time.Second):
	}
}

// world is a server and a root of the test's own.
type world struct {
	server  *testserver.Server
	root    string
	timeout time.Duration
	all     *processes
	oneWay  time.Duration // from a process to the server
}

// processes are those of one world.
type processes struct {
	mu   sync.Mutex // guards list
	list []*process
}

// reconnect has all processes connect anew. A server that is about to start may take a
// handshake and never answer it, for which the client waits six session timeouts.
func (p *processes) reconnect() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, q := range p.list {
		q.proxy.Break()
	}
}

func newWorld(tb testing.TB, server *testserver.Server) world {
	tb.Helper()
	w := world{server: server, root: "/" + strings.TrimSuffix(testserver.Prefix(), ":"), timeout: timeout, all: new(processes)}
	_, err := dial(tb, long, server.Addr()).Create(w.root, nil, 0, zk.WorldACL(zk.PermAll))
	require.NoError(tb, err)
	return w
}

// sharedWorld is on the server that the tests share.
func sharedWorld(tb testing.TB) world { return newWorld(tb, testserver.SharedZooKeeper(tb)) }

// lasting has the sessions, and so the grants, last for longer than a test does.
func (w world) lasting() world {
	w.timeout = long
	return w
}

// ownWorld is on a server of the test's own, to break.
func ownWorld(tb testing.TB, args ...string) world {
	tb.Helper()
	takeTurns(tb)
	return newWorld(tb, testserver.ZooKeeper(tb, args...))
}

// turns are few: a machine that runs a dozen JVMs at once is too slow for any TTL.
var turns = make(chan struct{}, 2)

// takeTurns holds a test back while others have servers of their own.
func takeTurns(tb testing.TB) {
	turns <- struct{}{}
	tb.Cleanup(func() { <-turns })
}

// process is a Locker with a session and a way to the server of its own.
type process struct {
	*zookeeper.Locker
	conn  *zk.Conn
	proxy *faultproxy.Proxy
	world world
}

// open starts one more process.
func (w world) open(tb testing.TB, opts ...zookeeper.Option) *process {
	tb.Helper()
	return w.openAt(tb, w.server.Addr(), opts...)
}

func (w world) openAt(tb testing.TB, addr string, opts ...zookeeper.Option) *process {
	tb.Helper()
	proxy := faultproxy.New(tb, addr)
	proxy.Delay(faultproxy.All(), w.oneWay)
	conn := dial(tb, w.timeout, proxy.Addr())
	l := zookeeper.New(conn, append([]zookeeper.Option{
		zookeeper.WithRoot(w.root), zookeeper.WithTick(tick), zookeeper.WithSessionTimeout(w.timeout),
	}, opts...)...)
	tb.Cleanup(func() { require.NoError(tb, l.Close()) })
	p := &process{l, conn, proxy, w}
	w.all.mu.Lock()
	defer w.all.mu.Unlock()
	w.all.list = append(w.all.list, p)
	return p
}

// isEvent tells whether chunk is of watch events alone. A reply is not lost with them: the
// server writes each by itself.
func isEvent(chunk []byte) bool {
	for len(chunk) >= 8 {
		n := int(binary.BigEndian.Uint32(chunk))
		if int32(binary.BigEndian.Uint32(chunk[4:])) != -1 || len(chunk) < 4+n {
			return false
		}
		chunk = chunk[4+n:]
	}
	return len(chunk) == 0
}

// asks selects the requests of a kind for a path that has part.
func asks(op uint32, part string) faultproxy.Messages {
	return faultproxy.Requests().Matching(func(chunk []byte) bool {
		for len(chunk) >= 12 { // length, xid, operation
			n := min(len(chunk), 4+int(binary.BigEndian.Uint32(chunk)))
			if binary.BigEndian.Uint32(chunk[8:]) == op && bytes.Contains(chunk[:n], []byte(part)) {
				return true
			}
			chunk = chunk[n:]
		}
		return false
	})
}

// names returns the children of a node, none if it is not there.
func names(tb testing.TB, conn *zk.Conn, path string) []string {
	tb.Helper()
	children, _, err := conn.Children(path)
	if err != nil {
		require.ErrorIs(tb, err, zk.ErrNoNode)
	}
	return children
}

// deleteBelow deletes all nodes below path, though others may be making more.
func deleteBelow(tb testing.TB, conn *zk.Conn, path string) {
	tb.Helper()
	for _, name := range names(tb, conn, path) {
		child := path + "/" + name
		err := zk.ErrNotEmpty
		for errors.Is(err, zk.ErrNotEmpty) {
			deleteBelow(tb, conn, child)
			err = conn.Delete(child, -1)
		}
		if err != nil {
			require.ErrorIs(tb, err, zk.ErrNoNode)
		}
	}
}
