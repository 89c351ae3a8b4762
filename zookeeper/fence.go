package zookeeper

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/go-zookeeper/zk"

	"github.com/seed-215fdefa/lock"
)

// Fence guards nodes: it refuses a step whose token is older than the newest that was seen
// for the resource, in the same transaction as the step.
//
// Reads are guarded as well as writes, and a read-modify-write must read through the
// Fence: else a holder that froze between its read and its write loses its successor's
// update. Reading raises the mark, so once a successor has read, the predecessor's write is
// refused.
//
// The mark of a resource is a node of its own, below "/fence" unless another root is given.
// Nobody may delete it: a stale holder may wake at any time. Tokens of shared leases do not
// order their holders.
//
// A Fence is safe for concurrent use and needs no closing.
type Fence struct {
	conn *zk.Conn
	root string
	acl  []zk.ACL
	err  error

	mu    sync.Mutex // guards marks
	marks map[string]mark
}

// mark is what a mark was like when it was last seen.
type mark struct {
	token   lock.Token // 0: it is not there
	version int32
}

// NewFence returns a Fence for nodes that conn reaches, doing no I/O. Of the options it
// takes WithRoot and WithACL, for the marks; others are for locks. A bad option or a nil
// connection is an error that every call returns.
func NewFence(conn *zk.Conn, opts ...Option) *Fence {
	l := &Locker{conn: conn, root: "/fence", acl: zk.WorldACL(zk.PermAll)}
	err := l.apply(opts)
	return &Fence{conn: conn, root: l.root, acl: l.acl, err: err, marks: make(map[string]mark)}
}

// Multi runs ops, as zk.Conn.Multi takes them, in one transaction with the guard, and
// returns the replies to ops. A *lock.StaleError means that none was run, and so does the
// error of an op, such as zk.ErrBadVersion, which is that of the reply too. With no ops it
// raises the mark.
//
// After zk.ErrConnectionClosed, or when ctx ends, ops may have been run or yet be: they are
// sent once only. What could not be sent, since the client is looking for a server, waits
// for up to 30 s, then the error is zk.ErrNoServer and nothing was run. Inside Do, whose ctx ends with the lease, a write that must be told apart
// may be sent with context.WithoutCancel and a timeout: the token decides about it, not ctx.
func (f *Fence) Multi(ctx context.Context, resource string, token lock.Token, ops ...any) ([]zk.MultiResponse, error) {
	if err := f.check(ctx, resource, token); err != nil {
		return nil, err
	}
	for t := (tries{}); ; {
		m, err := f.seen(ctx, resource)
		if err != nil {
			return nil, explain(f.path(resource), f.root, err)
		}
		if token < m.token {
			return nil, &lock.StaleError{Key: resource, Token: token, Newest: m.token}
		}
		replies, raced, err := f.run(ctx, resource, m, token, ops)
		switch {
		case raced:
		case errors.Is(err, zk.ErrNoServer): // zk.Conn says so of what it has not sent
			if err := t.pause(ctx, context.Background(), err); err != nil {
				return nil, explain(f.path(resource), f.root, err)
			}
		default:
			return replies, explain(f.path(resource), f.root, err)
		}
	}
}

// Get reads a node, after a transaction that raises the mark or finds it as it should be:
// what it returns is no older than that, and no older token can write it any more. The
// error is a *lock.StaleError if token is stale, and zk.ErrNoNode if the node is not there.
func (f *Fence) Get(ctx context.Context, resource string, token lock.Token, path string) ([]byte, *zk.Stat, error) {
	if _, err := f.Multi(ctx, resource, token); err != nil {
		return nil, nil, err
	}
	data, stat, err := f.read(ctx, func(l *Locker) ([]byte, *zk.Stat, error) { return l.get(ctx, path) })
	return data, stat, wrap(err)
}

