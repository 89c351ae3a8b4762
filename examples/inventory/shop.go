package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/examples/internal/pause"
)

const (
	buyers = 4
	items  = 10
)

// shop is the program as it is started: it fills the shelf, starts the buyers, and counts.
type shop struct {
	config
	client *lock.Client
	shelf  *shelf
	out    io.Writer
}

func (s *shop) run(ctx context.Context) error {
	if err := s.client.Do(ctx, s.item, s.fill); err != nil {
		return err
	}
	ctx, fail := context.WithCancelCause(ctx) // and the buyers are killed
	defer fail(nil)
	var wg sync.WaitGroup
	defer wg.Wait()
	for i := range buyers {
		if err := s.start(ctx, &wg, fail, i+1); err != nil {
			fail(err)
			break
		}
	}
	wg.Wait()
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return s.count(ctx)
}

// fill starts the sale. Should a buyer of an earlier sale still be frozen somewhere, its
// token is too old from now on.
func (s *shop) fill(ctx context.Context, l *lock.Lease) error {
	if err := s.shelf.setStock(ctx, l.Token(), items); err != nil {
		return err
	}
	return s.shelf.rdb.Del(ctx, s.shelf.salesKey()).Err()
}

// start runs this program again, as a buyer. If it is the one to freeze, start returns when
// it has the lock, so that it is in everybody's way.
func (s *shop) start(ctx context.Context, wg *sync.WaitGroup, fail func(error), buyer int) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	freezes := s.freeze && buyer == 1
	cmd := exec.CommandContext(ctx, self,
		"-redis", s.redis, "-item", s.item, "-ttl", s.ttl.String(),
		"-unfenced="+strconv.FormatBool(s.unfenced),
		"-freeze="+strconv.FormatBool(freezes),
		"-buyer", strconv.Itoa(buyer))
	cmd.Stdout, cmd.Stderr = s.out, os.Stderr
	if err := cmd.Start(); err != nil {
		return err
	}
	wg.Go(func() {
		if err := cmd.Wait(); err != nil {
			fail(fmt.Errorf("buyer %d: %w", buyer, err))
		}
	})
	if !freezes {
		return nil
	}
	if err := await(ctx, s.isHeld); err != nil {
		return err
	}
	wg.Go(func() {
		// Nobody can sell before the lock of the frozen one is over.
		err := await(ctx, s.hasSold)
		if err == nil {
			err = pause.Resume(cmd.Process)
		}
		if err != nil {
			fail(err)
		}
	})
	return nil
}

func (s *shop) isHeld(ctx context.Context) (bool, error) {
	r, err := s.client.Inspect(ctx, s.item)
	return len(r.Holders) > 0, err
}

func (s *shop) hasSold(ctx context.Context) (bool, error) {
	sales, err := s.shelf.sales(ctx)
	return len(sales) > 0, err
}

// await looks every now and then until ok.
func await(ctx context.Context, look func(context.Context) (ok bool, err error)) error {
	for {
		if ok, err := look(ctx); ok || err != nil {
			return err
		}
		select {
		case <-time.After(10 * time.Millisecond):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// count compares what was sold with what there was.
func (s *shop) count(ctx context.Context) error {
	sales, err := s.shelf.sales(ctx)
	if err != nil {
		return err
	}
	fmt.Fprintf(s.out, "%d in stock, %d sold:\n  %s\n", items, len(sales), strings.Join(sales, "\n  "))
	if len(sales) != items {
		return fmt.Errorf("sold %d of %d", len(sales), items)
	}
	return nil
}
