package zookeeper

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/go-zookeeper/zk"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/internal/storekit"
)

// sight is what a node looks like.
type sight struct {
	node
	there bool
	data  []byte
	stat  *zk.Stat
}

// since is how long ago the server's clock showed that many ms. It is for people: two
// clocks are compared.
func since(ms int64) time.Duration { return max(0, time.Since(time.UnixMilli(ms))) }

func (l *Locker) holderOf(s sight) lock.Holder {
	return lock.Holder{
		Owner: s.owner, Token: l.tokenOf(s.stat.Czxid), Shared: s.shared,
		Held: since(s.stat.Mtime), ExpiresIn: -1, Metadata: note(s.data).Metadata,
	}
}

func (s sight) waiter() lock.Waiter {
	w := note(s.data)
	w.Owner, w.Shared, w.Waited = s.owner, s.shared, since(s.stat.Ctime)
	return w
}

// look reads nodes side by side: those that a Record shows, so they are few.
func (l *Locker) look(ctx context.Context, key string, line []node) ([]sight, error) {
	sights, errs := make([]sight, len(line)), make([]error, len(line))
	var all sync.WaitGroup
	for i, n := range line {
		all.Go(func() {
			data, stat, err := get(ctx, l.conn, l.path(key, n.name))
			sights[i] = sight{n, err == nil, data, stat}
			if !errors.Is(err, zk.ErrNoNode) {
				errs[i] = err
			}
		})
	}
	all.Wait()
	return sights, errors.Join(errs...)
}

// note is what a node's data says of who made it. What says nothing somebody else has written.
func note(data []byte) (w lock.Waiter) {
	w.Metadata, w.Under, _ = storekit.DecodeNote(string(data))
	return w
}

// inFront is what a refusal says of those in line: the first holders, and the names of the first
// waiters. Who has gone since is left out.
func (l *Locker) inFront(ctx context.Context, key string, line []node) (lock.Record, error) {
	holding, waiting := split(line)
	rec := lock.Record{Key: key, HolderCount: len(holding), WaiterCount: len(waiting)}
	sights, err := l.look(ctx, key, first(holding))
	if err != nil {
		return rec, err
	}
	l.fill(&rec, sights)
	for _, n := range first(waiting) {
		rec.Waiters = append(rec.Waiters, lock.Waiter{Owner: n.owner, Shared: n.shared})
	}
	return rec, nil
}

// first is as many as a Record shows.
func first(nodes []node) []node { return nodes[:min(len(nodes), lock.MaxRecord)] }

// fill adds the holders that were seen, and takes those that are gone from the count.
func (l *Locker) fill(rec *lock.Record, holders []sight) {
	for _, s := range holders {
		if !s.there {
			rec.HolderCount--
			continue
		}
		rec.Holders = append(rec.Holders, l.holderOf(s))
		rec.Token = max(rec.Token, l.tokenOf(s.stat.Czxid))
	}
}

// readsAgain is how often inspect begins anew.
const readsAgain = 3

// inspect reads the first of line, and counts the others. Where nodes go while it reads, others
// come to the front: it begins anew then, a few times.
func (l *Locker) inspect(ctx context.Context, key string) (lock.Record, error) {
	for left := readsAgain; ; left-- {
		line, err := l.line(ctx, key)
		if err != nil {
			return lock.Record{}, err
		}
		holding, waiting := split(line)
		shown := len(first(holding))
		sights, err := l.look(ctx, key, slices.Concat(first(holding), first(waiting)))
		if err != nil {
			return lock.Record{}, err
		}
		if left > 0 && slices.ContainsFunc(sights, func(s sight) bool { return !s.there }) {
			continue
		}
		rec := lock.Record{Key: key, HolderCount: len(holding), WaiterCount: len(waiting)}
		l.fill(&rec, sights[:shown])
		for _, s := range sights[shown:] {
			if s.there {
				rec.Waiters = append(rec.Waiters, s.waiter())
			} else {
				rec.WaiterCount--
			}
		}
		return rec, nil
	}
}
