package main

import (
	"context"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/memory"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// The README's first program.
func Example() {
	main()
	// Output: shipping order:123
}

// TestWhoHoldsIt: the fragment shows the holder when its bound is over.
func TestWhoHoldsIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		defer func(was *lock.Client) { client = was }(client)
		client = lock.New(memory.New())
		holder, err := client.Lock(ctx, "report")
		require.NoError(t, err)
		record, err := whoHoldsIt()
		require.ErrorIs(t, err, lock.ErrHeld)
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.Len(t, record.Holders, 1)
		require.NoError(t, holder.Release(ctx))
		require.NoError(t, client.Close(ctx))
	})
}

// pages are the README and the guides.
func pages(t *testing.T) map[string]string {
	t.Helper()
	paths, err := filepath.Glob("../../docs/*.md")
	require.NoError(t, err)
	texts := make(map[string]string)
	for _, path := range append(paths, "../../README.md") {
		b, err := os.ReadFile(path)
		require.NoError(t, err)
		texts[path] = string(b)
	}
	return texts
}

// TestFragments looks each piece of Go in README and guides up in the examples, where it
// compiles.
func TestFragments(t *testing.T) {
	all := sources(t)
	found := 0
	for path, text := range pages(t) {
		for _, f := range regexp.MustCompile("(?s)```go\n(.*?)```").FindAllStringSubmatch(text, -1) {
			found++
			if !strings.Contains(all, unindented(f[1])) {
				t.Errorf("this is in %s, but not in the examples:\n%s", path, f[1])
			}
		}
	}
	require.NotZero(t, found)
}

// TestLinks follows the links of README and guides to files and headings of this repository.
func TestLinks(t *testing.T) {
	for path, text := range pages(t) {
		for _, m := range regexp.MustCompile(`\]\(([^)\s]+)\)`).FindAllStringSubmatch(text, -1) {
			target, heading, _ := strings.Cut(m[1], "#")
			if strings.Contains(target, "://") {
				continue
			}
			file := path
			if target != "" {
				file = filepath.Join(filepath.Dir(path), target)
			}
			_, err := os.Stat(file)
			require.NoError(t, err, "%s links to %s", path, m[1])
			if heading != "" {
				b, err := os.ReadFile(file)
				require.NoError(t, err)
				require.Contains(t, headings(string(b)), heading, "%s links to %s", path, m[1])
			}
		}
	}
}

// headings are those of a page as its links name them.
func headings(text string) []string {
	var names []string
	for _, m := range regexp.MustCompile(`(?m)^#+ (.+)$`).FindAllStringSubmatch(text, -1) {
		name := regexp.MustCompile(`[^\w\- ]`).ReplaceAllString(strings.ToLower(m[1]), "")
		names = append(names, strings.ReplaceAll(name, " ", "-"))
	}
	return names
}

// TestLength: a README that does not get to the point is not read.
func TestLength(t *testing.T) {
	require.LessOrEqual(t, strings.Count(pages(t)["../../README.md"], "\n"), 250)
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
