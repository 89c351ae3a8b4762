package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"

	"github.com/seed-215fdefa/lock/postgres"
)

// bank is the program as it is started: it opens the accounts, starts the tellers, and counts.
type bank struct {
	config
	accounts *accounts
	out      io.Writer
}

func (b *bank) run(ctx context.Context) error {
	if err := postgres.Migrate(ctx, b.accounts.pool); err != nil {
		return err
	}
	if err := b.accounts.open(ctx); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx) // and the tellers are killed
	defer cancel()
	ended := make(chan error, b.tellers)
	for i := range b.tellers {
		go func() { ended <- b.start(ctx, i+1) }()
	}
	var failed error
	for range b.tellers {
		if err := <-ended; err != nil && failed == nil {
			failed = err
			cancel()
		}
	}
	if failed != nil {
		return failed
	}
	return b.count(ctx)
}

// start runs this program again, as a teller, until it has ended.
func (b *bank) start(ctx context.Context, number int) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, self,
		"-postgres", b.postgres, "-bank", b.bank, "-transfers", strconv.Itoa(b.transfers),
		"-unlocked="+strconv.FormatBool(b.unlocked), "-teller", strconv.Itoa(number))
	cmd.Stdout, cmd.Stderr = b.out, os.Stderr
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("teller %d: %w", number, err)
	}
	return nil
}

func (b *bank) count(ctx context.Context) error {
	sum, err := b.accounts.sum(ctx)
	if err != nil {
		return err
	}
	want := opening * len(names)
	fmt.Fprintf(b.out, "%d transfers, %d in all accounts, of %d\n", b.tellers*b.transfers, sum, want)
	if sum != want {
		return fmt.Errorf("%d in all accounts, and %d were paid in", sum, want)
	}
	return nil
}
