// Mutants shows what the tests would miss. It breaks the library on purpose, in one small
// way at a time, and runs the tests that must notice: a mutant that survives is a fault
// that nobody would hear of.
//
//	make mutants             # all tables
//	make mutants PKG=redis   # one: memory, redis, redlock, zookeeper, dynamo, root …
//	go run ./internal/mutants -pkg redis -name 'token|undo' -v
//
// The tables are in the folder tables, one for each package; their format is described
// at [parse]. Nothing is copied: a mutant is built with go test -overlay. Each line of
// tests is first run on the sound code, which must pass: a test that fails anyway would
// catch everything.
//
// It exits with 1 when less than 95 % are caught, when one survives without a reason in
// its table, and when a table is stale: its text not there exactly once, its tests gone,
// or the mutant no Go. It is not part of CI; what is cheap about staleness is, as a test.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"time"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	ok, err := run(ctx)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "mutants:", err)
	}
	if err != nil || !ok {
		os.Exit(1)
	}
}

func run(ctx context.Context) (ok bool, err error) {
	pkgs := flag.String("pkg", "", "tables to run, with commas between them; default all")
	name := flag.String("name", "", "only mutants whose names match this regular expression")
	p := flag.Int("p", 2, "mutants at a time")
	limit := flag.Duration("timeout", 4*time.Minute, "per line of tests; one that takes longer is caught")
	quick := flag.Bool("quick", false, "run the tests of its own only: what survives may yet be caught by its table's")
	verbose := flag.Bool("v", false, "show the tests' output for survivors")
	flag.Parse()
	match, err := regexp.Compile(*name)
	if err != nil {
		return false, err
	}
	root, err := moduleRoot()
	if err != nil {
		return false, err
	}
	var chosen []string
	if *pkgs != "" {
		chosen = strings.Split(*pkgs, ",")
	}
	ms, err := load(filepath.Join(root, "internal", "mutants", "tables"), chosen)
	if err != nil {
		return false, err
	}
	var some []*mutant
	for _, m := range ms {
		if *quick {
			m.tests = m.tests[:max(1, m.own)]
		}
		if match.MatchString(m.name) {
			some = append(some, m)
		}
	}
	if len(some) == 0 {
		return false, fmt.Errorf("no mutant matches -pkg %q -name %q", *pkgs, *name)
	}
	work, err := os.MkdirTemp("", "mutants")
	if err != nil {
		return false, err
	}
	defer func() { _ = os.RemoveAll(work) }()
	r := newRunner(root, work, *limit, *p, *verbose)
	r.all(ctx, some)
	return summarize(os.Stdout, some), ctx.Err()
}

// moduleRoot is the folder of the go.mod around the working directory.
func moduleRoot() (string, error) {
	out, err := exec.Command("go", "env", "GOMOD").Output()
	if err != nil {
		return "", fmt.Errorf("go env GOMOD: %w", err)
	}
	mod := strings.TrimSpace(string(out))
	if mod == "" || mod == os.DevNull {
		return "", fmt.Errorf("no go.mod above the working directory")
	}
	return filepath.Dir(mod), nil
}
