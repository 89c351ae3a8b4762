package postgres

import (
	"crypto/sha256"
	_ "embed"
	"encoding/hex"
	"fmt"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/seed-215fdefa/lock"
)

//go:embed sql/schema.sql
var schemaSQL string

// version is that of schema.sql. Whoever changes that file raises it: a schema of a higher
// version is left alone by programs of a lower one.
const version = 3

// bodyQuote is around the bodies of functions, so no name may have it.
const bodyQuote = "$lock_body$"

// maxTableLen leaves room for what is appended, within the 63 bytes of PostgreSQL's names.
const maxTableLen, maxSchemaLen = 40, 63

// names are where a set of locks lives.
type names struct{ schema, table string }

func (n names) check() error {
	for _, c := range []struct {
		what, name string
		most       int
	}{{"schema", n.schema, maxSchemaLen}, {"table", n.table, maxTableLen}} {
		switch {
		case c.name == "" || len(c.name) > c.most:
			return fmt.Errorf("%w: %s name %q has %d bytes: must have 1 to %d", lock.ErrInvalid, c.what, c.name, len(c.name), c.most)
		case strings.ContainsRune(c.name, 0) || strings.Contains(c.name, bodyQuote):
			return fmt.Errorf("%w: %s name %q: must not contain NUL or %s", lock.ErrInvalid, c.what, c.name, bodyQuote)
		}
	}
	return nil
}

// tables and functions are what schema.sql makes, by the names that it has for them.
var (
	tables    = []string{"locks", "readers", "waiters", "tombstones", "marks"}
	functions = []string{
		"remaining", "micros", "mint", "crowded", "sweep", "open", "record", "notify", "pass", "acquire",
		"missing", "renew", "release", "bury", "undo", "force", "prune",
	}
)

// relation is the name of a table.
func (n names) relation(table string) string {
	if table == "locks" {
		return n.table
	}
	return n.table + "_" + table
}

// function is the name of a function. It has a hash of the names that its body has, since those
// do not change with a schema that is renamed, and plain statements do.
func (n names) function(name string) string {
	sum := sha256.Sum256([]byte(n.schema + "\x00" + n.table))
	return fmt.Sprintf("%s_%s_v%d_%s", n.table, name, version, hex.EncodeToString(sum[:4]))
}

// quoted is a name in this schema.
func (n names) quoted(name string) string { return pgx.Identifier{n.schema, name}.Sanitize() }

// fill puts the quoted names into SQL that has them in braces.
func (n names) fill(sql string) string {
	pairs := []string{
		"{schema}", pgx.Identifier{n.schema}.Sanitize(),
		"{locks_literal}", strings.ReplaceAll(n.quoted(n.table), "'", "''"),
		"{tombstones_expires}", pgx.Identifier{n.table + "_tombstones_expires"}.Sanitize(),
		"{body}", bodyQuote,
		"{version}", strconv.Itoa(version),
		"{most}", strconv.Itoa(lock.MaxRecord),
	}
	for _, t := range tables {
		pairs = append(pairs, "{"+t+"}", n.quoted(n.relation(t)))
	}
	for _, f := range functions {
		pairs = append(pairs, "{"+f+"}", n.quoted(n.function(f)))
	}
	return strings.NewReplacer(pairs...).Replace(sql)
}

// statements are what a Locker sends. Those for a key that nobody else has or waits for decide
// by its row alone, so they are sound as plain statements under any isolation level, and cost
// the server least.
type statements struct {
	take, drop, extend, keep                            string
	acquire, renew, release, undo, force, notify, prune string
	inspect, list                                       string
}

func (n names) statements() statements {
	return statements{
		take: n.fill(takeSQL), drop: n.fill(dropSQL), extend: n.fill(extendSQL), keep: n.fill(keepSQL),
		acquire: n.fill(`SELECT {acquire}($1::bytea, $2::text, $3::interval, $4::boolean, $5::text, $6::boolean, $7::text, $8::interval, $9::boolean, $10::bigint)`),
		renew:   n.fill(`SELECT {renew}($1::bytea, $2::text, $3::bigint, $4::boolean, $5::interval)`),
		release: n.fill(`SELECT {release}($1::bytea, $2::text, $3::bigint, $4::boolean, $5::text, $6::boolean)`),
		undo:    n.fill(`SELECT {undo}($1::bytea, $2::text, $3::interval, $4::boolean)`),
		force:   n.fill(`SELECT {force}($1::bytea, $2::text, $3::interval, $4::boolean)`),
		notify:  n.fill(`SELECT {notify}($1::text, $2::text)`),
		prune:   n.fill(`SELECT {prune}($1::bytea, $2::interval, $3::int)`),
		inspect: n.fill(viewSQL + `WHERE l.key = $1::bytea`),
		list: n.fill(viewSQL + `WHERE l.key >= $1::bytea AND l.key < $2::bytea
			AND (l.crowd OR l.owner IS NOT NULL AND l.expires > n.t) ORDER BY l.key LIMIT $3::int`),
	}
}

// takeSQL grants a lock that is free and not crowded, and returns the token; else it returns no
// row. After a wait for a row that was changed meanwhile all is evaluated again. For one that
// was not, the clock is from before the wait; but not from before the request was sent, where
// the holder's TTL begins.
const takeSQL = `UPDATE {locks} SET
	token = greatest(token + 1, (date_part('epoch', clock_timestamp()) * 1000000::float8)::bigint),
	owner = $2::text, expires = clock_timestamp() + $3::interval, process = $4::text, metadata = $5::text
WHERE key = $1::bytea AND NOT crowd AND (owner IS NULL OR expires <= clock_timestamp())
RETURNING token::text, ` + flushedSQL

// flushedSQL has what is granted on disk when it is acknowledged, whatever the default.
const flushedSQL = `CASE WHEN current_setting('synchronous_commit') = 'off'
	THEN set_config('synchronous_commit', 'local', true) END`

// dropSQL ends an exclusive grant of a lock that nobody waits for. It returns no row if there
// is more to do, or nothing to drop. It does not wait for the disk: see the package comment.
const dropSQL = `UPDATE {locks} SET owner = NULL
WHERE key = $1::bytea AND owner = $2::text AND token = $3::bigint AND expires > clock_timestamp() AND NOT crowd
RETURNING '1', set_config('synchronous_commit', 'off', true)`

// extendSQL renews an exclusive grant. It returns no row if that is not there.
const extendSQL = `UPDATE {locks} SET expires = clock_timestamp() + $4::interval
WHERE key = $1::bytea AND owner = $2::text AND token = $3::bigint AND expires > clock_timestamp()
RETURNING '1', ` + flushedSQL

// keepSQL puts off the deadline of a place in line, and returns how many are in the way in
// front, some at most; no row if the place is not there any more. It does not lock the lock's
// row: who deletes dead places looks again at one that is being kept, so it ends up kept or
// deleted; and what it returns is only a hint.
const keepSQL = `UPDATE {waiters} w SET deadline = clock_timestamp() + $3::interval
WHERE w.key = $1::bytea AND w.owner = $2::text AND w.deadline > clock_timestamp()
RETURNING (SELECT count(*) FROM (SELECT FROM {waiters} o WHERE o.key = w.key AND o.ticket < w.ticket
	AND o.deadline > clock_timestamp() AND NOT (w.shared AND o.shared) LIMIT 64) ahead)::text,
	set_config('synchronous_commit', 'off', true)`

// viewSQL reads records, each in one snapshot.
const viewSQL = `SELECT {record}(l, n.t, true, NULL, NULL)::text
FROM {locks} l, (SELECT clock_timestamp() AS t) n
`
