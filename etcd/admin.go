package etcd

import (
	"context"
	"iter"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/seed-215fdefa/lock"
)

// Inspect implements [lock.Locker]. A holder's ExpiresIn is that of its etcd lease, which
// others may keep alive as well: while its process lives, it is an upper bound. Times since
// something happened are by the clients' wall clocks.
func (l *Locker) Inspect(ctx context.Context, key string) (lock.Record, error) {
	if err := lock.CheckKey(key); err != nil {
		return lock.Record{}, err
	}
	if err := l.ready(ctx); err != nil {
		return lock.Record{}, err
	}
	entries, err := l.entries(ctx, key)
	if err != nil {
		return lock.Record{}, l.fail(ctx, err)
	}
	rec := recordOf(key, entries, time.Now())
	left := make(map[int64]time.Duration) // by lease
	for i := range rec.Holders {
		id := entries[i].kv.Lease
		if _, known := left[id]; !known {
			left[id] = l.timeToLive(ctx, id)
		}
		rec.Holders[i].ExpiresIn = left[id]
	}
	return rec, nil
}

// timeToLive is negative if the lease cannot be read.
func (l *Locker) timeToLive(ctx context.Context, id int64) time.Duration {
	resp, err := l.cli.TimeToLive(ctx, clientv3.LeaseID(id))
	if err != nil || resp.TTL < 0 {
		return -1
	}
	return time.Duration(resp.TTL) * time.Second
}

func (l *Locker) entries(ctx context.Context, key string) ([]entry, error) {
	base := l.base(key)
	var entries []entry
	err := l.again(ctx, requestTimeout, func(ctx context.Context, _ int) error {
		resp, err := l.cli.Get(ctx, base, clientv3.WithRange(rangeEnd(base)))
		if err == nil {
			entries = entriesOf(l.prefix, resp.Kvs)
		}
		return err
	})
	return entries, err
}

// ForceRelease implements [lock.Admin]. The holder's process is told at once.
func (l *Locker) ForceRelease(ctx context.Context, key, owner string) error {
	if err := l.check(ctx, lock.Grant{Key: key, Owner: owner}); err != nil {
		return err
	}
	entries, err := l.entries(ctx, key)
	if err != nil {
		return l.fail(ctx, err)
	}
	for _, e := range entries[:holders(entries)] {
		if e.owner != owner {
			continue
		}
		// Who holds it does so until its key is deleted, so this one read is enough.
		name := string(e.kv.Key)
		deleted, doubtful := false, false
		err := l.again(ctx, requestTimeout, func(ctx context.Context, n int) error {
			resp, err := l.cli.Txn(ctx).
				If(clientv3.Compare(clientv3.CreateRevision(name), "=", e.kv.CreateRevision)).
				Then(clientv3.OpDelete(name)).Commit()
			doubtful = n > 0
			deleted = err == nil && resp.Succeeded
			return err
		})
		if err != nil {
			return l.fail(ctx, err)
		}
		if deleted || doubtful { // it is gone, as an earlier sending may have seen to
			return nil
		}
	}
	return &lock.LostError{}
}

// listPage is how many entries List reads at once.
const listPage = 1000

func (l *Locker) page(ctx context.Context, from, end string) (resp *clientv3.GetResponse, err error) {
	err = l.again(ctx, requestTimeout, func(ctx context.Context, _ int) error {
		resp, err = l.cli.Get(ctx, from, clientv3.WithRange(end), clientv3.WithLimit(listPage))
		return err
	})
	return resp, err
}

// List implements [lock.Admin]. It reads page by page, so a lock whose entries are on two
// pages may be seen at two moments.
func (l *Locker) List(ctx context.Context, prefix string) iter.Seq2[lock.Record, error] {
	return func(yield func(lock.Record, error) bool) {
		if err := l.ready(ctx); err != nil {
			yield(lock.Record{}, err)
			return
		}
		from := l.prefix + encode(prefix)
		end := rangeEnd(from)
		var open []entry // of the lock whose entries are being read
		flush := func() bool {
			if len(open) == 0 {
				return true
			}
			sortEntries(open)
			rec := recordOf(open[0].key, open, time.Now())
			open = nil
			return yield(rec, nil)
		}
		for more := true; more; {
			resp, err := l.page(ctx, from, end)
			if err != nil {
				yield(lock.Record{}, l.fail(ctx, err))
				return
			}
			for _, kv := range resp.Kvs { // in the order of names: those of one lock together
				e, ok := entryOf(l.prefix, kv)
				if !ok {
					continue
				}
				if len(open) > 0 && open[0].key != e.key && !flush() {
					return
				}
				open = append(open, e)
			}
			if more = resp.More && len(resp.Kvs) > 0; more {
				from = string(resp.Kvs[len(resp.Kvs)-1].Key) + "\x00"
			}
		}
		flush()
	}
}
