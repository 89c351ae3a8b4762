package dynamo

import (
	"strings"
	"testing"
)

// TestTableName is for what a table may be called.
func TestTableName(t *testing.T) {
	for name, ok := range map[string]bool{
		"abc": true, "a.b-c_D9": true, strings.Repeat("a", 255): true,
		"arn:aws:dynamodb:eu-west-1:123456789012:table/locks": true, "arn:" + strings.Repeat("a", 1000): true,
		"": false, "ab": false, strings.Repeat("a", 256): false, "a/b": false, "a b c": false, "abc\n": false,
		"arn:a b": false, "arn:" + strings.Repeat("a", 1001): false,
	} {
		if err := checkTable(name); (err == nil) != ok {
			t.Errorf("%.40q: %v", name, err)
		}
	}
}
