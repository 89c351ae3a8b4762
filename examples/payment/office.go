package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/seed-215fdefa/lock/examples/internal/pause"
	"github.com/seed-215fdefa/lock/postgres"
)

// office is the program as it is started: it opens the invoice, starts two cashiers, and
// looks how often it was paid.
type office struct {
	config
	books *books
	out   io.Writer
}

func (o *office) run(ctx context.Context) error {
	if err := postgres.Migrate(ctx, o.books.pool); err != nil {
		return err
	}
	if err := o.books.open(ctx); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel() // first, and the cashiers are killed, frozen or not
	failed := make(chan error, 3)
	first, err := o.start(ctx, 1, o.freeze)
	if err != nil {
		return err
	}
	wg.Go(func() { failed <- first.wait() })
	if o.freeze {
		// It is frozen before the second begins, and goes on when that has paid.
		if err := first.await(ctx, "freezes"); err != nil {
			return err
		}
	}
	second, err := o.start(ctx, 2, false)
	if err != nil {
		return err
	}
	wg.Go(func() { failed <- second.wait() })
	if o.freeze {
		wg.Go(func() { failed <- o.resume(ctx, first) })
	} else {
		failed <- nil
	}
	for range 3 {
		if err := <-failed; err != nil {
			return err
		}
	}
	return o.count(ctx)
}

// resume lets the frozen cashier go on when somebody has paid.
func (o *office) resume(ctx context.Context, frozen *process) error {
	for {
		paid, err := o.books.payments(ctx)
		if err != nil {
			return err
		}
		if len(paid) > 0 {
			return pause.Resume(frozen.cmd.Process)
		}
		select {
		case <-time.After(10 * time.Millisecond):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

func (o *office) count(ctx context.Context) error {
	paid, err := o.books.payments(ctx)
	if err != nil {
		return err
	}
	fmt.Fprintf(o.out, "paid %d times: %s\n", len(paid), strings.Join(paid, ", "))
	if len(paid) != 1 {
		return fmt.Errorf("the invoice was paid %d times", len(paid))
	}
	return nil
}

// process is a cashier, whose output is the office's.
type process struct {
	cmd  *exec.Cmd
	name string
	said chan string
	out  io.Writer

	ended chan struct{}
	err   error // once ended is closed
}

// start runs this program again, as a cashier.
func (o *office) start(ctx context.Context, number int, freezes bool) (*process, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	p := &process{name: fmt.Sprintf("cashier %d", number), said: make(chan string, 100), out: o.out, ended: make(chan struct{})}
	p.cmd = exec.CommandContext(ctx, self,
		"-postgres", o.postgres, "-invoice", o.invoice, "-ttl", o.ttl.String(),
		"-unfenced="+strconv.FormatBool(o.unfenced),
		"-freeze="+strconv.FormatBool(freezes),
		"-cashier", strconv.Itoa(number))
	p.cmd.Stdout, p.cmd.Stderr = p, os.Stderr
	return p, p.cmd.Start()
}

// Write gets what the cashier says.
func (p *process) Write(b []byte) (int, error) {
	n, err := p.out.Write(b)
	p.said <- string(b)
	return n, err
}

// await returns when the cashier has said it. That it has ended without is an error.
func (p *process) await(ctx context.Context, what string) error {
	for {
		select {
		case line := <-p.said:
			if strings.Contains(line, what) {
				return nil
			}
		case <-p.ended:
			return cmp.Or(p.err, fmt.Errorf("%s has ended, and never %s", p.name, what))
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

func (p *process) wait() error {
	defer close(p.ended)
	if err := p.cmd.Wait(); err != nil {
		p.err = fmt.Errorf("%s: %w", p.name, err)
	}
	return p.err
}
