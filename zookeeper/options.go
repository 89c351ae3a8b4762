package zookeeper

import (
	"fmt"
	"strings"
	"time"

	"github.com/go-zookeeper/zk"

	"github.com/seed-215fdefa/lock"
)

// Option sets up a [Locker].
type Option func(*Locker) error

// WithSessionTimeout says what the connection's session timeout is, since zk.Conn does not tell.
// That is the timeout passed to zk.Connect, within the server's minSessionTimeout and
// maxSessionTimeout (by default 2 and 20 ticks, 4 s and 40 s). A value shorter than the real one
// is safe, but costs more renewals. Either this or [WithDialer] must be given.
func WithSessionTimeout(d time.Duration) Option {
	return func(l *Locker) error {
		if d <= 0 {
			return fmt.Errorf("%w: zookeeper: session timeout %v: must be positive", lock.ErrInvalid, d)
		}
		l.timeout = d
		return nil
	}
}

// WithTick says what the server's tickTime is. Default 2 s, as in ZooKeeper's sample
// configuration.
func WithTick(d time.Duration) Option {
	return func(l *Locker) error {
		if d <= 0 {
			return fmt.Errorf("%w: zookeeper: tick %v: must be positive", lock.ErrInvalid, d)
		}
		l.tick = d
		return nil
	}
}

// WithRoot sets the node below which all locks are. The Locker creates it and the nodes above it
// if they are missing. Lockers with the same root share their locks. Default "/lock".
func WithRoot(path string) Option {
	return func(l *Locker) error {
		l.root = path
		return checkRoot(path)
	}
}

// WithACL sets the access control list of all nodes that the Locker creates. It must allow the
// connection to create, read, write and delete. Default zk.WorldACL(zk.PermAll).
func WithACL(acl ...zk.ACL) Option {
	return func(l *Locker) error {
		if len(acl) == 0 {
			return fmt.Errorf("%w: zookeeper: ACL is empty: nobody could use the nodes", lock.ErrInvalid)
		}
		l.acl = append([]zk.ACL(nil), acl...)
		return nil
	}
}

// WithTokenBase adds base, at most half of lock.MaxToken, to all tokens. Set it when you move
// from another store, to a number that no token of that store exceeds: see docs/fencing.md.
// Otherwise ZooKeeper's tokens, which are transaction ids, are far below the other store's, and
// fences refuse them.
// All Lockers with the same root must have the same base. Default 0.
func WithTokenBase(base lock.Token) Option {
	return func(l *Locker) error {
		if base > lock.MaxToken/2 {
			return fmt.Errorf("%w: zookeeper: token base %d: must be at most %d", lock.ErrInvalid, base, lock.MaxToken/2)
		}
		l.base = base
		return nil
	}
}

// apply applies opts to a Locker that has a connection, or should.
func (l *Locker) apply(opts []Option) error {
	for _, o := range opts {
		if o == nil {
			return fmt.Errorf("%w: zookeeper: option is nil", lock.ErrInvalid)
		}
		if err := o(l); err != nil {
			return err
		}
	}
	if l.conn == nil {
		return fmt.Errorf("%w: zookeeper: connection is nil", lock.ErrInvalid)
	}
	return nil
}

func (l *Locker) setUp(opts []Option) error {
	if err := l.apply(opts); err != nil {
		return err
	}
	switch {
	case l.timeout == 0:
		return fmt.Errorf("%w: zookeeper: no session timeout: give WithDialer, or WithSessionTimeout with the timeout passed to zk.Connect", lock.ErrInvalid)
	case l.mostOf(l.timeout) < minTTL:
		return fmt.Errorf("%w: zookeeper: session timeout %v with a tick of %v leaves no TTL: two thirds of it must be more than a tick",
			lock.ErrInvalid, l.timeout, l.tick)
	}
	return nil
}

func checkRoot(path string) error {
	if !strings.HasPrefix(path, "/") || path == "/" {
		return fmt.Errorf("%w: zookeeper: root %q: must begin with a slash and have a name", lock.ErrInvalid, path)
	}
	for name := range strings.SplitSeq(path[1:], "/") {
		if name == "" || name == "." || name == ".." || strings.ContainsFunc(name, func(r rune) bool { return r < ' ' || r > '~' }) {
			return fmt.Errorf("%w: zookeeper: root %q: name %q: must be printable ASCII, and not \".\" or \"..\"", lock.ErrInvalid, path, name)
		}
	}
	return nil
}
