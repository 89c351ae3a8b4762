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
		Held: since(s.stat.Mtime), ExpiresIn: -1, Metadata: metadata(s.data),
	}
}

func (s sight) waiter() lock.Waiter {
	return lock.Waiter{
		Owner: s.owner, Shared: s.shared, Waited: since(s.stat.Ctime), Metadata: metadata(s.data),
	}
}

// readers is how many nodes are read at once.
const readers = 16

// look reads nodes side by side.
func (l *Locker) look(ctx context.Context, key string, line []node) ([]sight, error) {
	sights, errs := make([]sight, len(line)), make([]error, len(line))
	next := make(chan int)
	var all sync.WaitGroup
	for range min(readers, len(line)) {
		all.Go(func() {
			for i := range next {
				data, stat, err := l.get(ctx, l.path(key, line[i].name))
				sights[i] = sight{line[i], err == nil, data, stat}
				if !errors.Is(err, zk.ErrNoNode) {
					errs[i] = err
				}
			}
		})
	}
	for i := range line {
		next <- i
	}
	close(next)
	all.Wait()
	return sights, errors.Join(errs...)
}

// metadata is what a node holds. What is no JSON somebody else has written.
func metadata(data []byte) map[string]string {
	m, _ := storekit.DecodeMetadata(string(data))
	return m
}

// inFront is what a refusal says of those in line: the first holders, and the names of the first
// waiters. Who has gone since is left out.
func (l *Locker) inFront(ctx context.Context, key string, line []node) (lock.Record, error) {
	n := holders(line)
	rec := lock.Record{Key: key, HolderCount: n, WaiterCount: len(line) - n}
	sights, err := l.look(ctx, key, line[:min(n, lock.MaxRecord)])
	if err != nil {
		return rec, err
	}
	l.fill(&rec, sights)
	for _, n := range line[n:min(len(line), n+lock.MaxRecord)] {
		rec.Waiters = append(rec.Waiters, lock.Waiter{Owner: n.owner, Shared: n.shared})
	}
	return rec, nil
}

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
		n := holders(line)
		shown := min(n, lock.MaxRecord)
		first := slices.Concat(line[:shown], line[n:min(len(line), n+lock.MaxRecord)])
		sights, err := l.look(ctx, key, first)
		if err != nil {
			return lock.Record{}, err
		}
		if left > 0 && slices.ContainsFunc(sights, func(s sight) bool { return !s.there }) {
			continue
		}
		rec := lock.Record{Key: key, HolderCount: n, WaiterCount: len(line) - n}
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
