package redis

import (
	"context"
	"errors"
	"iter"
	"strings"
	"sync"

	goredis "github.com/redis/go-redis/v9"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/internal/rediskit"
)

// Inspect implements [lock.Locker].
func (l *Locker) Inspect(ctx context.Context, key string) (lock.Record, error) {
	if err := lock.CheckKey(key); err != nil {
		return lock.Record{}, err
	}
	if err := l.ready(ctx); err != nil {
		return lock.Record{}, err
	}
	k := l.keys(key)
	reply, _, err := l.servers.run(ctx, inspectScript.With(k.all()))
	if err != nil {
		return lock.Record{}, err
	}
	r, _ := reply.([]any)
	if len(r) != 10 {
		return lock.Record{}, unexpected(reply)
	}
	record, err := recordOf(key, k, r)
	if err != nil {
		return lock.Record{}, err
	}
	if s := rediskit.Text(r[9]); s != "" {
		last, ok := parseMicros(strings.TrimSuffix(s, "*"))
		if !ok {
			return lock.Record{}, foreign(k.counter(), s)
		}
		record.Token = lock.Token(last)
	}
	return record, nil
}

// ForceRelease implements [lock.Admin]. It tells the holder's process at once.
func (l *Locker) ForceRelease(ctx context.Context, key, owner string) error {
	if err := lock.CheckGrant(lock.Grant{Key: key, Owner: owner}); err != nil {
		return err
	}
	if err := l.ready(ctx); err != nil {
		return err
	}
	reply, unsure, err := l.servers.run(ctx, forceScript.With(l.keys(key).all(), owner, l.channels()))
	switch {
	case err != nil:
		return err
	case reply == int64(1), reply == int64(0) && unsure: // by the first sending
		return nil
	case reply == int64(0):
		return &lock.LostError{}
	}
	return unexpected(reply)
}

// List implements [lock.Admin]. It scans every master, in small steps that do not block the
// servers, and reads each lock on its own.
func (l *Locker) List(ctx context.Context, prefix string) iter.Seq2[lock.Record, error] {
	return func(yield func(lock.Record, error) bool) {
		if err := l.ready(ctx); err != nil {
			yield(lock.Record{}, err)
			return
		}
		keys, err := l.scan(ctx, prefix)
		if err != nil {
			yield(lock.Record{}, err)
			return
		}
		for key := range keys {
			r, err := l.Inspect(ctx, key)
			if err == nil && len(r.Holders) == 0 && len(r.Waiters) == 0 {
				continue // it has ended since
			}
			if !yield(r, err) || err != nil {
				return
			}
		}
	}
}

// scan returns the keys of the locks that begin with prefix and are held or waited for.
func (l *Locker) scan(ctx context.Context, prefix string) (map[string]struct{}, error) {
	var mu sync.Mutex // guards found: masters are scanned side by side
	found := make(map[string]struct{})
	err := l.eachMaster(ctx, func(ctx context.Context, master goredis.Cmdable) error {
		return rediskit.Scan(ctx, master, l.prefix+"{"+escaping.Encode(prefix), func(names []string) error {
			mu.Lock()
			defer mu.Unlock()
			for _, name := range names {
				if key, ok := l.lockOf(name); ok && strings.HasPrefix(key, prefix) {
					found[key] = struct{}{}
				}
			}
			return nil
		})
	})
	return found, err
}

// eachMaster calls f for each master, and returns promptly when ctx ends.
func (l *Locker) eachMaster(ctx context.Context, f func(context.Context, goredis.Cmdable) error) error {
	done := make(chan error, 1)
	go func() {
		if c := l.servers.cluster; c != nil {
			done <- c.ForEachMaster(ctx, func(ctx context.Context, m *goredis.Client) error { return f(ctx, m) })
		} else {
			done <- f(ctx, l.servers.rdb)
		}
	}()
	select {
	case err := <-done:
		if err != nil && !errors.Is(err, ctx.Err()) && !errors.Is(err, ErrUnfit) {
			return wrap(err)
		}
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}
