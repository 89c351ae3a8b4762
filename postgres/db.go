package postgres

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

// Errors that say what to do about the database. They come wrapped.
var (
	// ErrSchema says that the tables and functions are missing, or of another version.
	ErrSchema = errors.New("lock: postgres: the schema is missing or of another version: run postgres.Migrate")
	// ErrReadOnly says that the server takes no writes: it is a standby, or its database is
	// read-only. Connect with target_session_attrs=read-write to find the primary.
	ErrReadOnly = errors.New("lock: postgres: the server is a standby or read-only: connect to the primary")
)

// db sends statements, each of which is a transaction of its own, on the user's pool.
type db struct {
	pool *pgxpool.Pool
	// explicit is set when the connections' default isolation level is not what functions
	// need: then they run in transactions that say theirs.
	explicit atomic.Bool
}

const (
	maxSends = 4 // of a statement whose outcome a broken connection left unknown
	maxPause = 250 * time.Millisecond
)

// The SQLSTATEs that matter here. See https://www.postgresql.org/docs/current/errcodes-appendix.html
const (
	wrongIsolation       = "LK001" // raised by the function check
	serializationFailure = "40001"
	deadlockDetected     = "40P01"
	readOnlyTransaction  = "25006"
)

var (
	schemaStates = map[string]bool{"3F000": true, "42P01": true, "42883": true, "42703": true, "42704": true, "42804": true}
	// downStates are of a server, or a pooler, that starts, ends, or has no room for now.
	downStates = map[string]bool{
		"57P01": true, "57P02": true, "57P03": true, "53300": true, "08P01": true, "08006": true, "08003": true,
	}
)

// conn is a pool, or one connection of it.
type conn interface {
	Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error)
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
	SendBatch(ctx context.Context, b *pgx.Batch) pgx.BatchResults
	BeginTx(ctx context.Context, options pgx.TxOptions) (pgx.Tx, error)
}

// text runs a statement that returns one text, "" if it returns no row. See repeat.
func (d *db) text(ctx context.Context, sql string, args ...any) (reply string, unsure bool, err error) {
	unsure, err = d.repeat(ctx, func(c conn) error {
		if d.explicit.Load() {
			return readCommitted(ctx, c, sql, args, &reply)
		}
		rows, err := c.Query(ctx, sql, args...)
		if err != nil {
			return err
		}
		return scan(rows, &reply)
	})
	return reply, unsure, err
}

// exec runs a statement that is sound under any isolation level, and tells whether it has
// affected a row. See repeat.
func (d *db) exec(ctx context.Context, sql string, args ...any) (affected, unsure bool, err error) {
	unsure, err = d.repeat(ctx, func(c conn) error {
		tag, err := c.Exec(ctx, sql, args...)
		affected = tag.RowsAffected() > 0
		return err
	})
	return affected, unsure, err
}

// repeat calls send until it succeeds, ctx ends, or its error is final. What it sends must
// bear being sent again. That happens after a serialization failure or a deadlock, which
// undid it, and up to maxSends times in all when the connection broke before the outcome was
// known: unsure says that this was so, and that a first copy may still be on its way.
func (d *db) repeat(ctx context.Context, send func(conn) error) (unsure bool, err error) {
	for n, broken := 1, 1; ; n++ {
		if broken == 1 {
			err = send(d.pool)
		} else {
			err = d.checked(ctx, send)
		}
		switch {
		case err == nil:
			return unsure, nil
		case ctx.Err() != nil:
			return unsure, ctx.Err()
		case state(err) == wrongIsolation && !d.explicit.Swap(true):
			continue
		case undone(err) || state(err) == wrongIsolation:
		case interrupted(err) && broken < maxSends:
			broken++
			unsure = true
		case unmade(err) && broken < maxSends:
			broken++
		default:
			return unsure, wrap(err)
		}
		if err := pause(ctx, n); err != nil {
			return unsure, err
		}
	}
}

// checked sends on a connection that answers. After a restart of the server all those in the
// pool may be dead, and would use up what tries there are.
func (d *db) checked(ctx context.Context, send func(conn) error) error {
	for n := d.pool.Config().MaxConns; ; n-- {
		c, err := d.pool.Acquire(ctx)
		if err != nil {
			return err
		}
		if err := c.Ping(ctx); err != nil && n > 0 && ctx.Err() == nil {
			c.Release() // which drops it
			continue
		}
		defer c.Release()
		return send(c)
	}
}

// readCommitted runs a statement under READ COMMITTED, whatever the default. What is sent at
// once is one transaction, which ends without the caller: one that freezes, or is cut off,
// does not keep the row locked for all others.
func readCommitted(ctx context.Context, c conn, sql string, args []any, reply *string) error {
	var b pgx.Batch
	b.Queue("SET transaction_isolation = 'read committed'")
	b.Queue(sql, args...)
	r := c.SendBatch(ctx, &b)
	_, err := r.Exec()
	if err == nil {
		rows, _ := r.Query()
		err = scan(rows, reply)
	}
	return cmp.Or(err, r.Close())
}

// scan reads the first column of the first row. A statement of many rows is none of ours.
func scan(rows pgx.Rows, reply *string) error {
	defer rows.Close()
	*reply = ""
	if rows.Next() {
		if values := rows.RawValues(); len(values) > 0 {
			*reply = string(values[0])
		}
	}
	rows.Close()
	return rows.Err()
}

// pause sleeps before retry n, exponentially longer and with full jitter, up to maxPause.
func pause(ctx context.Context, n int) error {
	t := time.NewTimer(rand.N(min(maxPause, 2*time.Millisecond<<min(n, 10))))
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func state(err error) string {
	var e *pgconn.PgError
	if errors.As(err, &e) {
		return e.Code
	}
	return ""
}

// undone tells whether the server undid a statement that would do when sent again.
func undone(err error) bool {
	s := state(err)
	return s == serializationFailure || s == deadlockDetected
}

// interrupted tells whether a connection broke while a statement was under way.
func interrupted(err error) bool {
	var dial *pgconn.ConnectError
	s := state(err)
	return s == "57P01" || s == "57P02" || s == "" && !errors.As(err, &dial) && !poolClosed(err)
}

// unmade tells whether a connection broke while it was being made, before a statement was
// sent. A server that is not there refuses it instead.
func unmade(err error) bool {
	var dial *pgconn.ConnectError
	return errors.As(err, &dial) && (errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF) ||
		errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE))
}

// poolClosed knows the error by its text: the variable is in a package that pgx does not
// show.
func poolClosed(err error) bool { return strings.HasSuffix(err.Error(), "closed pool") }

// permanent tells whether asking again cannot help.
func permanent(err error) bool {
	s := state(err)
	return s != "" && !downStates[s] && !undone(err) || poolClosed(err) || errors.Is(err, errUndone)
}

// wrap says which store an error is of, and what to do about it if that is known.
func wrap(err error) error {
	switch s := state(err); {
	case s == readOnlyTransaction:
		return fmt.Errorf("%w: %w", ErrReadOnly, err)
	case schemaStates[s]:
		return fmt.Errorf("%w: %w", ErrSchema, err)
	}
	return fmt.Errorf("lock: postgres: %w", err)
}
