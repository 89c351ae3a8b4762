package zookeeper

import (
	"errors"
	"net"
	"os"
	"sync/atomic"
	"time"

	"github.com/go-zookeeper/zk"
)

// Dialer makes connections that give a server a third of the session timeout to answer the
// handshake. It is for [zk.WithDialer], where nothing else bounds that: zk.Conn waits for
// nearly seven session timeouts. A server that is frozen or just starting, or a balancer with
// no server behind it, may take the connection and never answer. Then all leases are lost,
// although other servers would have served.
//
// After one that was not answered the next may take twice as long, and so on. Each tells the
// server that the session lives, even if no answer comes back: at T/3 for ever, a client that
// hears nothing would keep its locks.
//
//	conn, _, err := zk.Connect(servers, timeout, zk.WithDialer(zookeeper.Dialer(timeout, nil)))
//
// dial makes the connections, with TLS perhaps; nil is net.DialTimeout.
func Dialer(sessionTimeout time.Duration, dial zk.Dialer) zk.Dialer {
	if dial == nil {
		dial = net.DialTimeout
	}
	silent := new(atomic.Int32)
	return func(network, address string, timeout time.Duration) (net.Conn, error) {
		conn, err := dial(network, address, timeout)
		if err != nil {
			return nil, err
		}
		return &handshake{Conn: conn, limit: sessionTimeout / 3 << min(silent.Load(), 5), silent: silent}, nil
	}
}

// handshake is a connection whose first read deadline, which is that of the handshake, is
// brought forward.
type handshake struct {
	net.Conn
	limit  time.Duration
	silent *atomic.Int32 // handshakes in a row that were not answered

	begun, over bool // used by the one goroutine that reads
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
	if !c.over {
		c.over = true
		if errors.Is(err, os.ErrDeadlineExceeded) {
			c.silent.Add(1)
		} else {
			c.silent.Store(0)
		}
	}
	return n, err
}
