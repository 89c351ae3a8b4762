package postgres

import (
	"time"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/internal/storekit"
)

// MayPass reports whether a wait goes on after err.
func MayPass(err error) bool { return classify(err).Passing() }

// HandOver tells who waits as owner of a hand-over with that token.
func (l *Locker) HandOver(owner string, token lock.Token, start time.Time) {
	l.registry.Deliver(owner, storekit.Handover{Token: token, Start: start})
}

// FunctionName is the name of a function, for tests that call it in a transaction of theirs.
func FunctionName(schema, table, function string) string {
	n := names{schema, table}
	return n.quoted(n.function(function))
}

// Functions are the names of all of them, and Version that of the schema.
var Functions = functions

const Version = version

// Doubt has l believe that a copy of owner's request may still be on its way.
func (l *Locker) Doubt(owner string) { l.doubts.Add(owner) }
