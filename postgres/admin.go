package postgres

import (
	"context"
	"encoding/json"
	"fmt"
	"iter"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/internal/storekit"
)

// Inspect implements [lock.Locker]. It writes nothing, so a Locker on a standby can do it.
func (l *Locker) Inspect(ctx context.Context, key string) (lock.Record, error) {
	if err := lock.CheckKey(key); err != nil {
		return lock.Record{}, err
	}
	if err := l.ready(ctx); err != nil {
		return lock.Record{}, err
	}
	records, err := l.view(ctx, l.sql.inspect, []byte(key))
	if err != nil || len(records) == 0 {
		return lock.Record{Key: key}, err
	}
	return records[0], nil
}

// view runs a statement that returns records.
func (l *Locker) view(ctx context.Context, sql string, args ...any) (records []lock.Record, err error) {
	_, err = l.db.repeat(ctx, func(c conn) error {
		rows, err := c.Query(ctx, sql, args...)
		if err != nil {
			return err
		}
		records, err = pgx.CollectRows(rows, readRecord)
		return err
	})
	return records, err
}

func readRecord(row pgx.CollectableRow) (lock.Record, error) {
	var key []byte
	var token int64
	var grants, line []byte
	if err := row.Scan(&key, &token, &grants, &line); err != nil {
		return lock.Record{}, err
	}
	r := lock.Record{Key: string(key), Token: lock.Token(token)}
	var hs []holderJSON
	var ws []waiterJSON
	if grants != nil {
		if err := json.Unmarshal(grants, &hs); err != nil {
			return r, err
		}
	}
	if line != nil {
		if err := json.Unmarshal(line, &ws); err != nil {
			return r, err
		}
	}
	r.Holders, r.Waiters = holders(hs), waiters(ws)
	return r, nil
}

// page is how many rows List reads at a time. It holds no connection while it yields.
const page = 256

// List implements [lock.Admin]. It yields in the order of the keys' bytes.
func (l *Locker) List(ctx context.Context, prefix string) iter.Seq2[lock.Record, error] {
	return func(yield func(lock.Record, error) bool) {
		if err := l.ready(ctx); err != nil {
			yield(lock.Record{}, err)
			return
		}
		from, to := []byte(prefix), append([]byte(prefix), 0xff) // no UTF-8 has that byte
		for {
			records, err := l.view(ctx, l.sql.list, from, to, page)
			if err != nil {
				yield(lock.Record{}, err)
				return
			}
			for _, r := range records {
				from = append([]byte(r.Key), 0) // the next key there can be
				if len(r.Holders)+len(r.Waiters) > 0 && !yield(r, nil) {
					return
				}
			}
			if len(records) < page {
				return
			}
		}
	}
}

// ForceRelease implements [lock.Admin]. The holder's process is told at once.
func (l *Locker) ForceRelease(ctx context.Context, key, owner string) error {
	if err := l.check(ctx, lock.Grant{Key: key, Owner: owner}); err != nil {
		return err
	}
	reply, unsure, err := l.db.text(ctx, l.sql.force, []byte(key), owner, storekit.UndoLife)
	if err != nil {
		return err
	}
	if reply == "0" && !unsure {
		return &lock.LostError{}
	}
	return nil
}

// Prune deletes the rows of locks that nobody holds or waits for and that were not granted
// for at least idle, or a second if that is longer, and returns how many. Rows stay
// otherwise, one of some 100 bytes for each key that was ever locked: run it now and then if
// keys are many and short-lived. Tokens rise all the same, unless the server's clock is set
// back by more than that.
func (l *Locker) Prune(ctx context.Context, idle time.Duration) (int, error) {
	if idle < 0 {
		return 0, fmt.Errorf("%w: postgres: prune after %v: must not be negative", lock.ErrInvalid, idle)
	}
	if err := l.ready(ctx); err != nil {
		return 0, err
	}
	const batch = 1000
	for total := 0; ; {
		reply, _, err := l.db.text(ctx, l.sql.prune, idle, batch)
		if err != nil {
			return total, err
		}
		var n int
		if _, err := fmt.Sscan(reply, &n); err != nil {
			return total, unexpected(reply)
		}
		if total += n; n < batch {
			return total, nil
		}
	}
}
