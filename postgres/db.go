package postgres

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/seed-215fdefa/lock/internal/storekit"
)

// Errors that say what to do about the database. They come wrapped.
var (
	// ErrSchema says that tables or functions are missing or not what this program needs.
	ErrSchema = errors.New("lock: postgres: the schema is not what this program needs")
	// ErrReadOnly says that the server takes no writes: it is a standby, or its database is
	// read-only. Connect with target_session_attrs=read-write to find the primary.
	ErrReadOnly = errors.New("lock: postgres: the server is a standby or read-only: connect to the primary")
)

// db sends statements, each of which is a transaction of its own, on the user's pool.
type db struct {
	pool  *pgxpool.Pool
	names names
	limit time.Duration // for a statement, from the wait for a connection to the answer; 0: none
	// explicit is set when the connections' default isolation level is not what functions
	// need: then they run in transactions that say theirs.
	explicit atomic.Bool

	mu    sync.Mutex // guards reset
	reset time.Time  // when the pool was told to connect anew
}

// waiterLimit is for the statements of those in line. A look is due after a third of the heartbeat: if
// that is sent on a connection that is silent, there is time left for another before the place is lost.
const waiterLimit = 2 * time.Second

// closeWait is how long it may take to close a connection.
const closeWait = 100 * time.Millisecond

// The SQLSTATEs that matter here. See https://www.postgresql.org/docs/current/errcodes-appendix.html
const (
	wrongIsolation        = "LK001" // raised by the function open
	newerSchema           = "LK002" // raised by schema.sql
	readOnlyTransaction   = "25006"
	unsupported           = "0A000"
	insufficientPrivilege = "42501"
	programLimit          = "54000" // that of the NOTIFY queue, which is full
	unknownStatement      = "26000"
	lockTimeout           = "55P03"
)

// text runs a statement that returns one text, "" if it returns no row. See repeat.
func (d *db) text(ctx context.Context, sql string, args ...any) (reply string, unsure bool, err error) {
	return d.textWithin(ctx, d.limit, sql, args...)
}

// textWithin is text with another limit.
func (d *db) textWithin(ctx context.Context, limit time.Duration, sql string, args ...any) (reply string, unsure bool, err error) {
	unsure, err = d.repeat(ctx, limit, func(ctx context.Context, c *pgx.Conn) error {
		reply = ""
		return d.query(ctx, c, func(value string) { reply = value }, sql, args)
	})
	return reply, unsure, err
}

// query runs a statement and calls each with the first column of each row. It asks for no more
// than one statement at once, or for what is one transaction, which ends without the caller: one
// that freezes, or is cut off, does not keep the row locked for all others.
func (d *db) query(ctx context.Context, c *pgx.Conn, each func(string), sql string, args []any) error {
	if !d.explicit.Load() {
		rows, err := c.Query(ctx, sql, args...)
		if err != nil {
			return err
		}
		if err = scan(rows, each); state(err) == wrongIsolation {
			d.explicit.Store(true)
		}
		return err
	}
	var b pgx.Batch
	b.Queue("SET transaction_isolation = 'read committed'")
	b.Queue(sql, args...)
	r := c.SendBatch(ctx, &b)
	_, err := r.Exec()
	if err == nil {
		rows, _ := r.Query()
		err = scan(rows, each)
	}
	return cmp.Or(err, r.Close())
}

func scan(rows pgx.Rows, each func(string)) error {
	defer rows.Close()
	for rows.Next() {
		if values := rows.RawValues(); len(values) > 0 {
			each(string(values[0]))
		}
	}
	rows.Close()
	return rows.Err()
}

// repeat sends until it succeeds, ctx ends, or the error is final. What it sends must bear being
// sent again: unsure says that this may have happened to a first copy that is still on its way.
func (d *db) repeat(ctx context.Context, limit time.Duration, f func(context.Context, *pgx.Conn) error) (unsure bool, err error) {
	unsure, err = storekit.Repeat(ctx, func(err error) storekit.Class {
		if state(err) == readOnlyTransaction {
			return storekit.Final // send has looked for another server
		}
		return classify(err)
	}, func(ctx context.Context, n int) error { return d.send(ctx, limit, n > 0, f) })
	return unsure, d.explain(err)
}

// send is sendNow for no longer than limit: a network that drops packets tells nobody. A call that is to
// end sooner is left alone. After seconds without an answer the pool connects anew, since what it has
// may all be silent.
func (d *db) send(ctx context.Context, limit time.Duration, again bool, f func(context.Context, *pgx.Conn) error) error {
	limited, begun := ctx, time.Now()
	if limit > 0 && limit < d.limit && d.slow() {
		limit = d.limit
	}
	if limit > 0 && !storekit.EndsWithin(ctx, limit) {
		var cancel context.CancelFunc
		limited, cancel = context.WithTimeout(ctx, limit)
		defer cancel()
	}
	err := d.sendNow(limited, again, f)
	if err == nil || limited.Err() == nil || state(err) != "" {
		return err
	}
	var none *unreachedError
	unreached := errors.As(err, &none)
	if limit > 0 && time.Since(begun) >= waiterLimit && (!unreached || none.inUse == 0 && d.pool.Stat().ConstructingConns() == 0) {
		d.connectAnew(begun, d.limit)
	}
	switch {
	case ctx.Err() != nil:
		return err
	case unreached:
		return &unreachedError{fmt.Errorf("none in %v", limit), none.inUse}
	}
	return fmt.Errorf("no answer in %v", limit)
}

// slow reports that who waits for an answer waits for the server, or for its turn, rather than on a
// silent connection: all are in use, or new.
func (d *db) slow() bool {
	d.mu.Lock()
	fresh := time.Since(d.reset) < d.limit
	d.mu.Unlock()
	s := d.pool.Stat()
	return fresh || s.AcquiredConns() == s.MaxConns() || s.ConstructingConns() > 0
}

