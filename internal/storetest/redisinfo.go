package storetest

import (
	"os"
	"strconv"
	"strings"
	"testing"
)

// RedisInfo reads a number of what Redis' INFO says: a field such as "total_reads_processed",
// or the count of calls in "cmdstat_evalsha". A field that is not there is 0.
func RedisInfo(tb testing.TB, info, field string) int {
	tb.Helper()
	for line := range strings.Lines(info) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), ":")
		if name != field {
			continue
		}
		number, _, _ := strings.Cut(strings.TrimPrefix(value, "calls="), ",")
		n, err := strconv.Atoi(number)
		if err != nil {
			tb.Fatalf("storetest: INFO %s: %v", line, err)
		}
		return n
	}
	return 0
}

// ACL returns the rules of each command ACL SETUSER app that a Go file's comments have, as
// arguments.
func ACL(tb testing.TB, file string) [][]any {
	tb.Helper()
	source, err := os.ReadFile(file)
	if err != nil {
		tb.Fatal(err)
	}
	var all [][]any
	for line := range strings.Lines(string(source)) {
		if rules, ok := strings.CutPrefix(line, "//\tACL SETUSER app "); ok {
			var args []any
			for rule := range strings.FieldsSeq(rules) {
				args = append(args, rule)
			}
			all = append(all, args)
		}
	}
	return all
}
