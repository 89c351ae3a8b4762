package etcd

import (
	"context"
	"iter"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/seed-215fdefa/lock"
)

// Inspect implements [lock.Locker]. A holder's ExpiresIn is that of its etcd lease, which other
// grants may keep alive: while the holder's process lives, it is an upper bound. It is not known if
// the server does not tell within 5 s. Held and Waited compare this machine's wall clock with that of
// the holder or waiter.
func (l *Locker) Inspect(ctx context.Context, key string) (lock.Record, error) {
	if err := l.ready(ctx, lock.CheckKey(key)); err != nil {
		return lock.Record{}, err
	}
	var rec lock.Record
	err := l.within(ctx, func(ctx context.Context) error {
		var holders []entry
		var err error
		if rec, holders, err = l.record(ctx, key); err != nil {
			return err
		}
		bounded, cancel := context.WithTimeout(ctx, requestTimeout)
		defer cancel()
		left := make(map[int64]time.Duration) // by lease
		for i := range rec.Holders {
			id := holders[i].kv.Lease
			if _, known := left[id]; !known {
				left[id] = l.timeToLive(bounded, id)
			}
			rec.Holders[i].ExpiresIn = left[id]
		}
		return ctx.Err()
	})
	if err != nil {
		return lock.Record{}, l.fail(ctx, err)
	}
	return rec, nil
}

// timeToLive is negative if the lease cannot be read.
func (l *Locker) timeToLive(ctx context.Context, id int64) time.Duration {
	resp, _, err := insist(ctx, impatience(requestTimeout), func(ctx context.Context) (*clientv3.LeaseTimeToLiveResponse, error) {
		return l.cli.TimeToLive(ctx, clientv3.LeaseID(id))
	})
	if err != nil || resp.TTL < 0 {
		return -1
	}
	return time.Duration(resp.TTL) * time.Second
}

// ForceRelease implements [lock.Admin]. It tells the holder's process at once.
func (l *Locker) ForceRelease(ctx context.Context, key, owner string) error {
	if err := l.ready(ctx, lock.CheckGrant(lock.Grant{Key: key, Owner: owner})); err != nil {
		return err
	}
	return l.fail(ctx, l.within(ctx, func(ctx context.Context) error {
		_, holders, err := l.record(ctx, key)
		if err != nil {
			return err
		}
		for _, e := range holders {
			if e.owner != owner {
				continue
			}
			// Who holds it does so until its key is deleted, so this one read is enough.
			// It may be the tail, if it does not know yet that it is the first in line.
			h := hold{name: string(e.kv.Key), base: l.baseOf(key)}
			out, err := l.writes.send(ctx, part{line: h.base, every: impatience(requestTimeout), ops: transaction(
				[]clientv3.Cmp{clientv3.Compare(clientv3.CreateRevision(h.name), "=", e.kv.CreateRevision)},
				[]clientv3.Op{clientv3.OpDelete(h.name), h.leaveTail()}, nil)})
			if err != nil {
				return err
			}
			if ok, _ := did(out.ops); ok || out.doubt || out.full { // it is gone, as an earlier sending may have seen to
				return nil
			}
		}
		return &lock.LostError{}
	}))
}

// read is one linearizable read.
func (l *Locker) read(ctx context.Context, op clientv3.Op) (*pb.RangeResponse, error) {
	out, err := l.reads.send(ctx, part{ops: []clientv3.Op{op}, every: impatience(requestTimeout)})
	if err != nil {
		return nil, err
	}
	return out.ops[0].GetResponseRange(), nil
}

// listPage is how many entries List reads at once.
const listPage = 1000

// List implements [lock.Admin]. It reads page by page, so if a lock's entries are on two pages,
// its Record may mix two moments.
func (l *Locker) List(ctx context.Context, prefix string) iter.Seq2[lock.Record, error] {
	return func(yield func(lock.Record, error) bool) {
		if err := l.ready(ctx, nil); err != nil {
			yield(lock.Record{}, err)
			return
		}
		from := l.prefix + escaping.Encode(prefix)
		end := rangeEnd(from)
		var open []entry // of the lock whose entries are being read
		flush := func() bool {
			if len(open) == 0 {
				return true
			}
			sortEntries(open)
			rec := l.recordOf(open[0].key, open, len(open))
			open = nil
			return yield(rec, nil)
		}
		for more := true; more; {
			var resp *pb.RangeResponse
			err := l.within(ctx, func(ctx context.Context) (err error) {
				resp, err = l.read(ctx, clientv3.OpGet(from, clientv3.WithRange(end), clientv3.WithLimit(listPage)))
				return err
			})
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
