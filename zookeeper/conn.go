package zookeeper

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/go-zookeeper/zk"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/internal/storekit"
)

var (
	// errGone ends a place in line whose node is not there any more.
	errGone = errors.New("lock: zookeeper: the node is gone")
	// errUndone is the outcome of an acquisition whose owner has been released already.
	errUndone = errors.New("lock: zookeeper: this owner's acquisition has been undone")
	// errReply is for replies that ZooKeeper does not give.
	errReply = errors.New("lock: zookeeper: unexpected reply")
)

// broken makes the error of a socket that could not be written, which zk.Conn passes on as it
// is, what it says of all other requests of that connection.
func broken(err error) error {
	if n := net.Error(nil); errors.As(err, &n) {
		return fmt.Errorf("%w: %w", zk.ErrConnectionClosed, err)
	}
	return err
}

// isUnknown tells whether err leaves open what has happened: the connection broke, or the
// request was sent to a server that the session had left.
func isUnknown(err error) bool {
	return errors.Is(err, zk.ErrConnectionClosed) || errors.Is(err, zk.ErrSessionMoved)
}

// isTransient tells whether asking again may help. zk.Conn's queue outlives connections,
// sessions and outages, so most of these come once for each.
func isTransient(err error) bool {
	return isUnknown(err) || errors.Is(err, zk.ErrSessionExpired) || errors.Is(err, zk.ErrNoServer)
}

// wrap says where an error of the client comes from.
func wrap(err error) error {
	if err == nil || strings.HasPrefix(err.Error(), "lock: ") ||
		errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	return fmt.Errorf("lock: zookeeper: %w", err)
}

// explain is wrap for an error of a call for key: one of a missing right says where it is missing.
func (l *Locker) explain(key string, err error) error { return explain(l.parent(key), l.root, err) }

func explain(path, root string, err error) error {
	if errors.Is(err, zk.ErrNoAuth) {
		err = fmt.Errorf("%w: for %s: the ACLs of that node and of %s must grant this connection create, read, write and delete",
			err, path, root)
	}
	return wrap(err)
}

// tries counts failures in a row.
type tries struct {
	n, broken, noServer int
	since               time.Time
	last                error
}

const (
	maxBroken = 12 // connections in a row: it is the caller who has closed it
	minPause  = 5 * time.Millisecond
	maxPause  = 500 * time.Millisecond
)

func (t *tries) reset() { *t = tries{} }

// failed counts one more failure.
func (t *tries) failed(err error) {
	t.last = err
	if t.n++; t.n == 1 {
		t.since = time.Now()
	}
	inRow := func(n *int, of error) {
		if *n++; !errors.Is(err, of) {
			*n = 0
		}
	}
	inRow(&t.broken, zk.ErrConnectionClosed)
	inRow(&t.noServer, zk.ErrNoServer)
}

// over counts one more failure, and reports whether to give up.
func (t *tries) over(err error) bool {
	t.failed(err)
	return t.broken > maxBroken || time.Since(t.since) > lock.Patience
}

// end is err, the last of a call, with the store's last failure if err is only that ctx has ended.
func (t *tries) end(ctx context.Context, err error) error {
	if end := ctx.Err(); end != nil && errors.Is(err, end) {
		return storekit.Ended(ctx, err, t.last)
	}
	return err
}

// wait is how long to pause after the failures so far.
func (t *tries) wait() time.Duration { return min(minPause<<min(t.n, 10), maxPause) }

// pause waits after a failure with err, and returns an error if that was the last try, or
// ctx or the Locker has ended.
func (t *tries) pause(ctx, done context.Context, err error) error {
	if t.over(err) {
		return err
	}
	return t.end(ctx, t.rest(ctx, done))
}

// rest is pause without an end.
func (t *tries) rest(ctx, done context.Context) error {
	timer := time.NewTimer(t.wait())
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-done.Done():
		return lock.ErrClosed
	}
}

// call makes a call of zk.Conn that can be given up. Its goroutine ends when the server
// has answered, or the connection's queue is flushed or closed.
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

