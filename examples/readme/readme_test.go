package main

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// The README's first program.
func Example() {
	main()
	// Output: shipping order:123
}

// TestFragments looks each piece of Go in the README up in the examples, where it compiles.
func TestFragments(t *testing.T) {
	readme, err := os.ReadFile("../../README.md")
	require.NoError(t, err)
	fragments := regexp.MustCompile("(?s)```go\n(.*?)```").FindAllStringSubmatch(string(readme), -1)
	require.NotEmpty(t, fragments)
	all := sources(t)
	for _, f := range fragments {
		if !strings.Contains(all, unindented(f[1])) {
			t.Errorf("this is in the README, but not in the examples:\n%s", f[1])
		}
	}
}

func sources(t *testing.T) string {
	t.Helper()
	var all strings.Builder
	require.NoError(t, filepath.WalkDir("..", func(path string, _ fs.DirEntry, err error) error {
		if err != nil || filepath.Ext(path) != ".go" {
			return err
		}
		b, err := os.ReadFile(path)
		all.WriteString("\n" + unindented(string(b)))
		return err
	}))
	return all.String()
}

// unindented is s without what differs between a fragment and its place in a function.
func unindented(s string) string {
	lines := strings.Split(s, "\n")
	for i, line := range lines {
		lines[i] = strings.TrimSpace(line)
	}
	return strings.Join(lines, "\n")
}
