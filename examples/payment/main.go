// Payment books the payment of an invoice in PostgreSQL, once, although two cashiers are
// at it and one of them freezes in the middle.
//
//	go run ./examples/payment -postgres postgres://localhost/postgres -freeze
//
// With -freeze the first cashier is stopped inside its transaction, when it has seen that the
// invoice is open, and goes on when its lock is long over and the second has booked the payment.
// The fence, the first statement of the transaction, had the server end it by then. With
// -unfenced nothing does, and the customer pays twice.
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
		fmt.Fprintln(os.Stderr, "payment:", err)
		os.Exit(1)
	}
}

// config is what the flags say. A cashier gets the same ones as the office, and a number.
type config struct {
	postgres string
	invoice  string
	ttl      time.Duration
	freeze   bool
	unfenced bool
	cashier  int // 0: the office
}

func (c *config) flags() *flag.FlagSet {
	url := os.Getenv("DATABASE_URL")
	if url == "" {
		url = "postgres://127.0.0.1:5432/postgres"
	}
	f := flag.NewFlagSet("payment", flag.ContinueOnError)
	f.StringVar(&c.postgres, "postgres", url, "URL of the database; the default is $DATABASE_URL if that is set")
	f.StringVar(&c.invoice, "invoice", "invoice:7", "which invoice is paid; it begins as an open one")
	f.DurationVar(&c.ttl, "ttl", 2*time.Second, "how long a frozen cashier keeps the other waiting")
	f.BoolVar(&c.freeze, "freeze", false, "freeze the first cashier inside its transaction")
	f.BoolVar(&c.unfenced, "unfenced", false, "book without the fence, to see what comes of it")
	f.IntVar(&c.cashier, "cashier", 0, "the office's own: which of its processes this is")
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
	b := &books{pool: pool, invoice: c.invoice, unfenced: c.unfenced}
	if c.cashier == 0 {
		return (&office{config: c, books: b, out: out}).run(ctx)
	}

	store := postgres.New(pool)
	defer store.Close()
	client := lock.New(store, lock.WithTTL(c.ttl))
	defer func() {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		_ = client.Close(ctx) // what it could not release ends with its TTL
	}()
	return (&cashier{
		name: fmt.Sprintf("cashier %d", c.cashier), client: client, books: b, freeze: c.freeze, out: out,
	}).run(ctx)
}