// read reads by means of a Locker.
func (f *Fence) read(ctx context.Context, get func(*Locker) ([]byte, *zk.Stat, error)) (data []byte, stat *zk.Stat, err error) {
	l := &Locker{conn: f.conn, root: f.root}
	err = again(ctx, context.Background(), func() (err error) {
		data, stat, err = get(l)
		return err
	})
	return data, stat, err
}

func (f *Fence) check(ctx context.Context, resource string, token lock.Token) error {
	switch {
	case f == nil || f.marks == nil:
		return fmt.Errorf("%w: zookeeper: the Fence was not made by NewFence", lock.ErrInvalid)
	case f.err != nil:
		return f.err
	case token == 0 || token > lock.MaxToken:
		return fmt.Errorf("%w: token %d: must be from 1 to %d", lock.ErrInvalid, token, lock.MaxToken)
	case resource == "":
		return fmt.Errorf("%w: fence: resource is empty", lock.ErrInvalid)
	}
	return ctx.Err()
}

// run sends the guard and ops. raced says that the mark is not m any more: nothing was run,
// and the mark is to be read again.
func (f *Fence) run(ctx context.Context, resource string, m mark, token lock.Token, ops []any) (replies []zk.MultiResponse, raced bool, err error) {
	path := f.path(resource)
	var guard any
	switch {
	case m.token == 0:
		guard = &zk.CreateRequest{Path: path, Data: []byte(token.String()), Acl: f.acl}
	case token > m.token:
		guard = &zk.SetDataRequest{Path: path, Data: []byte(token.String()), Version: m.version}
	default:
		guard = &zk.CheckVersionRequest{Path: path, Version: m.version}
	}
	replies, err = call(ctx, func() ([]zk.MultiResponse, error) {
		return f.conn.Multi(append([]any{guard}, ops...)...)
	})
	if len(replies) > 0 && replies[0].Error != nil {
		f.forget(resource)
		switch err := replies[0].Error; {
		case errors.Is(err, zk.ErrBadVersion), errors.Is(err, zk.ErrNodeExists):
			return nil, true, nil
		case errors.Is(err, zk.ErrNoNode): // the mark's root is not there yet
			_, err := call(ctx, func() (int, error) { return 0, createPath(f.conn, f.root, f.acl) })
			return nil, err == nil, err
		default:
			return nil, false, err
		}
	}
	switch {
	case err != nil && len(replies) == 0:
		f.forget(resource)
	case err == nil && m.token == 0:
		f.remember(resource, mark{token, 0})
	case err == nil && token > m.token:
		f.remember(resource, mark{token, replies[0].Stat.Version})
	}
	if len(replies) > 0 {
		replies = replies[1:]
	}
	return replies, false, err
}

// seen returns the mark as last seen, or reads it. It may be out of date: the transaction
// is refused then.
func (f *Fence) seen(ctx context.Context, resource string) (mark, error) {
	f.mu.Lock()
	m, ok := f.marks[resource]
	f.mu.Unlock()
	if ok {
		return m, nil
	}
	data, stat, err := f.read(ctx, func(l *Locker) ([]byte, *zk.Stat, error) {
		if err := l.sync(ctx); err != nil {
			return nil, nil, err
		}
		return l.get(ctx, f.path(resource))
	})
	if errors.Is(err, zk.ErrNoNode) {
		return mark{}, nil
	}
	if err != nil {
		return mark{}, err
	}
	token, err := lock.ParseToken(string(data))
	if err != nil {
		return mark{}, fmt.Errorf("%s is no mark: %w", f.path(resource), err)
	}
	m = mark{token, stat.Version}
	f.remember(resource, m)
	return m, nil
}

// maxMarks is how many marks a Fence remembers: those that it does not cost a read.
const maxMarks = 4096

func (f *Fence) remember(resource string, m mark) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.marks) >= maxMarks {
		clear(f.marks)
	}
	f.marks[resource] = m
}

func (f *Fence) forget(resource string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.marks, resource)
}

func (f *Fence) path(resource string) string {
	return f.root + "/" + escaping.Encode(resource)
}
