package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"

	"github.com/seed-215fdefa/lock"
)

// teller is one of the processes: it moves money about.
type teller struct {
	config
	client   *lock.Client
	accounts *accounts
	out      io.Writer
}

func (t *teller) run(ctx context.Context) error {
	for made := 0; made < t.transfers; {
		two := rand.Perm(len(names))
		from, to := t.accounts.key(names[two[0]]), t.accounts.key(names[two[1]])
		err := t.transfer(ctx, from, to, 1+rand.IntN(100))
		switch {
		case err == nil:
			made++
		case errors.Is(err, errShort):
		case errors.Is(err, lock.ErrStale), errors.Is(err, lock.ErrLost):
			// Whether this transfer was made or not, it was made whole: another one follows.
			fmt.Fprintf(t.out, "teller %d goes on: %v\n", t.teller, err)
		default:
			return err
		}
	}
	fmt.Fprintf(t.out, "teller %d has made %d transfers\n", t.teller, t.transfers)
	return nil
}

func (t *teller) transfer(ctx context.Context, from, to string, amount int) error {
	if t.unlocked {
		return t.accounts.transfer(ctx, nil, from, to, amount)
	}
	return t.client.DoAll(ctx, []string{from, to}, func(ctx context.Context, ls []*lock.Lease) error {
		return t.accounts.transfer(ctx, ls, from, to, amount)
	})
}
