package etcd

import (
	"cmp"
	"context"
	"encoding/json"
	"slices"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/internal/storekit"
)

// value is that of an entry's key: who, and for people, why and since when. Its times are of
// the clients' wall clocks, and decide nothing.
type value struct {
	Owner    string            `json:"owner"`
	Metadata map[string]string `json:"metadata,omitempty"`
	Under    []string          `json:"under,omitempty"`   // of a waiter
	Arrived  int64             `json:"arrived,omitempty"` // Unix ms
	Granted  int64             `json:"granted,omitempty"` // Unix ms; 0: not known
}

func (v value) String() string {
	b, err := json.Marshal(v)
	if err != nil {
		panic("lock/etcd: a map of strings has no JSON: " + err.Error())
	}
	return string(b)
}

// entry is one acquisition of a key, as the server has it.
type entry struct {
	key, owner string
	shared     bool
	value      value
	kv         *mvccpb.KeyValue
}

// entryOf is not ok for a key that this package did not write.
func entryOf(prefix string, kv *mvccpb.KeyValue) (e entry, ok bool) {
	e.kv = kv
	if e.key, e.shared, ok = parseName(prefix, string(kv.Key)); !ok {
		return entry{}, false
	}
	if json.Unmarshal(kv.Value, &e.value) != nil || !isOwner(e.value.Owner) {
		return entry{}, false
	}
	e.owner = e.value.Owner
	return e, true
}

// entriesOf are the entries among kvs, oldest first. Keys that this package did not write are
// left out; in the range of a lock they are in the way all the same, so that two versions of
// this package would rather both wait than both hold.
func entriesOf(prefix string, kvs []*mvccpb.KeyValue) []entry {
	entries := make([]entry, 0, len(kvs))
	for _, kv := range kvs {
		if e, ok := entryOf(prefix, kv); ok {
			entries = append(entries, e)
		}
	}
	sortEntries(entries)
	return entries
}

func sortEntries(entries []entry) {
	slices.SortFunc(entries, func(a, b entry) int { return cmp.Compare(a.kv.CreateRevision, b.kv.CreateRevision) })
}

// holders is how many of the entries of one lock hold it: the oldest, or all shared ones
// before the first that is exclusive.
func holders(entries []entry) int {
	for i, e := range entries {
		if !e.shared {
			return max(i, 1)
		}
	}
	return len(entries)
}

// recordOf is the record of key. entries are the oldest of its lock, of so many in all, among
// which are all holders.
func (l *Locker) recordOf(key string, entries []entry, total int) lock.Record {
	n, now := holders(entries), time.Now()
	rec := lock.Record{Key: key, HolderCount: n, WaiterCount: total - n}
	for _, e := range entries[:n] {
		token := l.tokenOf(e.kv.CreateRevision)
		rec.Token = max(rec.Token, token)
		rec.Holders = append(rec.Holders, lock.Holder{
			Owner: e.owner, Token: token, Shared: e.shared, Metadata: e.value.Metadata,
			Held: since(e.value.Granted, now), ExpiresIn: -1,
		})
	}
	for _, e := range entries[n:] {
		rec.Waiters = append(rec.Waiters, lock.Waiter{
			Owner: e.owner, Shared: e.shared, Metadata: e.value.Metadata, Under: e.value.Under,
			Waited: max(since(e.value.Arrived, now), 0),
		})
	}
	storekit.Bound(&rec)
	return rec
}

// record reads the record of key, and who of its holders are shown.
func (l *Locker) record(ctx context.Context, key string) (lock.Record, []entry, error) {
	const some = 2*lock.MaxRecord + 1
	for limit := int64(some); ; limit = 0 {
		resp, err := l.read(ctx, everyone(l.baseOf(key), limit))
		if err != nil {
			return lock.Record{}, nil, err
		}
		entries := entriesOf(l.prefix, resp.Kvs)
		n := holders(entries)
		if limit > 0 && n == len(entries) && resp.Count > int64(len(resp.Kvs)) {
			continue // there may be more holders
		}
		total := len(entries) + int(resp.Count) - len(resp.Kvs)
		return l.recordOf(key, entries, total), entries[:n], nil
	}
}

// frontSize is how many entries are read of a line that somebody joins: most locks have no more.
const frontSize = lock.MaxRecord + 1

// front reads some entries of a lock, and counts all. It does not have the server sort them, as
// everyone does.
func front(base string) clientv3.Op {
	from, end := rivals(base, false)
	return clientv3.OpGet(from, clientv3.WithRange(end), clientv3.WithLimit(frontSize))
}

// frontOf is the record of what front has read. It is not complete if the lock has more.
func (l *Locker) frontOf(key string, op *pb.ResponseOp) (rec lock.Record, complete bool) {
	resp := op.GetResponseRange()
	if resp.Count > int64(len(resp.Kvs)) {
		return lock.Record{Key: key, WaiterCount: int(resp.Count) - 1}, false
	}
	entries := entriesOf(l.prefix, resp.Kvs)
	return l.recordOf(key, entries, len(entries)), true
}

// since is negative if ms is not known, and else not: clocks differ.
func since(ms int64, now time.Time) time.Duration {
	if ms == 0 {
		return -1
	}
	return max(now.Sub(time.UnixMilli(ms)), 0)
}
