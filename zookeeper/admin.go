package zookeeper

import (
	"context"
	"errors"
	"iter"
	"strings"

	"github.com/go-zookeeper/zk"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/internal/storekit"
)

// Inspect implements [lock.Locker]. Held and Waited compare this machine's clock with the
// server's. ExpiresIn is not known, since a session lives as long as its connection.
func (l *Locker) Inspect(ctx context.Context, key string) (lock.Record, error) {
	if err := l.ready(ctx, lock.CheckKey(key)); err != nil {
		return lock.Record{}, err
	}
	var rec lock.Record
	err := l.again(ctx, func(ctx context.Context) (err error) {
		if err = l.sync(ctx); err == nil {
			rec, err = l.inspect(ctx, key)
		}
		return err
	})
	return rec, l.explain(key, err)
}

// ForceRelease implements [lock.Admin]. A holder with a Request.Lost is told at once, though no
// sooner than 0.2 s after its grant.
func (l *Locker) ForceRelease(ctx context.Context, key, owner string) error {
	if err := l.ready(ctx, lock.CheckGrant(lock.Grant{Key: key, Owner: owner})); err != nil {
		return err
	}
	var line []node
	err := l.again(ctx, func(ctx context.Context) (err error) {
		line, err = l.current(ctx, key)
		return err
	})
	if err != nil {
		return l.explain(key, err)
	}
	for _, n := range line[:holders(line)] {
		if n.owner == owner {
			return l.explain(key, storekit.WithinPatience(ctx, func(ctx context.Context) error {
				return l.delete(ctx, l.path(key, n.name), 0)
			}))
		}
	}
	return &lock.LostError{}
}

// List implements [lock.Admin]. It reads all names in one reply, which must fit the
// jute.maxbuffer of server and client, and then each lock on its own.
func (l *Locker) List(ctx context.Context, prefix string) iter.Seq2[lock.Record, error] {
	return func(yield func(lock.Record, error) bool) {
		if err := l.ready(ctx, nil); err != nil {
			yield(lock.Record{}, err)
			return
		}
		names, err := l.names(ctx)
		if err != nil {
			yield(lock.Record{}, explain(l.root, l.root, err))
			return
		}
		for _, name := range names {
			key, ok := escaping.Decode(name)
			if !ok || !strings.HasPrefix(key, prefix) {
				continue
			}
			var rec lock.Record
			err := l.again(ctx, func(ctx context.Context) (err error) {
				rec, err = l.inspect(ctx, key)
				return err
			})
			if err == nil && rec.HolderCount+rec.WaiterCount == 0 {
				continue
			}
			if !yield(rec, l.explain(key, err)) || err != nil {
				return
			}
		}
	}
}

// names are those of all containers.
func (l *Locker) names(ctx context.Context) (names []string, err error) {
	err = l.again(ctx, func(ctx context.Context) (err error) {
		if err = l.sync(ctx); err == nil {
			names, err = call(ctx, func() ([]string, error) {
				names, _, err := l.conn.Children(l.root)
				return names, err
			})
		}
		return err
	})
	if errors.Is(err, zk.ErrNoNode) {
		return nil, nil
	}
	return names, err
}
