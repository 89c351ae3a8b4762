package zookeeper

import (
	"context"
	"errors"
	"iter"
	"strings"

	"github.com/go-zookeeper/zk"

	"github.com/seed-215fdefa/lock"
)

// Inspect implements [lock.Locker]. Held and Waited compare this machine's clock with the
// server's; ExpiresIn is not known, since a session lives by its connection.
func (l *Locker) Inspect(ctx context.Context, key string) (lock.Record, error) {
	if err := lock.CheckKey(key); err != nil {
		return lock.Record{}, err
	}
	if err := l.ready(ctx); err != nil {
		return lock.Record{}, err
	}
	var rec lock.Record
	err := again(ctx, l.done, func() (err error) {
		if err = l.sync(ctx); err == nil {
			rec, err = l.inspect(ctx, key)
		}
		return err
	})
	return rec, wrap(err)
}

func (l *Locker) inspect(ctx context.Context, key string) (lock.Record, error) {
	line, err := l.line(ctx, key)
	if err != nil {
		return lock.Record{}, err
	}
	sights, err := l.look(ctx, key, line)
	if err != nil {
		return lock.Record{}, err
	}
	// Nodes that went while we read take others to the front.
	there := line[:0]
	seen := sights[:0]
	for _, s := range sights {
		if s.there {
			there, seen = append(there, s.node), append(seen, s)
		}
	}
	rec := lock.Record{Key: key}
	n := holders(there)
	for _, s := range seen[:n] {
		rec.Holders = append(rec.Holders, s.holder())
		rec.Token = max(rec.Token, lock.Token(s.stat.Czxid))
	}
	for _, s := range seen[n:] {
		rec.Waiters = append(rec.Waiters, s.waiter())
	}
	return rec, nil
}

// ForceRelease implements [lock.Admin]. A holder that has a Request.Lost is told at once,
// or a fifth of a second after its grant if that is later.
func (l *Locker) ForceRelease(ctx context.Context, key, owner string) error {
	if err := l.check(ctx, lock.Grant{Key: key, Owner: owner}); err != nil {
		return err
	}
	var line []node
	err := again(ctx, l.done, func() (err error) {
		line, err = l.current(ctx, key)
		return err
	})
	if err != nil {
		return wrap(err)
	}
	for _, n := range line[:holders(line)] {
		if n.owner == owner {
			return wrap(l.delete(ctx, lock.Grant{}, l.path(key, n.name)))
		}
	}
	return &lock.LostError{}
}

// List implements [lock.Admin]. It reads each lock on its own, and all names at once: with
// a great many keys these may be more than the jute.maxbuffer that server and client allow.
func (l *Locker) List(ctx context.Context, prefix string) iter.Seq2[lock.Record, error] {
	return func(yield func(lock.Record, error) bool) {
		err := l.ready(ctx)
		var names []string
		if err == nil {
			names, err = l.names(ctx)
		}
		if err != nil {
			yield(lock.Record{}, wrap(err))
			return
		}
		for _, name := range names {
			key, ok := decode(name)
			if !ok || !strings.HasPrefix(key, prefix) {
				continue
			}
			var rec lock.Record
			err := again(ctx, l.done, func() (err error) {
				rec, err = l.inspect(ctx, key)
				return err
			})
			if err == nil && len(rec.Holders)+len(rec.Waiters) == 0 {
				continue
			}
			if !yield(rec, wrap(err)) || err != nil {
				return
			}
		}
	}
}

// names are those of all containers.
func (l *Locker) names(ctx context.Context) (names []string, err error) {
	err = again(ctx, l.done, func() (err error) {
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
