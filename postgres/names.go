package postgres

import (
	"crypto/sha256"
	_ "embed"
	"encoding/hex"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/seed-215fdefa/lock"
)

//go:embed sql/schema.sql
var schemaSQL string

// version is part of the functions' names: that of what they take and return.
const version = "_v1"

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

func (n names) String() string { return pgx.Identifier{n.schema, n.table}.Sanitize() }

// tables and functions are what schema.sql makes, by the names that it has for them.
var (
	tables    = []string{"readers", "waiters", "undone", "marks"}
	functions = []string{
		"mint", "late", "micros", "check", "expire", "crowded", "holders", "line", "pass", "grab",
		"acquire", "missing", "mark", "renew", "release", "undo", "force", "prune",
	}
)

// fill puts the quoted names into SQL that has them in braces.
func (n names) fill(sql string) string {
	pairs := []string{
		"{schema}", pgx.Identifier{n.schema}.Sanitize(),
		"{locks}", n.String(),
		"{undone_expires}", pgx.Identifier{n.table + "_undone_expires"}.Sanitize(),
		"{body}", bodyQuote,
		"{digest}", digest(),
	}
	for _, t := range tables {
		pairs = append(pairs, "{"+t+"}", pgx.Identifier{n.schema, n.table + "_" + t}.Sanitize())
	}
	for _, f := range functions {
		pairs = append(pairs, "{"+f+"}", n.function(f))
	}
	return strings.NewReplacer(pairs...).Replace(sql)
}

func (n names) function(name string) string {
	return pgx.Identifier{n.schema, n.table + "_" + name + version}.Sanitize()
}

// digest tells a schema that this package made from an older one.
func digest() string {
	sum := sha256.Sum256([]byte(schemaSQL))
	return "lock/postgres " + hex.EncodeToString(sum[:8])
}
