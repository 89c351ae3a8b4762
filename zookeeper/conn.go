package zookeeper

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"

	"github.com/go-zookeeper/zk"

	"github.com/seed-215fdefa/lock/internal/storekit"
)

var (
	// errGone ends a place in line whose node is not there any more.
	errGone = errors.New("lock: zookeeper: the node is gone")
	// errCreating is for an owner's claim that does not know yet which node is its own.
	errCreating = errors.New("lock: zookeeper: another acquisition of this owner has begun")
	// errReply is for replies that ZooKeeper does not give.
	errReply = errors.New("lock: zookeeper: unexpected reply")
	// errClientClosed is for a zk.Conn that its owner has closed.
	errClientClosed = storekit.ClientClosed("zookeeper", nil)
)

// broken makes the error of a socket that could not be written, which zk.Conn passes on as it
// is, what it says of all other requests of that connection.
func broken(err error) error {
	if n := net.Error(nil); errors.As(err, &n) {
		return fmt.Errorf("%w: %w", zk.ErrConnectionClosed, err)
	}
	return err
}

// classify tells what an error of zk.Conn, or of this package, means. zk.Conn's queue outlives
// connections, sessions and outages, so most of these come once for each.
func classify(err error) storekit.Class {
	switch {
	case err == nil:
		return storekit.Final
	case errors.Is(err, zk.ErrConnectionClosed), errors.Is(err, zk.ErrSessionMoved):
		return storekit.Unknown // or it was sent to a server that the session had left
	case errors.Is(err, zk.ErrNoServer):
		return storekit.Unsent
	case errors.Is(err, zk.ErrSessionExpired), errors.Is(err, errCreating), strings.Contains(err.Error(), throttled):
		return storekit.Busy
	}
	return storekit.Final
}

// throttled is the error of a server under heavy load that has not executed a request (THROTTLEDOP in
// ZooKeeper's KeeperException.Code), which zk.Conn has no name for.
const throttled = "unknown error: -127"

// wrap says where an error of the client comes from.
func wrap(err error) error {
	if err == nil || strings.HasPrefix(err.Error(), "lock: ") ||
		errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	return fmt.Errorf("lock: zookeeper: %w", err)
}

// explain is wrap for an error of a call for key: one of a missing right says where it is missing, and one
// that may pass is for good once the Locker or its connection was closed.
func (l *Locker) explain(key string, err error) error {
	if err != nil && l.done.Err() != nil && classify(err).Passing() {
		err = fmt.Errorf("%w: %w", context.Cause(l.done), err)
	}
	return explain(l.parent(key), l.root, err)
}

func explain(path, root string, err error) error {
	if errors.Is(err, zk.ErrNoAuth) {
		err = fmt.Errorf("%w: for %s: the ACLs of that node and of %s must grant this connection create, read, write and delete",
			err, path, root)
	}
	return wrap(err)
}

// call makes a call of zk.Conn that can be given up. Its goroutine ends when the server has
// answered, or the connection's queue is flushed or closed: f may still be running, or not have
// begun, when call has returned, so it reads nothing that changes.
func call[T any](ctx context.Context, f func() (T, error)) (T, error) {
	type result struct {
		v   T
		err error
	}
	done := make(chan result, 1)
	go func() {
		v, err := f()
		done <- result{v, broken(err)}
	}()
	select {
	case r := <-done:
		return r.v, r.err
	case <-ctx.Done():
		var zero T
		return zero, ctx.Err()
	}
}

// again reads, and once more where that may help, within patience.
func (l *Locker) again(ctx context.Context, read func(context.Context) error) error {
	return storekit.WithinPatience(ctx, func(ctx context.Context) error {
		_, err := storekit.Repeat(ctx, classify, func(ctx context.Context, _ int) error { return read(ctx) })
		return err
	})
}

// get reads a node.
func get(ctx context.Context, conn *zk.Conn, path string) ([]byte, *zk.Stat, error) {
	type reply struct {
		data []byte
		stat *zk.Stat
	}
	r, err := call(ctx, func() (reply, error) {
		data, stat, err := conn.Get(path)
		return reply{data, stat}, err
	})
	return r.data, r.stat, err
}

// line reads who holds key and waits for it. It sees at least what this session has written.
func (l *Locker) line(ctx context.Context, key string) ([]node, error) {
	names, err := call(ctx, func() ([]string, error) {
		names, _, err := l.conn.Children(l.parent(key))
		return names, err
	})
	if errors.Is(err, zk.ErrNoNode) {
		return nil, nil
	}
	return parseLine(names), err
}

// current is line, of a state no older than the call.
func (l *Locker) current(ctx context.Context, key string) ([]node, error) {
	if err := l.sync(ctx); err != nil {
		return nil, err
	}
	return l.line(ctx, key)
}

// sync brings the server to which the session is connected up to date with the leader.
func (l *Locker) sync(ctx context.Context) error {
	_, err := call(ctx, func() (string, error) { return l.conn.Sync(l.root) })
	if errors.Is(err, zk.ErrNoNode) {
		return nil
	}
	return err
}

// barrier returns when all that this session has ever sent has been done or refused for
// good, and what it reads next is of a state no older than the call. It is a write, since
// a leader that has been deposed and does not know it answers a sync. It returns the
// session.
func (l *Locker) barrier(ctx context.Context) (int64, error) {
	u := &unit{ops: []any{&zk.CheckVersionRequest{Path: l.root, Version: -1}}}
	err := l.lane.do(ctx, u)
	if errors.Is(err, zk.ErrNoNode) {
		err = nil // a transaction that is refused is one
	}
	if err != nil {
		return 0, err
	}
	if u.session == 0 {
		return 0, zk.ErrSessionExpired
	}
	return u.session, nil
}
