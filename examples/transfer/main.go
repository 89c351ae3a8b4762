// Transfer moves money between three accounts in PostgreSQL, from several processes at once,
// each transfer under the locks of both its accounts. No money comes or goes.
//
//	go run ./examples/transfer -postgres postgres://localhost/postgres
//
// A transfer reads two balances and writes them back, so another one between the two would be
// lost. DoAll takes both locks in one order, whichever way the money goes, so two transfers
// the other way round never wait for each other for ever. The fence of both accounts heads the
// transaction: it refuses a teller who was stopped for longer than its locks lasted. With
// -unlocked there is neither, and in the end the sum is wrong.
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/postgres"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "transfer:", err)
		os.Exit(1)
	}
}

// config is what the flags say. A teller gets the same ones as the bank, and a number.
type config struct {
	postgres  string
	bank      string
	tellers   int
	transfers int
	unlocked  bool
	teller    int // 0: the bank
}

func (c *config) flags() *flag.FlagSet {
	url := os.Getenv("DATABASE_URL")
	if url == "" {
		url = "postgres://127.0.0.1:5432/postgres"
	}
	f := flag.NewFlagSet("transfer", flag.ContinueOnError)
	f.StringVar(&c.postgres, "postgres", url, "URL of the database; the default is $DATABASE_URL if that is set")
	f.StringVar(&c.bank, "bank", "bank:1", "whose accounts they are; each begins with 1000")
	f.IntVar(&c.tellers, "tellers", 4, "how many processes there are")
	f.IntVar(&c.transfers, "transfers", 25, "how many transfers each of them makes")
	f.BoolVar(&c.unlocked, "unlocked", false, "transfer without locks and fence, to see what comes of it")
	f.IntVar(&c.teller, "teller", 0, "the bank's own: which of its processes this is")
	return f
}

func run(ctx context.Context, args []string, out io.Writer) error {
	var c config
	if err := c.flags().Parse(args); err != nil {
		return err
	}
	pool, err := pgxpool.New(ctx, c.postgres)
	if err != nil {
		return err
	}
	defer pool.Close()
	accounts := &accounts{pool: pool, bank: c.bank}
	if c.teller == 0 {
		return (&bank{config: c, accounts: accounts, out: out}).run(ctx)
	}

	store := postgres.New(pool)
	defer store.Close()
	client := lock.New(store, lock.WithTTL(5*time.Second))
	defer func() {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		_ = client.Close(ctx) // what it could not release ends with its TTL
	}()
	return (&teller{config: c, client: client, accounts: accounts, out: out}).run(ctx)
}
