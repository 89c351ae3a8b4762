package testserver

import (
	"bufio"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
)

func TestRespRead(t *testing.T) {
	for wire, want := range map[string]any{
		"+PONG\r\n":                         "PONG",
		":-7\r\n":                           int64(-7),
		"$0\r\n\r\n":                        "",
		"$4\r\na\r\nb\r\n":                  "a\r\nb",
		"$-1\r\n":                           nil,
		"*-1\r\n":                           nil,
		"*0\r\n":                            []any{},
		"*2\r\n$1\r\nx\r\n*1\r\n:1\r\n":     []any{"x", []any{int64(1)}},
		"*2\r\n+first\r\n$6\r\nsecond\r\n":  []any{"first", "second"},
		"*3\r\n:1\r\n$-1\r\n$1\r\n\x00\r\n": []any{int64(1), nil, "\x00"},
	} {
		got, err := respRead(bufio.NewReader(strings.NewReader(wire)))
		assert.NoError(t, err, "%q", wire)
		assert.Equal(t, want, got, "%q", wire)
	}
	for _, wire := range []string{"", "\r\n", "-ERR no\r\n", "$x\r\n", "!1\r\n", "$5\r\nab", "*2\r\n:1\r\n"} {
		_, err := respRead(bufio.NewReader(strings.NewReader(wire)))
		assert.Error(t, err, "%q", wire)
	}
}
