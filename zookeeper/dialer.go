package zookeeper

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/go-zookeeper/zk"

	"github.com/seed-215fdefa/lock"
)

// Dialer makes the connections of one zk.Conn, and does three things that zk.Conn does not.
//
//	d := zookeeper.NewDialer(10*time.Second, nil)
//	conn, _, err := zk.Connect(servers, 10*time.Second, zk.WithDialer(d.Dial))
//	locker := zookeeper.New(conn, zookeeper.WithDialer(d))
//
// It learns the session timeout that the server has granted, which may differ from what the
// client asked for. The Locker grants no TTL beyond it.
//
// It limits how long a server may take to answer the handshake: to a third of the session
// timeout, where zk.Conn waits nearly seven session timeouts. A server that is frozen or
// starting, or a balancer with no server behind it, may accept a connection and never answer.
// All leases would then be lost, although other servers work. Each unanswered handshake in a row
// doubles the limit, up to 32 times. That matters because each handshake tells the server that
// the session lives, even if no answer comes back. With a fixed limit, a client that hears
// nothing could keep its locks for ever.
//
// It counts the connections. A [Locker.Watch] learns by that of one that broke for less than a second,
// after which zk.Conn may ask for its watches too late to be told of what it has missed.
//
// A Dialer is safe for concurrent use.
type Dialer struct {
	timeout time.Duration // of the session, as asked for
	dial    zk.Dialer
	silent  atomic.Int32 // handshakes in a row that were not answered
	made    atomic.Int64 // connections

	mu       sync.Mutex // guards sessions
	sessions []session  // the last few of the handshakes, the newest at the end
}

// session is what a handshake has granted.
type session struct {
	id      int64
	timeout time.Duration
}

// maxSessions is how many sessions a Dialer knows. For one connection two would do: that which
// it has, and the next, which it is about to learn of.
const maxSessions = 8

// note remembers what a handshake has granted.
func (d *Dialer) note(s session) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.sessions = slices.DeleteFunc(d.sessions, func(o session) bool { return o.id == s.id })
	if len(d.sessions) == maxSessions {
		d.sessions = slices.Delete(d.sessions, 0, 1)
	}
	d.sessions = append(d.sessions, s)
}

// granted is the timeout of a session, and whether d has dialed for it. Of session 0, which is
// none, it is the newest one's.
func (d *Dialer) granted(id int64) (timeout time.Duration, ok bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, s := range slices.Backward(d.sessions) {
		if s.id == id || id == 0 {
			return s.timeout, true
		}
	}
	return 0, false
}

// NewDialer returns a Dialer for a zk.Conn with this session timeout. dial makes the
// connections, for example with TLS; nil means net.DialTimeout.
func NewDialer(sessionTimeout time.Duration, dial zk.Dialer) *Dialer {
	if dial == nil {
		dial = net.DialTimeout
	}
	return &Dialer{timeout: sessionTimeout, dial: dial}
}

// Dial is for [zk.WithDialer]. It returns the errors of NewDialer's dial.
func (d *Dialer) Dial(network, address string, timeout time.Duration) (net.Conn, error) {
	conn, err := d.dial(network, address, timeout)
	if err != nil {
		return nil, err
	}
	d.made.Add(1)
	return &handshake{Conn: conn, dialer: d, limit: d.timeout / 3 << min(d.silent.Load(), 5)}, nil
}

// WithDialer says that d makes the connections of the Locker's zk.Conn. It replaces
// [WithSessionTimeout]. If zk.Connect was not given d.Dial, calls return ErrInvalid as soon as
// there is a session, because d does not know that session's timeout.
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
// brought forward, and stays until the reply has come. zk.Conn takes it away after four bytes.
type handshake struct {
	net.Conn
	dialer *Dialer
	limit  time.Duration

	// Used by the one goroutine that reads.
	begun, over bool
	reply       []byte // as much of it as is of interest
}

func (c *handshake) SetReadDeadline(t time.Time) error {
	if c.begun && !c.over && t.IsZero() {
		return nil
	}
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
	c.reply = append(c.reply, b[:n]...)
	if c.over = err != nil || len(c.reply) >= headLen; c.over {
		if errors.Is(err, os.ErrDeadlineExceeded) {
			c.dialer.silent.Add(1)
		} else {
			c.dialer.silent.Store(0)
		}
		if s, ok := parseHead(c.reply); ok {
			c.dialer.note(s)
		}
		c.reply = nil
	}
	return n, err
}

// headLen is the length of what a handshake's reply begins with: four bytes each of its length,
// the protocol's version and the session timeout, and eight of the session. See ConnectResponse
// in ZooKeeper's zookeeper.jute.
const headLen = 4 + 4 + 4 + 8

// parseHead returns the session of a handshake's reply, unless it says that the session has
// expired.
func parseHead(b []byte) (s session, ok bool) {
	if len(b) < headLen {
		return s, false
	}
	s.timeout = time.Duration(int32(binary.BigEndian.Uint32(b[8:]))) * time.Millisecond
	s.id = int64(binary.BigEndian.Uint64(b[12:]))
	return s, s.timeout > 0 && s.id != 0
}
