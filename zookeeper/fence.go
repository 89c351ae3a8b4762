package zookeeper

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/go-zookeeper/zk"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/internal/storekit"
)

// Fence guards nodes: it refuses a step whose token is older than the newest seen for the
// resource. One transaction checks the token and runs the step.
//
// A read-modify-write must read through the Fence too. Otherwise a holder that froze between its
// read and its write overwrites its successor's update. Reading raises the mark, so once a
// successor has read, the predecessor's write is refused.
//
// The mark of a resource is a node of its own, below "/fence" or the root of [WithRoot]. Nobody
// may delete it: a stale holder may wake at any time. Tokens of shared leases do not order their
// holders.
//
// A Fence is safe for concurrent use and needs no closing.
type Fence struct {
	l   *Locker // for its connection, root and ACL
	err error

	mu    sync.Mutex // guards marks
	marks map[string]mark
}

// mark is what a mark was like when it was last seen.
type mark struct {
	token   lock.Token // 0: it is not there
	version int32
}

// NewFence returns a Fence for the nodes that conn reaches. It does no I/O. [WithRoot] and
// [WithACL] apply to its marks; other options do not apply. Every call returns an error if conn
// is nil or an option is bad.
func NewFence(conn *zk.Conn, opts ...Option) *Fence {
	l := &Locker{conn: conn, root: "/fence", acl: zk.WorldACL(zk.PermAll)}
	return &Fence{l: l, err: l.apply(opts), marks: make(map[string]mark)}
}

// Multi runs ops, as zk.Conn.Multi takes them, and the guard in one transaction. It returns the
// replies to ops. Without ops it raises the mark.
//
// After a *lock.StaleError none of ops has run. The same holds after an op's error, such as
// zk.ErrBadVersion, which is in that op's reply too. After zk.ErrConnectionClosed, or if ctx
// ends, ops may have run or may yet run. Multi retries, for some seconds, only after errors that
// mean that ops have not run: zk.ErrNoServer if nothing could be sent, or a server that is too
// busy.
//
// ops are copied: once Multi has returned, the caller may change them, and their data.
//
// Inside Do, ctx ends with the lease. If you must know the outcome of a write, send it with
// context.WithoutCancel and a timeout: the token protects the nodes, not ctx.
func (f *Fence) Multi(ctx context.Context, resource string, token lock.Token, ops ...any) (replies []zk.MultiResponse, err error) {
	if err := f.check(ctx, resource, token); err != nil {
		return nil, err
	}
	ops = copied(ops)
	_, err = storekit.Repeat(ctx, unrun, func(ctx context.Context, _ int) error {
		for raced := true; raced; {
			m, err := f.seen(ctx, resource)
			if err != nil {
				return err
			}
			if token < m.token {
				return &lock.StaleError{Key: resource, Token: token, Newest: m.token}
			}
			if replies, raced, err = f.run(ctx, resource, m, token, ops); err != nil {
				return err
			}
		}
		return nil
	})
	return replies, explain(f.l.parent(resource), f.l.root, err)
}

// copied is ops with data of their own: zk.Conn reads them when it sends them, which may be after the
// call was given up. What is no op it refuses.
func copied(ops []any) []any {
	own := slices.Clone(ops)
	for i, op := range ops {
		if storekit.IsNil(op) {
			continue
		}
		switch op := op.(type) {
		case *zk.CreateRequest:
			c := *op
			c.Data, c.Acl = slices.Clone(op.Data), slices.Clone(op.Acl)
			own[i] = &c
		case *zk.SetDataRequest:
			c := *op
			c.Data = slices.Clone(op.Data)
			own[i] = &c
		case *zk.DeleteRequest:
			c := *op
			own[i] = &c
		case *zk.CheckVersionRequest:
			c := *op
			own[i] = &c
		}
	}
	return own
}

// unrun is classify for what must not be done twice.
func unrun(err error) storekit.Class {
	if c := classify(err); c != storekit.Unknown {
		return c
	}
	return storekit.Final
}

// Get raises the mark, if it is not high enough yet, and then reads a node. The result is no
// older than the mark, and no older token can write the node any more. Get returns a
// *lock.StaleError if token is stale, and zk.ErrNoNode if the node does not exist.
func (f *Fence) Get(ctx context.Context, resource string, token lock.Token, path string) ([]byte, *zk.Stat, error) {
	if _, err := f.Multi(ctx, resource, token); err != nil {
		return nil, nil, err
	}
	return f.read(ctx, func(ctx context.Context) ([]byte, *zk.Stat, error) { return get(ctx, f.l.conn, path) })
}

// read reads, and once more where that may help.
func (f *Fence) read(ctx context.Context, get func(context.Context) ([]byte, *zk.Stat, error)) (data []byte, stat *zk.Stat, err error) {
	_, err = storekit.Repeat(ctx, classify, func(ctx context.Context, _ int) (err error) {
		data, stat, err = get(ctx)
		return err
	})
	return data, stat, wrap(err)
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
	path, conn := f.l.parent(resource), f.l.conn
	var guard any
	switch {
	case m.token == 0:
		guard = &zk.CreateRequest{Path: path, Data: []byte(token.String()), Acl: f.l.acl}
	case token > m.token:
		guard = &zk.SetDataRequest{Path: path, Data: []byte(token.String()), Version: m.version}
	default:
		guard = &zk.CheckVersionRequest{Path: path, Version: m.version}
	}
	guarded := append([]any{guard}, ops...)
	replies, err = call(ctx, func() ([]zk.MultiResponse, error) { return conn.Multi(guarded...) })
	if len(replies) > 0 && replies[0].Error != nil {
		f.forget(resource)
		switch err := replies[0].Error; {
		case errors.Is(err, zk.ErrBadVersion), errors.Is(err, zk.ErrNodeExists):
			return nil, true, nil
		case errors.Is(err, zk.ErrNoNode): // the mark's root is not there yet
			_, err := call(ctx, func() (int, error) { return 0, createPath(conn, f.l.root, f.l.acl) })
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
	path := f.l.parent(resource)
	data, stat, err := f.read(ctx, func(ctx context.Context) ([]byte, *zk.Stat, error) {
		if err := f.l.sync(ctx); err != nil {
			return nil, nil, err
		}
		return get(ctx, f.l.conn, path)
	})
	if errors.Is(err, zk.ErrNoNode) {
		return mark{}, nil
	}
	if err != nil {
		return mark{}, err
	}
	token, err := lock.ParseToken(string(data))
	if err != nil {
		return mark{}, fmt.Errorf("%s is no mark: %w", path, err)
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
