// Tiers is a shop that locks carts in Redis, which is fast, and payments in etcd, whose locks
// survive the loss of a server. The program names keys and does not know of stores.
//
//	go run ./examples/tiers -redis localhost:6379 -etcd localhost:2379
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"time"

	goredis "github.com/redis/go-redis/v9"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/etcd"
	"github.com/seed-215fdefa/lock/redis"
	"github.com/seed-215fdefa/lock/tiers"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "tiers:", err)
		os.Exit(1)
	}
}

type config struct {
	redis, etcd string
	order       string
}

func (c *config) flags() *flag.FlagSet {
	f := flag.NewFlagSet("tiers", flag.ContinueOnError)
	f.StringVar(&c.redis, "redis", "127.0.0.1:6379", "address of the server that has the locks of carts")
	f.StringVar(&c.etcd, "etcd", "127.0.0.1:2379", "address of the server that has the locks of payments")
	f.StringVar(&c.order, "order", "42", "number of the order")
	return f
}

func run(ctx context.Context, args []string, out io.Writer) error {
	var c config
	if err := c.flags().Parse(args); err != nil {
		return err
	}
	rdb := goredis.NewClient(&goredis.Options{Addr: c.redis})
	defer rdb.Close()
	cli, err := clientv3.New(clientv3.Config{
		Endpoints: []string{c.etcd}, DialTimeout: 10 * time.Second, Logger: zap.NewNop(),
		DialKeepAliveTime: 5 * time.Second, DialKeepAliveTimeout: 5 * time.Second,
	})
	if err != nil {
		return err
	}
	defer cli.Close()

	stores := tiers.New(
		tiers.Prefix("cart:", redis.New(rdb)),
		tiers.Prefix("payment:", etcd.New(cli)),
	)
	defer stores.Close()
	client := lock.New(stores)
	defer func() {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		_ = client.Close(ctx) // what it could not release ends with its TTL
	}()
	fmt.Fprintf(out, "locks are of %s\n", client.Capabilities().Store)
	return checkOut(ctx, client, c.order, out)
}

// checkOut closes the cart, and pays for what is in it.
func checkOut(ctx context.Context, client *lock.Client, order string, out io.Writer) error {
	cart, payment := "cart:"+order, "payment:"+order
	err := client.Do(ctx, cart, func(ctx context.Context, _ *lock.Lease) error {
		return client.Do(ctx, payment, func(ctx context.Context, l *lock.Lease) error {
			for rec, err := range client.List(ctx, "") { // both stores'
				if err != nil {
					return err
				}
				if rec.Key == cart || rec.Key == payment {
					fmt.Fprintf(out, "%s is held\n", rec.Key)
				}
			}
			fmt.Fprintf(out, "order %s is paid, with token %d\n", order, l.Token())
			return nil
		})
	})
	if err != nil {
		return err
	}
	// Neither carts nor payments: no store would be a guess.
	fmt.Fprintln(out, client.TryDo(ctx, "refund:"+order, func(context.Context, *lock.Lease) error { return nil }))
	return nil
}