// again reads, once more where the connection broke, as reads may be.
func again(ctx, done context.Context, read func() error) error {
	for t := (tries{}); ; {
		err := read()
		if !isTransient(err) {
			return t.end(ctx, err)
		}
		if err := t.pause(ctx, done, err); err != nil {
			return err
		}
	}
}

// again is again for a read of the Locker, within patience.
func (l *Locker) again(ctx context.Context, read func(context.Context) error) error {
	return storekit.WithinPatience(ctx, func(ctx context.Context) error {
		return again(ctx, l.done, func() error { return read(ctx) })
	})
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

// parents remembers the keys whose containers are known to be there. ZooKeeper removes
// those that are empty: then it costs a round trip to be wrong. But it removes no more than
// 10,000 a minute, so a Locker deletes what it has created and not used for a generation.
type parents struct {
	mu       sync.Mutex // guards the rest
	size     int        // of a generation
	new, old map[string]bool
	due      []string // to be deleted
}

// maxParents is how many keys one of the two generations has.
const maxParents = 4096

// pruned is how many containers are deleted for each that is created: more than one, so that
// those that are due become fewer.
const pruned = 2

func (p *parents) has(key string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if _, ok := p.new[key]; ok {
		return true
	}
	ours, ok := p.old[key]
	if ok {
		delete(p.old, key)
		p.keep(key, ours)
	}
	return ok
}

// add remembers key, and whether this Locker has created its container.
func (p *parents) add(key string, ours bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.keep(key, ours)
}

func (p *parents) keep(key string, ours bool) {
	if len(p.new) >= p.size {
		for key, ours := range p.old {
			if ours {
				p.due = append(p.due, key)
			}
		}
		p.new, p.old = nil, p.new
	}
	if p.new == nil {
		p.new = make(map[string]bool)
	}
	p.new[key] = p.new[key] || ours
}

// take returns some of the containers that are to be deleted.
func (p *parents) take() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	n := max(0, len(p.due)-pruned)
	due := slices.Clone(p.due[n:])
	p.due = p.due[:n]
	return due
}

func (p *parents) forget(key string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.new, key)
	delete(p.old, key)
}

// headStart is how long a creation waits for the reply to that of the container. The
// connection keeps requests in order, so a reply that takes longer need not be waited for.
const headStart = 20 * time.Millisecond

// ensure creates the container of key, and the root, where they are missing. made tells how that
// ended if it takes longer than the head start: nil has nothing to tell.
func (l *Locker) ensure(ctx context.Context, key string) (made <-chan error, err error) {
	if l.parents.has(key) {
		return nil, nil
	}
	done := make(chan error, 1)
	go func() {
		ours, err := l.container(l.parent(key))
		if err == nil {
			l.parents.add(key, ours)
		}
		done <- err
		l.prune()
	}()
	timer := time.NewTimer(headStart)
	defer timer.Stop()
	select {
	case err := <-done:
		return nil, err
	case <-timer.C:
		return done, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// container creates a container. It is ours if it was not there.
func (l *Locker) container(path string) (ours bool, err error) {
	_, err = l.conn.CreateContainer(path, nil, zk.FlagContainer, l.acl)
	if errors.Is(err, zk.ErrNoNode) {
		if err = createPath(l.conn, l.root, l.acl); err == nil {
			_, err = l.conn.CreateContainer(path, nil, zk.FlagContainer, l.acl)
		}
	}
	if errors.Is(err, zk.ErrNodeExists) {
		return false, nil
	}
	return err == nil, broken(err)
}

// prune deletes some containers of keys that were not used for long. The server refuses that
// of one that is not empty. What fails is left to the server, who deletes them by and by.
func (l *Locker) prune() {
	for _, key := range l.parents.take() {
		_ = l.conn.Delete(l.parent(key), -1)
	}
}

// createPath creates a node that stays, and those above it, where they are missing.
func createPath(conn *zk.Conn, path string, acl []zk.ACL) error {
	exists, _, err := conn.Exists(path)
	if err != nil || exists {
		return err
	}
	if above := path[:strings.LastIndexByte(path, '/')]; above != "" {
		if err := createPath(conn, above, acl); err != nil {
			return err
		}
	}
	_, err = conn.Create(path, nil, 0, acl)
	if errors.Is(err, zk.ErrNodeExists) {
		return nil
	}
	return err
}
