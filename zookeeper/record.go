package zookeeper

import (
	"context"
	"encoding/json"
	"errors"
	"sync"
	"time"

	"github.com/go-zookeeper/zk"

	"github.com/seed-215fdefa/lock"
)

// encodeData is what a node holds: the metadata as JSON, or nothing.
func encodeData(metadata map[string]string) []byte {
	if len(metadata) == 0 {
		return nil
	}
	b, err := json.Marshal(metadata)
	if err != nil {
		panic("lock/zookeeper: a map of strings has no JSON: " + err.Error())
	}
	return b
}

func decodeData(data []byte) (metadata map[string]string) {
	if len(data) == 0 || json.Unmarshal(data, &metadata) != nil {
		return nil
	}
	return metadata
}

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

func (s sight) holder() lock.Holder {
	return lock.Holder{
		Owner: s.owner, Token: lock.Token(s.stat.Czxid), Shared: s.shared,
		Held: since(s.stat.Mtime), ExpiresIn: -1, Metadata: decodeData(s.data),
	}
}

func (s sight) waiter() lock.Waiter {
	return lock.Waiter{
		Owner: s.owner, Shared: s.shared, Waited: since(s.stat.Ctime), Metadata: decodeData(s.data),
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

// maxHolders is how many holders a refusal tells of; Inspect tells of all.
const maxHolders = 8

// inFront is what a refusal says of those in line: all of the first holders, and the names
// of the others. Who has gone since is left out; if all says so, so are the waiters.
func (l *Locker) inFront(ctx context.Context, key string, line []node, try bool) (lock.Record, error) {
	rec := lock.Record{Key: key}
	n := holders(line)
	sights, err := l.look(ctx, key, line[:min(n, maxHolders)])
	if err != nil {
		return rec, err
	}
	for _, s := range sights {
		if s.there {
			rec.Holders = append(rec.Holders, s.holder())
			rec.Token = max(rec.Token, lock.Token(s.stat.Czxid))
		}
	}
	if try {
		return rec, nil
	}
	for _, n := range line[n:] {
		rec.Waiters = append(rec.Waiters, lock.Waiter{Owner: n.owner, Shared: n.shared})
	}
	return rec, nil
}
