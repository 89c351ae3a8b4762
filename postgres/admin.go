package postgres

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"iter"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/internal/storekit"
)

// Inspect implements [lock.Locker]. It only reads, so it works on a standby, but not where the default
// isolation level is serializable.
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
func (l *Locker) view(ctx context.Context, sql string, args ...any) ([]lock.Record, error) {
	var rows []string
	if _, err := l.db.repeat(ctx, l.db.limit, func(ctx context.Context, c *pgx.Conn) error {
		rows = nil
		return l.db.query(ctx, c, func(row string) { rows = append(rows, row) }, sql, args)
	}); err != nil {
		return nil, err
	}
	var records []lock.Record
	for _, row := range rows {
		var r recordJSON
		if err := json.Unmarshal([]byte(row), &r); err != nil {
			return nil, unexpected(row)
		}
		key, err := hex.DecodeString(r.Key)
		if err != nil {
			return nil, unexpected(row)
		}
		records = append(records, r.record(string(key)))
	}
	return records, nil
}

// page is how many rows List reads at a time. It holds no connection while it yields.
const page = 256

// List implements [lock.Admin]. It yields in the byte order of the keys. It reads every row with
// the prefix by the primary key's index, idle rows too.
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
				if r.HolderCount+r.WaiterCount > 0 && !yield(r, nil) {
					return
				}
			}
			if len(records) < page {
				return
			}
		}
	}
}

// ForceRelease implements [lock.Admin]. It tells the holder's process at once.
func (l *Locker) ForceRelease(ctx context.Context, key, owner string) error {
	if err := lock.CheckGrant(lock.Grant{Key: key, Owner: owner}); err != nil {
		return err
	}
	if err := l.ready(ctx); err != nil {
		return err
	}
	reply, unsure, err := l.telling(ctx, l.sql.force, []byte(key), owner, storekit.UndoLife)
	if err != nil {
		return err
	}
	if reply == "0" && !unsure {
		return &lock.LostError{}
	}
	return nil
}

// Prune deletes the rows of locks that nobody holds or waits for and that were last granted at
// least idle ago. It returns how many it deleted. Without it, some 100 bytes remain for each key
// that was ever locked, so run it now and then if keys are many and short-lived. It reads the
// whole table once, by the primary key's index, in many short transactions. Tokens still rise,
// unless the server's clock is set back by more than idle.
func (l *Locker) Prune(ctx context.Context, idle time.Duration) (int, error) {
	if idle < 0 {
		return 0, fmt.Errorf("%w: postgres: idle time %v: must not be negative", lock.ErrInvalid, idle)
	}
	if err := l.ready(ctx); err != nil {
		return 0, err
	}
	const batch = 1000
	for total, after := 0, []byte{}; ; {
		reply, _, err := l.db.text(ctx, l.sql.prune, after, idle, batch)
		if err != nil {
			return total, err
		}
		var r struct {
			Deleted int
			Last    string
		}
		if json.Unmarshal([]byte(reply), &r) != nil {
			return total, unexpected(reply)
		}
		total += r.Deleted
		if after, err = hex.DecodeString(r.Last); err != nil || len(after) == 0 {
			return total, err
		}
	}
}
