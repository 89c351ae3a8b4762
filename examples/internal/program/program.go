//go:build unix

// Package program lets the test of an example run it as users do: as processes.
package program

import (
	"bufio"
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
)

const (
	// asProgram, in the environment, makes a test binary the program that it tests, and
	// what that starts of itself too.
	asProgram = "LOCK_EXAMPLE_AS_PROGRAM"

	// limit ends what hangs.
	limit = 3 * time.Minute
)

// Main is what TestMain does: it runs main if [Start] started this process, else the tests.
func Main(m goleak.TestingM, main func()) {
	if os.Getenv(asProgram) != "" {
		main()
		return
	}
	goleak.VerifyTestMain(m)
}

// Program is a running one.
type Program struct {
	t     testing.TB
	ctx   context.Context
	cmd   *exec.Cmd
	lines chan string
	ended chan struct{}
	err   error // once ended is closed

	mu  sync.Mutex // guards out
	out strings.Builder
}

// Start runs the program of this test. Its processes are killed when the test ends, or
// after three minutes.
func Start(t testing.TB, args ...string) *Program {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	p := &Program{t: t, ctx: ctx, lines: make(chan string, 10_000), ended: make(chan struct{})}
	p.cmd = exec.CommandContext(ctx, self, args...)
	p.cmd.Env = append(os.Environ(), asProgram+"=1")
	// A group of its own, so that a signal reaches what it starts, frozen or not.
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	p.cmd.Cancel = func() error { return p.kill() }
	p.cmd.WaitDelay = 10 * time.Second // for what it has left behind, which may write to the same pipe
	r, w := io.Pipe()
	p.cmd.Stdout, p.cmd.Stderr = w, w
	if err := p.cmd.Start(); err != nil {
		cancel()
		t.Fatal(err)
	}
	go p.read(r)
	go func() {
		p.err = p.cmd.Wait()
		w.Close()
	}()
	t.Cleanup(func() {
		cancel()
		<-p.ended
	})
	return p
}

func (p *Program) kill() error { return syscall.Kill(-p.cmd.Process.Pid, syscall.SIGKILL) }

// read ends when the program has ended and all it wrote has been read.
func (p *Program) read(r io.Reader) {
	defer close(p.ended)
	defer close(p.lines)
	for s := bufio.NewScanner(r); s.Scan(); {
		p.mu.Lock()
		p.out.WriteString(s.Text() + "\n")
		p.mu.Unlock()
		p.lines <- s.Text()
	}
}

// Await returns the next line that matches, and its groups. The lines before are passed
// over. If there is none until the program ends, the test fails.
func (p *Program) Await(pattern string) []string {
	p.t.Helper()
	re := regexp.MustCompile(pattern)
	for line := range p.lines {
		if m := re.FindStringSubmatch(line); m != nil {
			return m
		}
	}
	p.t.Fatalf("no line matches %q: %v\n%s", pattern, p.err, p.output())
	return nil
}

// Signal sends a signal to the process that was started, and to it alone.
func (p *Program) Signal(sig os.Signal) {
	p.t.Helper()
	if err := p.cmd.Process.Signal(sig); err != nil {
		p.t.Fatalf("%v\n%s", err, p.output())
	}
}

// Wait returns when the program has ended, with all that it has printed. The test fails if
// it had to be killed, or has left processes behind.
func (p *Program) Wait() (output string, err error) {
	p.t.Helper()
	<-p.ended
	if p.ctx.Err() != nil {
		p.t.Fatalf("%v\n%s", p.ctx.Err(), p.output())
	}
	if err := p.kill(); !errors.Is(err, syscall.ESRCH) {
		p.t.Fatalf("it has left processes behind (%v)\n%s", err, p.output())
	}
	return p.output(), p.err
}

func (p *Program) output() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.out.String()
}
