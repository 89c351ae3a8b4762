package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/examples/internal/pause"
)

// buyer is one of the processes: it buys until nothing is left.
type buyer struct {
	name   string
	client *lock.Client
	shelf  *shelf
	freeze bool // before the first write
	out    io.Writer
}

func (b *buyer) run(ctx context.Context) error {
	for {
		err := b.client.Do(ctx, b.shelf.item, b.buy)
		switch {
		case errors.Is(err, errSoldOut):
			return nil
		case errors.Is(err, errHalfDone): // whatever became of the lock
			return err
		case errors.Is(err, lock.ErrStale), errors.Is(err, lock.ErrLost):
			// Nothing was sold that has not been recorded: the next try reads anew.
			b.say("tries again: %v", err)
		case err != nil:
			return err
		}
	}
}

// buy is the critical section: one item less, and a record of it.
func (b *buyer) buy(ctx context.Context, l *lock.Lease) error {
	n, err := b.shelf.stock(ctx, l.Token())
	if err != nil {
		return err
	}
	if n == 0 {
		return errSoldOut
	}
	if ctx.Err() != nil { // the lock is lost, or the program is to end
		return context.Cause(ctx)
	}
	// From here on ctx may end at any time, even before the next instruction, and no look
	// at it could tell. Whether the write comes in time is for the fence to say; whether
	// it happened, for its reply, which therefore is waited for.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	if b.freeze {
		b.freeze = false
		b.say("freezes, having read %d", n)
		if err := pause.Self(); err != nil {
			return err
		}
		b.say("goes on, and writes %d", n-1)
	}
	err = b.shelf.setStock(ctx, l.Token(), n-1)
	if err == nil {
		b.say("has number %d", n)
		err = b.shelf.recordSale(ctx, b.name, n)
	}
	if err != nil && !errors.Is(err, lock.ErrStale) {
		return fmt.Errorf("%w, number %d: %w", errHalfDone, n, err)
	}
	return err
}

func (b *buyer) say(format string, args ...any) {
	fmt.Fprintf(b.out, "%s %s\n", b.name, fmt.Sprintf(format, args...))
}
