package redlock

import (
	"context"
	"iter"
	"slices"
	"strings"
	"sync"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/internal/rediskit"
	"github.com/seed-215fdefa/lock/internal/storekit"
)

// Inspect implements [lock.Locker]. It shows the holders that may be live on a quorum, with
// tokens that a quorum may have recorded. A node that does not answer counts for the holder who
// is live on the other nodes of a quorum, or for the likeliest of several. The Record's Token is
// that of the holders; earlier tokens are not known.
func (l *Locker) Inspect(ctx context.Context, key string) (lock.Record, error) {
	if err := lock.CheckKey(key); err != nil {
		return lock.Record{}, err
	}
	if err := l.ready(ctx); err != nil {
		return lock.Record{}, err
	}
	q := l.question(l.scripts.inspect, key)
	for n := 0; ; n++ {
		b := l.poll(q, hearing, readView)
		if err := l.await(ctx, b); err != nil {
			return lock.Record{}, err
		}
		o := b.outcome()
		switch {
		case len(o.views) >= l.quorum:
			return o.record(key, o.least), nil
		case b.count(fresh) == len(l.nodes):
			return lock.Record{Key: key}, nil
		case n == maxFresh || b.count(fresh) == 0:
			return lock.Record{}, noQuorum(b)
		}
		if err := storekit.Sleep(ctx, freshPause); err != nil {
			return lock.Record{}, err
		}
	}
}

func readView(_ int, a answer) vote {
	if _, ok := parseView(a.reply); ok {
		return yes
	}
	return readAbstention(a.reply)
}

// ForceRelease implements [lock.Admin]. The holder learns of it at its next renewal.
func (l *Locker) ForceRelease(ctx context.Context, key, owner string) error {
	if err := l.check(ctx, lock.Grant{Key: key, Owner: owner}); err != nil {
		return err
	}
	b := l.poll(l.question(l.scripts.force, key, owner, storekit.UndoLife.Milliseconds()), ending, readEnd)
	if err := l.await(ctx, b); err != nil {
		return err
	}
	l.lines.hint(key)
	ended, before := b.count(yes), 0
	for i, v := range b.votes {
		if v == no && b.answers[i].again {
			before++ // or so it may be, by the first sending
		}
	}
	switch {
	case ended+before+b.count(unknown)+b.count(pending) < l.quorum:
		return &lock.LostError{}
	case b.lingers():
		return noQuorum(b)
	}
	return nil
}

// List implements [lock.Admin]. It scans every node that answers, in small steps that do not
// block the servers, and reads each lock on its own. Fewer answers than a quorum are
// ErrNoQuorum.
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
		for _, key := range keys {
			r, err := l.Inspect(ctx, key)
			if err == nil && len(r.Holders) == 0 {
				continue // it has ended since
			}
			if !yield(r, err) || err != nil {
				return
			}
		}
	}
}

// scan returns the keys that begin with prefix and are held on some node. A node may take long,
// as long as each step is answered in time.
func (l *Locker) scan(ctx context.Context, prefix string) ([]string, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()    // what nobody waits for
	var mu sync.Mutex // guards found and steps: nodes are scanned side by side
	found, steps := make(map[string]struct{}), 0
	b := l.newBallot(hearing, func(_ int, a answer) vote {
		if a.err != nil {
			return unknown
		}
		return yes
	})
	b.moves = func() bool {
		mu.Lock()
		defer mu.Unlock()
		moved := steps > 0
		steps = 0
		return moved
	}
	for i, n := range l.nodes {
		go func() {
			err := n.scan(ctx, l.prefix+"s:", prefix, func(keys []string) {
				mu.Lock()
				defer mu.Unlock()
				steps++
				for _, key := range keys {
					found[key] = struct{}{}
				}
			})
			b.add(i, answer{err: err})
		}()
	}
	if err := l.await(ctx, b); err != nil {
		return nil, err
	}
	if b.count(yes) < l.quorum {
		return nil, noQuorum(b)
	}
	mu.Lock()
	defer mu.Unlock()
	keys := make([]string, 0, len(found))
	for key := range found {
		keys = append(keys, key)
	}
	slices.Sort(keys)
	return keys, nil
}

// scan calls f at each step, with the keys whose state, in a name that begins with space, is not
// free.
func (n *node) scan(ctx context.Context, space, prefix string, f func(keys []string)) error {
	return rediskit.Scan(ctx, n.rdb, space+prefix, func(names []string) error {
		var keys []string
		if len(names) > 0 {
			states, err := n.rdb.MGet(ctx, names...).Result()
			if err != nil {
				return err
			}
			for i, s := range states {
				if _, held, _ := strings.Cut(rediskit.Text(s), ":"); held != "" {
					keys = append(keys, strings.TrimPrefix(names[i], space))
				}
			}
		}
		f(keys)
		return nil
	})
}
