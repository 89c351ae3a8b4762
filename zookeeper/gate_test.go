package zookeeper_test

import (
	"encoding/binary"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// A gate makes zk.Conn do in order what it does at once. On a connection that goes on with a
// session it asks for its watches again, and reads its last zxid for that, while the
// goroutine that receives may write it: https://github.com/go-zookeeper/zk/pull/35. The race
// detector would report that, and it is not ours to test; what it can do, an event that is
// missed, is tested by LoseWakeup. So the first reply waits for the request that asks for
// the watches: by then the zxid has been read. make test tells the race detector as much;
// this is for a plain go test -race.
type gate struct {
	watched atomic.Bool // something has been watched, so that request may come
}

func (g *gate) dial(network, address string, timeout time.Duration) (net.Conn, error) {
	conn, err := net.DialTimeout(network, address, timeout)
	if err != nil {
		return nil, err
	}
	return &gatedConn{Conn: conn, gate: g, open: make(chan struct{})}, nil
}

// gatedConn is used by one reader and one writer.
type gatedConn struct {
	net.Conn
	gate   *gate
	reads  int           // the handshake takes two
	writes int           // and one of these
	open   chan struct{} // closed when replies may come
	once   sync.Once     // closes open
}

const (
	opSetWatches = 101
	// noWatches is how long the request for the watches may take. If it does not come there
	// are none any more, and so no race.
	noWatches = 2 * time.Second
)

func (c *gatedConn) pass() { c.once.Do(func() { close(c.open) }) }

func (c *gatedConn) Read(b []byte) (int, error) {
	if c.reads++; c.reads == 3 {
		select {
		case <-c.open:
		case <-time.After(noWatches):
		}
	}
	return c.Conn.Read(b)
}

func (c *gatedConn) Write(b []byte) (int, error) {
	switch c.writes++; {
	case c.writes == 1: // length, version, last zxid, timeout, session
		if len(b) < 28 || binary.BigEndian.Uint64(b[20:]) == 0 || !c.gate.watched.Load() {
			c.pass() // a new session watches nothing
		}
	case len(b) >= 12: // length, xid, operation
		switch binary.BigEndian.Uint32(b[8:]) {
		case opSetWatches:
			c.pass()
		case 3, 4, 8, 12: // Exists, GetData, GetChildren, GetChildren2 end with whether to watch
			if b[len(b)-1] == 1 {
				c.gate.watched.Store(true)
			}
		}
	}
	return c.Conn.Write(b)
}

func (c *gatedConn) Close() error {
	c.pass()
	return c.Conn.Close()
}
