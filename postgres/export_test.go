package postgres

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
