package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"
)

// runner builds and runs test programs. It is safe for concurrent use.
type runner struct {
	root, work string
	limit      time.Duration
	parallel   int
	verbose    bool

	mu       sync.Mutex // guards the rest, and what is printed
	sound    map[tests]func() error
	programs map[string]func() (string, error) // of the sound code, by package
}

func newRunner(root, work string, limit time.Duration, parallel int, verbose bool) *runner {
	return &runner{
		root: root, work: work, limit: limit, parallel: max(1, parallel), verbose: verbose,
		sound: make(map[tests]func() error), programs: make(map[string]func() (string, error)),
	}
}

// all gives each mutant its outcome, and says so as it comes.
func (r *runner) all(ctx context.Context, ms []*mutant) {
	var wg sync.WaitGroup
	slots := make(chan struct{}, r.parallel)
	for i, m := range ms {
		wg.Add(1)
		slots <- struct{}{}
		go func() {
			defer func() { <-slots; wg.Done() }()
			begin := time.Now()
			out := r.one(ctx, m, filepath.Join(r.work, fmt.Sprint(i)))
			r.mu.Lock()
			defer r.mu.Unlock()
			fmt.Printf("%-8s %-40s %4.0fs  %s\n", m.outcome, m.name, time.Since(begin).Seconds(), m.detail)
			if r.verbose && m.outcome == survived {
				fmt.Printf("%s\n", out)
			}
		}()
	}
	wg.Wait()
}

// one tries m, in a folder of its own, and returns what the tests printed.
func (r *runner) one(ctx context.Context, m *mutant, dir string) []byte {
	overlay, err := r.overlay(m, dir)
	if err != nil {
		m.outcome, m.detail = stale, err.Error()
		return nil
	}
	var all []byte
	programs := make(map[string]string) // by package: to link one takes seconds
	defer func() {
		for _, p := range programs {
			_ = os.Remove(p)
		}
	}()
	for _, t := range m.tests {
		if err := r.passesWhenSound(ctx, t); err != nil {
			m.outcome, m.detail = stale, fmt.Sprintf("without the fault: %s: %v", t, err)
			return nil
		}
		program := programs[t.dir]
		if program == "" {
			if program, err = r.build(ctx, t.dir, dir, fmt.Sprintf("mutant%d.test", len(programs)), "-overlay="+overlay); err != nil {
				m.outcome, m.detail = stale, err.Error()
				return nil
			}
			programs[t.dir] = program
		}
		out, err := r.test(ctx, program, t)
		all = append(all, out...)
		notices := err != nil && r.failsAgain(ctx, program, t)
		switch {
		case ctx.Err() != nil:
			m.outcome, m.detail = skipped, ctx.Err().Error()
			return all
		case notices:
			m.outcome, m.detail = caught, by(out, err)
			return all
		}
	}
	m.outcome, m.detail = survived, m.breaks
	if m.survives != "" {
		m.outcome, m.detail = accepted, m.survives
	}
	return all
}

// failsAgain reports whether t, which has failed by program, fails once more in two runs: a busy
// machine may spoil one, and that is no mutant's doing.
func (r *runner) failsAgain(ctx context.Context, program string, t tests) bool {
	for range 2 {
		if _, err := r.test(ctx, program, t); err != nil {
			return true
		}
	}
	return false
}

// overlay writes m's file with the fault, and what go build -overlay wants to know.
func (r *runner) overlay(m *mutant, dir string) (string, error) {
	text, err := m.apply(r.root)
	if err != nil {
		return "", err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", err
	}
	faulty := filepath.Join(dir, filepath.Base(m.file))
	if err := os.WriteFile(faulty, text, 0o600); err != nil {
		return "", err
	}
	config, err := json.Marshal(map[string]map[string]string{
		"Replace": {filepath.Join(r.root, m.file): faulty},
	})
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, "overlay.json")
	return path, os.WriteFile(path, config, 0o600)
}

// passesWhenSound runs t on the code as it is, once for all mutants.
func (r *runner) passesWhenSound(ctx context.Context, t tests) error {
	r.mu.Lock()
	once := r.sound[t]
	if once == nil {
		once = sync.OnceValue(func() error {
			program, err := r.soundProgram(ctx, t.dir)
			if err != nil {
				return err
			}
			// Twice: see failsAgain.
			for range 2 {
				var out []byte
				if out, err = r.test(ctx, program, t); err == nil {
					return nil
				}
				err = errors.New(by(out, err))
			}
			return err
		})
		r.sound[t] = once
	}
	r.mu.Unlock()
	return once()
}

