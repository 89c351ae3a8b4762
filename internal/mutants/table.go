package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// mutant is one fault, and what is to notice it.
type mutant struct {
	table    string // the name of its table
	name     string // table/name, unique
	file     string // relative to the module's root
	breaks   string // what goes wrong with it, in words
	survives string // why no test notices it, or ""
	tests    []tests
	own      int // how many of tests are its own, the first ones
	old, new string

	outcome outcome
	detail  string // the test that caught it, or what is stale
}

// tests is one call of a test program.
type tests struct {
	dir     string // of the package, relative to the module's root: "redis", "."
	pattern string // as -test.run takes it
}

func (t tests) String() string { return "./" + t.dir + " " + t.pattern }

// outcome is what came of a mutant.
type outcome string

const (
	caught   outcome = "caught"
	survived outcome = "SURVIVED"
	accepted outcome = "accepted" // it survived, and its table says why
	stale    outcome = "STALE"
	skipped  outcome = "not run"
)

// load reads the tables in dir, or those of them that are named.
func load(dir string, only []string) ([]*mutant, error) {
	paths, err := filepath.Glob(filepath.Join(dir, "*.txt"))
	if err != nil {
		return nil, err
	}
	var all []*mutant
	var errs []error
	var found []string
	for _, path := range paths {
		table := strings.TrimSuffix(filepath.Base(path), ".txt")
		if len(only) > 0 && !slices.Contains(only, table) {
			continue
		}
		found = append(found, table)
		text, err := os.ReadFile(path)
		if err != nil {
			return nil, err
		}
		ms, err := parse(table, string(text))
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", path, err))
		}
		all = append(all, ms...)
	}
	for _, name := range only {
		if !slices.Contains(found, name) {
			errs = append(errs, fmt.Errorf("there is no table %q in %s", name, dir))
		}
	}
	return all, errors.Join(errs...)
}

// parse reads a table:
//
//	# A comment. The tests before the first mutant are for all, after those of their own.
//	test: TestSuite
//
//	== token-from-client
//	file: redis/lua/mint.lua
//	breaks: The token follows the client's clock.
//	test: TestToken
//	test: ./locktest TestMemory
//	survives: Only with a reason: why no test can notice, or none is worth its time.
//	<<<
//	the old text, which must be in the file exactly once
//	===
//	the new text; none removes the old one
//	>>>
//
// A test is a pattern of go test -run, in the package that has the table's name unless a
// folder stands before it. They are run in their order, until one fails: what is likely to
// notice comes first, and whoever survives that has all of the table's to face.
func parse(table, text string) ([]*mutant, error) {
	var ms []*mutant
	var errs []error
	defaults := &mutant{table: table}
	m := defaults
	lines := strings.Split(text, "\n")
	for i := 0; i < len(lines); i++ {
		line := lines[i]
		name, isName := strings.CutPrefix(line, "== ")
		switch {
		case line == "" || strings.HasPrefix(line, "#"):
		case isName:
			m = &mutant{table: table, name: table + "/" + strings.TrimSpace(name)}
			ms = append(ms, m)
		case line == "<<<":
			rest, err := m.body(lines[i+1:])
			if err != nil {
				return ms, fmt.Errorf("%s: %w", m.name, err)
			}
			i = len(lines) - len(rest) - 1
		default:
			if err := m.field(line); err != nil {
				errs = append(errs, fmt.Errorf("line %d: %w", i+1, err))
			}
		}
	}
	for _, m := range ms {
		m.own = len(m.tests)
		m.tests = append(m.tests, defaults.tests...)
		if err := m.complete(); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", m.name, err))
		}
	}
	return ms, errors.Join(errs...)
}

// field takes one "name: value".
func (m *mutant) field(line string) error {
	name, value, _ := strings.Cut(line, ":")
	value = strings.TrimSpace(value)
	switch name {
	case "file":
		m.file = value
	case "breaks":
		m.breaks = value
	case "survives":
		m.survives = value
	case "test":
		t := tests{dir: m.table, pattern: value}
		if m.table == "root" {
			t.dir = "."
		}
		if dir, pattern, ok := strings.Cut(value, " "); ok && strings.HasPrefix(dir, ".") {
			t = tests{filepath.Clean(dir), strings.TrimSpace(pattern)}
		}
		m.tests = append(m.tests, t)
	default:
		return fmt.Errorf("%q: want file:, breaks:, test:, survives:, == or <<<", line)
	}
	return nil
}

// body takes the two texts, and returns the lines after them.
func (m *mutant) body(lines []string) ([]string, error) {
	middle := slices.Index(lines, "===")
	end := slices.Index(lines, ">>>")
	next := slices.IndexFunc(lines, func(l string) bool { return strings.HasPrefix(l, "== ") })
	if middle < 0 || end < middle || next >= 0 && next < end {
		return nil, errors.New("<<< without === and >>> after it")
	}
	m.old = strings.Join(lines[:middle], "\n")
	m.new = strings.Join(lines[middle+1:end], "\n")
	return lines[end+1:], nil
}

func (m *mutant) complete() error {
	switch {
	case m.file == "":
		return errors.New("no file: line")
	case m.breaks == "":
		return errors.New("no breaks: line")
	case len(m.tests) == 0:
		return errors.New("no test: line, neither its own nor the table's")
	case m.old == "":
		return errors.New("no old text")
	case m.old == m.new:
		return errors.New("the new text is the old one")
	}
	return nil
}

// apply returns m's file with the fault in it. An error says what is stale about m.
func (m *mutant) apply(root string) ([]byte, error) {
	text, err := os.ReadFile(filepath.Join(root, m.file))
	if err != nil {
		return nil, err
	}
	if n := bytes.Count(text, []byte(m.old)); n != 1 {
		return nil, fmt.Errorf("the old text is in %s %d times, and must be once", m.file, n)
	}
	return bytes.Replace(text, []byte(m.old), []byte(m.new), 1), nil
}

var testFunc = regexp.MustCompile(`(?m)^func (Test\w+|Example\w*|Fuzz\w+)\(`)

// testsIn are the names of the tests in the package in dir.
func testsIn(dir string) (names []string, err error) {
	files, err := filepath.Glob(filepath.Join(dir, "*_test.go"))
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			return nil, err
		}
		for _, f := range testFunc.FindAllSubmatch(text, -1) {
			names = append(names, string(f[1]))
		}
	}
	return names, err
}

// known returns an error if one of the alternatives in t's pattern means none of the tests with
// those names.
func (t tests) known(names []string) error {
	for _, pattern := range t.alternatives() {
		first, _, _ := strings.Cut(pattern, "/")
		re, err := regexp.Compile(first)
		if err != nil {
			return err
		}
		if !slices.ContainsFunc(names, re.MatchString) {
			return fmt.Errorf("no test in ./%s matches %q", t.dir, first)
		}
	}
	return nil
}

// alternatives are what stands between the | of t's pattern that are in no parentheses.
func (t tests) alternatives() (all []string) {
	depth, from := 0, 0
	for i, r := range t.pattern {
		switch r {
		case '(':
			depth++
		case ')':
			depth--
		case '|':
			if depth == 0 {
				all, from = append(all, t.pattern[from:i]), i+1
			}
		}
	}
	return append(all, t.pattern[from:])
}
