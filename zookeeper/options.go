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

// WithSessionTimeout says what the session timeout of the connection is, which zk.Conn does
// not tell: the timeout passed to zk.Connect, within the server's minSessionTimeout and
// maxSessionTimeout (by default 2 and 20 ticks, 4 s and 40 s). One that is shorter than the
// real one is safe, and costs renewals. It or [WithDialer] must be given.
func WithSessionTimeout(d time.Duration) Option {
	return func(l *Locker) error {
		if d <= 0 {
			return fmt.Errorf("%w: zookeeper: session timeout %v: must be positive", lock.ErrInvalid, d)
		}
		l.timeout = d
		return nil
	}
}

// WithTick says what the server's tickTime is. Default 2 s, as in the configuration that
// ZooKeeper comes with.
func WithTick(d time.Duration) Option {
	return func(l *Locker) error {
		if d <= 0 {
			return fmt.Errorf("%w: zookeeper: tick %v: must be positive", lock.ErrInvalid, d)
		}
		l.tick = d
		return nil
	}
}

// WithRoot sets the node below which all locks are. Default "/lock". It is created, with
// what is above it, where it is missing. Lockers with the same root share their locks.
func WithRoot(path string) Option {
	return func(l *Locker) error {
		l.root = path
		return checkRoot(path)
	}
}

// WithACL sets the access control list of all nodes that the Locker creates. Default
// zk.WorldACL(zk.PermAll). It must allow the connection to create, read, write and delete.
func WithACL(acl ...zk.ACL) Option {
	return func(l *Locker) error {
		if len(acl) == 0 {
			return fmt.Errorf("%w: zookeeper: ACL is empty: nobody could use the nodes", lock.ErrInvalid)
		}
		l.acl = append([]zk.ACL(nil), acl...)
		return nil
	}
}

// WithTokenBase adds base to all tokens. Default 0: a token is a transaction id of ZooKeeper, far
// below those of some other stores, so the fences of a resource that another store's tokens have
// marked refuse all of ZooKeeper's. Who moves from another store gives a base that is not below
// the newest token that one has granted. All Lockers with the same root must have the same base.
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
		return fmt.Errorf("%w: zookeeper: WithSessionTimeout is missing: it must say what was passed to zk.Connect, or WithDialer", lock.ErrInvalid)
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
			return fmt.Errorf("%w: zookeeper: root %q: name %q: must be printable ASCII, and no dots alone", lock.ErrInvalid, path, name)
		}
	}
	return nil
}
