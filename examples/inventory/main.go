// Inventory is a flash sale: four processes sell ten items of one kind that they have in
// Redis, and none of them twice.
//
//	go run ./examples/inventory -redis localhost:6379 -freeze
//
// With -freeze one of the processes is stopped between its read and its write, and goes on
// when its lock is long over. The fence refuses its write. With -unfenced nothing does,
// and items are sold that are not there.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"time"

	goredis "github.com/redis/go-redis/v9"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/redis"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "inventory:", err)
		os.Exit(1)
	}
}

// config is what the flags say. A buyer gets the same ones as the shop, and a number.
type config struct {
	redis    string
	item     string
	ttl      time.Duration
	freeze   bool
	unfenced bool
	buyer    int // 0: the shop
}

func (c *config) flags() *flag.FlagSet {
	addr := os.Getenv("REDIS_ADDR")
	if addr == "" {
		addr = "127.0.0.1:6379"
	}
	f := flag.NewFlagSet("inventory", flag.ContinueOnError)
	f.StringVar(&c.redis, "redis", addr, "address of the server; the default is $REDIS_ADDR if that is set")
	f.StringVar(&c.item, "item", "item:42", "what is sold; a sale begins by putting ten of it in stock")
	f.DurationVar(&c.ttl, "ttl", 2*time.Second, "how long a frozen buyer keeps the others waiting")
	f.BoolVar(&c.freeze, "freeze", false, "freeze one buyer between its read and its write")
	f.BoolVar(&c.unfenced, "unfenced", false, "read and write without the fence, to see what comes of it")
	f.IntVar(&c.buyer, "buyer", 0, "the shop's own: which of its processes this is")
	return f
}

func run(ctx context.Context, args []string, out io.Writer) error {
	var c config
	if err := c.flags().Parse(args); err != nil {
		return err
	}
	rdb := goredis.NewClient(&goredis.Options{Addr: c.redis})
	defer rdb.Close()
	store := redis.New(rdb)
	defer store.Close()
	client := lock.New(store, lock.WithTTL(c.ttl))
	defer closeIn(client, 5*time.Second)

	s := &shelf{item: c.item, rdb: rdb, fence: redis.NewFence(rdb), unfenced: c.unfenced}
	if c.buyer > 0 {
		return (&buyer{name: fmt.Sprintf("buyer %d", c.buyer), client: client, shelf: s, freeze: c.freeze, out: out}).run(ctx)
	}
	return (&shop{config: c, client: client, shelf: s, out: out}).run(ctx)
}

func closeIn(client *lock.Client, limit time.Duration) {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	_ = client.Close(ctx) // what it could not release ends with its TTL
}

// shelf is what the buyers share: the stock of an item, and the list of its sales.
type shelf struct {
	item     string
	rdb      *goredis.Client
	fence    *redis.Fence
	unfenced bool
}

func (s *shelf) stockKey() string { return "stock:" + s.item }
func (s *shelf) salesKey() string { return "sales:" + s.item }

// stock reads. It must go through the fence, as the write does: the token's mark rises
// here, so whoever held the lock before cannot write any more what it read before.
func (s *shelf) stock(ctx context.Context, t lock.Token) (int, error) {
	var n int
	var text string
	var err error
	if s.unfenced {
		text, err = s.rdb.Get(ctx, s.stockKey()).Result()
	} else {
		text, err = s.fence.Get(ctx, s.stockKey(), t)
	}
	if err == nil {
		_, err = fmt.Sscan(text, &n)
	}
	return n, err
}

func (s *shelf) setStock(ctx context.Context, t lock.Token, n int) error {
	if s.unfenced {
		return s.rdb.Set(ctx, s.stockKey(), n, 0).Err()
	}
	return s.fence.Set(ctx, s.stockKey(), t, n, 0)
}

func (s *shelf) recordSale(ctx context.Context, buyer string, number int) error {
	return s.rdb.RPush(ctx, s.salesKey(), fmt.Sprintf("number %d to %s", number, buyer)).Err()
}

func (s *shelf) sales(ctx context.Context) ([]string, error) {
	return s.rdb.LRange(ctx, s.salesKey(), 0, -1).Result()
}

var (
	errSoldOut = errors.New("sold out")
	// errHalfDone says that an item may have left the shelf without a record, which somebody has to
	// look into.
	errHalfDone = errors.New("sold, perhaps, and not recorded")
)
