package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/examples/internal/pause"
)

// cashier is one of the processes. It sees to it that the invoice is paid.
type cashier struct {
	name   string
	client *lock.Client
	books  *books
	freeze bool // inside its transaction
	out    io.Writer
}

func (c *cashier) run(ctx context.Context) error {
	for {
		err := c.client.Do(ctx, c.books.invoice, c.pay)
		if !errors.Is(err, lock.ErrStale) && !errors.Is(err, lock.ErrLost) {
			return err
		}
		c.say("tries again: %s", strings.ReplaceAll(err.Error(), "\n", "; "))
	}
}

// pay is the critical section.
func (c *cashier) pay(ctx context.Context, l *lock.Lease) error {
	// From here on ctx may end at any time, even before the next instruction, and no look
	// at it could tell. Whether the payment comes in time is for the fence to say.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	paid, err := c.books.pay(ctx, l.Token(), c.name, c.pause)
	switch {
	case err != nil:
		return err
	case paid:
		c.say("finds the invoice paid")
	default:
		c.say("has booked the payment")
	}
	return nil
}

// pause freezes, once, in the worst place: inside the transaction, which keeps the invoice
// locked.
func (c *cashier) pause() error {
	if !c.freeze {
		return nil
	}
	c.freeze = false
	c.say("freezes, having found the invoice open")
	if err := pause.Self(); err != nil {
		return err
	}
	c.say("goes on, and books the payment")
	return nil
}

func (c *cashier) say(format string, args ...any) {
	fmt.Fprintf(c.out, "%s %s\n", c.name, fmt.Sprintf(format, args...))
}