// connectAnew has the pool drop its connections, those in use when they are released, but not twice
// within pause. It reports whether that was done since then.
func (d *db) connectAnew(since time.Time, pause time.Duration) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if now := time.Now(); d.reset.Before(since) && now.Sub(d.reset) >= pause {
		d.reset = now
		d.pool.Reset()
	}
	return !d.reset.Before(since)
}

// sendNow runs f once, on a connection of the pool; again says that one has broken, so that the next
// must answer first. After a restart or a failover all that the pool has may be like that. If the
// server has become read-only, as after a failover, the pool connects anew, and one more is asked.
func (d *db) sendNow(ctx context.Context, again bool, f func(context.Context, *pgx.Conn) error) error {
	begun, anew, old := time.Now(), false, -1
	for {
		c, err := d.pool.Acquire(ctx)
		if err != nil {
			return d.unreached(err)
		}
		if again {
			if old < 0 {
				old = int(d.pool.Stat().TotalConns())
			}
			if old > 0 && c.Ping(ctx) != nil && ctx.Err() == nil {
				old--
				discard(c)
				continue
			}
		}
		err = f(ctx, c.Conn())
		anew = !anew && state(err) == readOnlyTransaction && d.connectAnew(begun, time.Second)
		c.Release()
		if !anew {
			return err
		}
	}
}

// discard takes a connection out of the pool.
func discard(c *pgxpool.Conn) {
	ctx, cancel := context.WithTimeout(context.Background(), closeWait)
	defer cancel()
	_ = c.Conn().Close(ctx)
	c.Release()
}

// unreachedError says that there was no connection to send on.
type unreachedError struct {
	err   error
	inUse int32 // how many connections the pool has, if all are in use
}

func (e *unreachedError) Error() string {
	if e.inUse > 0 {
		return fmt.Sprintf("no connection: all %d connections of the pool are in use: %v", e.inUse, e.err)
	}
	return "no connection: " + e.err.Error()
}

func (e *unreachedError) Unwrap() error { return e.err }

func (d *db) unreached(err error) error {
	if s := d.pool.Stat(); s.AcquiredConns() == s.MaxConns() {
		return &unreachedError{err, s.MaxConns()}
	}
	return &unreachedError{err, 0}
}

// isClosed tells that the pool is; pgx does not show the variable.
func isClosed(err error) bool { return strings.HasSuffix(err.Error(), "closed pool") }

func state(err error) string {
	var e *pgconn.PgError
	if err == nil || !errors.As(err, &e) {
		return ""
	}
	if e.Code == unsupported && e.Routine == "GetSerializableTransactionSnapshot" {
		return readOnlyTransaction // a standby, where serializable is the default
	}
	return e.Code
}

// busyStates are those of a statement that had no effect and may succeed later. So are all that
// begin with 53, of a server that lacks something.
var busyStates = map[string]bool{
	wrongIsolation: true, readOnlyTransaction: true,
	"40001": true, "40P01": true, // a serialization failure, a deadlock
	lockTimeout: true, "57014": true, // the latter: statement_timeout
	unsupported: true, // a prepared statement from before a change of the schema
	"57P03":     true, // the server starts
}

// brokenStates are those with which the server ends the connection: it stops, or a limit of its own is
// over (transaction_timeout, idle_session_timeout).
var brokenStates = map[string]bool{"57P01": true, "57P02": true, "25P04": true, "57P05": true}

// classify tells the class of an error.
func classify(err error) storekit.Class {
	var none *unreachedError
	switch s := state(err); {
	case errors.Is(err, storekit.ErrUndone), isClosed(err):
		return storekit.Final
	case errors.As(err, &none): // whatever it is: a password may be wrong for a moment only
		return storekit.Unsent
	case s == "", brokenStates[s], strings.HasPrefix(s, "08"): // the server, or a pooler, ends
		return storekit.Unknown
	case busyStates[s], strings.HasPrefix(s, "53"):
		return storekit.Busy
	case fatal(err):
		return storekit.Unknown
	}
	return storekit.Final
}

// fatal reports that the connection was ended, for a reason that may be the pooler's own, or its server's
// with the pooler, such as 28P01 while a password changes.
func fatal(err error) bool {
	var e *pgconn.PgError
	return errors.As(err, &e) && (e.Severity == "FATAL" || e.Severity == "PANIC")
}

// schemaStates are those of names that are not there, or are of something else.
var schemaStates = map[string]bool{
	"3F000": true, "42P01": true, "42883": true, "42703": true, "42704": true, "42804": true, "42P10": true,
}

// explain says which store an error is of, and what to do about it if that is known.
func (d *db) explain(err error) error {
	switch s := state(err); {
	case err == nil, errors.Is(err, ErrSchema),
		err == context.Canceled, err == context.DeadlineExceeded: //nolint:errorlint // alone, not in others
		return err
	case isClosed(err):
		return storekit.ClientClosed("postgres", err)
	case s == readOnlyTransaction:
		return fmt.Errorf("%w: %w", ErrReadOnly, err)
	case schemaStates[s]:
		return fmt.Errorf("%w: run postgres.Migrate: %w", ErrSchema, err)
	case s == insufficientPrivilege:
		return fmt.Errorf("lock: postgres: %w: the role needs USAGE on schema %q, "+
			"and SELECT, INSERT, UPDATE and DELETE on its tables: see GRANT", err, d.names.schema)
	case s == unknownStatement:
		return fmt.Errorf("lock: postgres: %w: behind a pooler, connect with default_query_exec_mode=exec", err)
	}
	return fmt.Errorf("lock: postgres: %w", err)
}