// soundProgram builds the test program of the package in pkg as it is, once.
func (r *runner) soundProgram(ctx context.Context, pkg string) (string, error) {
	r.mu.Lock()
	once := r.programs[pkg]
	if once == nil {
		name := fmt.Sprintf("sound%d.test", len(r.programs))
		once = sync.OnceValues(func() (string, error) { return r.build(ctx, pkg, r.work, name) })
		r.programs[pkg] = once
	}
	r.mu.Unlock()
	return once()
}

// build makes a test program of the package in pkg. Without what a debugger needs it is linked
// in half the time.
func (r *runner) build(ctx context.Context, pkg, dir, name string, flags ...string) (string, error) {
	program := filepath.Join(dir, name)
	args := append([]string{"test", "-c", "-ldflags=-s -w", "-o", program}, flags...)
	cmd := exec.CommandContext(ctx, "go", append(args, "./"+pkg)...)
	cmd.Dir = r.root
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("it does not build: %w\n%s", err, out)
	}
	return program, nil
}

// bounded is a shell command that runs another with 6 GiB of memory: a mutant may never end, and take
// all of the machine's before its time is over.
const bounded = `ulimit -d 6291456 2>/dev/null; exec "$0" "$@"`

// test runs t by program. An error means that a test failed, or took longer than the limit.
func (r *runner) test(ctx context.Context, program string, t tests) ([]byte, error) {
	cmd := exec.CommandContext(ctx, "sh", "-c", bounded, program, "-test.run", t.pattern, "-test.failfast",
		"-test.v", "-test.timeout", r.limit.String())
	cmd.Dir = filepath.Join(r.root, t.dir)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.WaitDelay = 10 * time.Second
	err := cmd.Run()
	if err == nil && bytes.Contains(out.Bytes(), []byte("no tests to run")) {
		return nil, fmt.Errorf("%s: no tests to run", t)
	}
	return out.Bytes(), err
}

var failed = regexp.MustCompile(`(?m)^\s*--- FAIL: (\S+)`)

// by says what of a test's output made it fail: the deepest tests that did.
func by(out []byte, err error) string {
	var names []string
	for _, f := range failed.FindAllSubmatch(out, -1) {
		names = append(names, string(f[1]))
	}
	deepest := slices.DeleteFunc(slices.Clone(names), func(n string) bool {
		return slices.ContainsFunc(names, func(other string) bool { return strings.HasPrefix(other, n+"/") })
	})
	switch {
	case len(deepest) > 3:
		return fmt.Sprintf("%s and %d more", strings.Join(deepest[:3], ", "), len(deepest)-3)
	case len(deepest) > 0:
		return strings.Join(deepest, ", ")
	case bytes.Contains(out, []byte("panic: test timed out")):
		return "out of time"
	}
	for _, end := range []string{"panic: ", "fatal error: "} {
		if i := bytes.Index(out, []byte(end)); i >= 0 {
			line, _, _ := bytes.Cut(out[i:], []byte("\n"))
			return string(line)
		}
	}
	return err.Error()
}

// summarize prints what came of ms, and reports whether that is good enough.
func summarize(w io.Writer, ms []*mutant) bool {
	count := make(map[outcome]int)
	for _, m := range ms {
		count[m.outcome]++
	}
	fmt.Fprintf(w, "\n%d mutants: %d caught, %d survived, %d accepted, %d stale, %d not run\n", len(ms),
		count[caught], count[survived], count[accepted], count[stale], count[skipped])
	for _, m := range ms {
		switch m.outcome {
		case survived, stale:
			fmt.Fprintf(w, "  %s %s: %s\n", m.outcome, m.name, m.detail)
		}
	}
	share := 100 * count[caught] / len(ms)
	if share < 95 {
		fmt.Fprintf(w, "  %d %% are caught, and 95 %% must be\n", share)
	}
	return share >= 95 && count[survived]+count[stale]+count[skipped] == 0
}
