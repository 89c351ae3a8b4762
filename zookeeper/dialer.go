package zookeeper

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"sync/atomic"
	"time"

	"github.com/go-zookeeper/zk"

	"github.com/seed-215fdefa/lock"
)

// Dialer makes the connections of one zk.Conn, and sees to two things that zk.Conn does not.
//
//	d := zookeeper.NewDialer(10*time.Second, nil)
//	conn, _, err := zk.Connect(servers, 10*time.Second, zk.WithDialer(d.Dial))
//	locker := zookeeper.New(conn, zookeeper.WithDialer(d))
//
// It knows the session timeout that the server has granted, which may be another than the
// client has asked for, and the Locker grants no TTL that goes beyond it.
//
// And it gives a server a third of the session timeout to answer the handshake, for which
// zk.Conn waits nearly seven session timeouts. A server that is frozen or just starting, or a
// balancer with no server behind it, may take the connection and never answer. Then all leases
// are lost, although other servers would have served. After one that was not answered the next
// may take twice as long, and so on. Each tells the server that the session lives, even if no
// answer comes back: at T/3 for ever, a client that hears nothing would keep its locks.
//
// It is safe for concurrent use.
type Dialer struct {
	timeout time.Duration // of the session, as asked for
	dial    zk.Dialer
	silent  atomic.Int32 // handshakes in a row that were not answered
	granted atomic.Int64 // the session timeout, by the last handshake; 0: there was none
}

// NewDialer returns a Dialer for a zk.Conn of that session timeout. dial makes the
// connections, with TLS perhaps; nil is net.DialTimeout.
func NewDialer(sessionTimeout time.Duration, dial zk.Dialer) *Dialer {
	if dial == nil {
		dial = net.DialTimeout
	}
	return &Dialer{timeout: sessionTimeout, dial: dial}
}

// Dial is for [zk.WithDialer]. Its errors are those of the dial that NewDialer was given.
func (d *Dialer) Dial(network, address string, timeout time.Duration) (net.Conn, error) {
	conn, err := d.dial(network, address, timeout)
	if err != nil {
		return nil, err
	}
	return &handshake{Conn: conn, dialer: d, limit: d.timeout / 3 << min(d.silent.Load(), 5)}, nil
}

// WithDialer says that d makes the connections of the Locker's zk.Conn. It does for
// [WithSessionTimeout], and better.
func WithDialer(d *Dialer) Option {
	return func(l *Locker) error {
		if d == nil {
			return fmt.Errorf("%w: zookeeper: dialer is nil", lock.ErrInvalid)
		}
		l.dialer = d
		return WithSessionTimeout(d.timeout)(l)
	}
}

// handshake is a connection whose first read deadline, which is that of the handshake, is
// brought forward.
type handshake struct {
	net.Conn
	dialer *Dialer
	limit  time.Duration

	// Used by the one goroutine that reads.
	begun, over bool
	reply       []byte // as much of it as is of interest
}

func (c *handshake) SetReadDeadline(t time.Time) error {
	if !c.begun {
		c.begun = true
		if limit := time.Now().Add(c.limit); limit.Before(t) {
			t = limit
		}
	}
	return c.Conn.SetReadDeadline(t)
}

func (c *handshake) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if c.over {
		return n, err
	}
	if len(c.reply) == 0 {
		if errors.Is(err, os.ErrDeadlineExceeded) {
			c.dialer.silent.Add(1)
		} else {
			c.dialer.silent.Store(0)
		}
	}
	c.reply = append(c.reply, b[:n]...)
	if c.over = err != nil || len(c.reply) >= headLen; c.over {
		if timeout, ok := parseHead(c.reply); ok {
			c.dialer.granted.Store(int64(timeout))
		}
		c.reply = nil
	}
	return n, err
}

// headLen is the length of what a handshake's reply begins with: four bytes each of its length,
// the protocol's version and the session timeout, and eight of the session. See ConnectResponse
// in ZooKeeper's zookeeper.jute.
const headLen = 4 + 4 + 4 + 8

// parseHead returns the session timeout of a handshake's reply, unless it says that the session
// has expired.
func parseHead(b []byte) (timeout time.Duration, ok bool) {
	if len(b) < headLen {
		return 0, false
	}
	timeout = time.Duration(int32(binary.BigEndian.Uint32(b[8:]))) * time.Millisecond
	return timeout, timeout > 0 && binary.BigEndian.Uint64(b[12:]) != 0
}
