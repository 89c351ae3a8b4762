package main

import (
	"context"
	"errors"
	"log"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/go-zookeeper/zk"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	goredis "github.com/redis/go-redis/v9"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/dynamo"
	"github.com/seed-215fdefa/lock/etcd"
	"github.com/seed-215fdefa/lock/memory"
	"github.com/seed-215fdefa/lock/postgres"
	"github.com/seed-215fdefa/lock/redis"
	"github.com/seed-215fdefa/lock/redlock"
	"github.com/seed-215fdefa/lock/semaphore"
	"github.com/seed-215fdefa/lock/tiers"
	"github.com/seed-215fdefa/lock/zookeeper"
)

// The fragments of README and guides, each as it stands there. They compile; what they do is
// tested elsewhere.
var _ = []any{
	which, others, do, tryDo, lease, whoHoldsIt, readers, shutdown, fencing, fencedRows,
	severalKeys, serverShutdown, oldAndNew, lifted,
	twoAccounts, leading, following, permits, scheduled, urgently, detecting, classes,
}

// What the fragments use.
var (
	ctx    = context.Background()
	client = lock.New(memory.New())
	store  *redis.Locker
	rdb    goredis.UniversalClient
	host   = "web-1"

	build    = func(context.Context) error { return nil }
	sell     = func(stock string) string { return stock }
	pool     *pgxpool.Pool
	transfer func(context.Context, pgx.Tx) error

	accounts  []string
	move      = build
	call      = build
	book      func(ctx context.Context, from, to lock.Token) error
	bill      func(context.Context, lock.Token) error
	follow    func(address string)
	address   = "10.0.0.7:80"
	server    http.Server
	closed    = make(chan error, 1)
	oldLock   func(context.Context, string) error
	oldUnlock func(string)

	work    = func(context.Context, *lock.Lease) error { return nil }
	read    = work
	rebuild = work
	urgent  = work
)

func which() *lock.Client {
	rdb := goredis.NewUniversalClient(&goredis.UniversalOptions{Addrs: []string{"localhost:6379"}})
	store := redis.New(rdb) // keys begin with "lock:"; redis.WithPrefix changes that
	if err := store.Preflight(ctx); err != nil {
		log.Print(err) // a setting with which Redis loses locks
	}
	client := lock.New(store, lock.WithTTL(10*time.Second))
	return client
}

func others(cli *clientv3.Client, db *dynamodb.Client, conn *zk.Conn, dialer *zookeeper.Dialer, a, b, c, d, e *goredis.Client) {
	_ = etcd.New(cli)           // go.etcd.io/etcd/client/v3
	_ = postgres.New(pool)      // github.com/jackc/pgx/v5/pgxpool; once before: postgres.Migrate(ctx, pool)
	_ = dynamo.New(db, "locks") // github.com/aws/aws-sdk-go-v2/service/dynamodb; once before: dynamo.CreateTable(ctx, db, "locks")
	_ = redlock.New([]goredis.UniversalClient{a, b, c, d, e})
	_ = zookeeper.New(conn, zookeeper.WithDialer(dialer)) // github.com/go-zookeeper/zk, connected by the zookeeper.Dialer
}

func do() error {
	err := client.Do(ctx, "report", func(ctx context.Context, _ *lock.Lease) error {
		return build(ctx) // must stop when ctx ends
	})
	return err
}

func tryDo() error {
	err := client.TryDo(ctx, "report", func(ctx context.Context, _ *lock.Lease) error {
		return build(ctx)
	})
	if lock.Refused(err, "report") {
		return nil // another replica is at it
	}
	return err
}

func lease() error {
	lease, err := client.Lock(ctx, "report", lock.WithWait(5*time.Second))
	if err != nil {
		return err
	}
	err = build(lease.Context()) // ends when the lease does
	// Release returns ErrLost if the lease was lost before.
	return errors.Join(err, lease.Release(context.WithoutCancel(ctx)))
}

func whoHoldsIt() (lock.Record, error) {
	bounded, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	err := client.Do(bounded, "report", work, lock.WithMetadata(map[string]string{"host": host}))
	// lock: do "report": held by 4UZ… (token 1764…, for 3s, expires in 7s, host="web-1"): context deadline exceeded

	record, inspectErr := client.Inspect(ctx, "report") // holders and line, for people
	return record, errors.Join(err, inspectErr)
}

func readers() error {
	if err := client.Do(ctx, "catalogue", read, lock.WithShared()); err != nil { // beside other readers
		return err
	}
	return client.Do(ctx, "catalogue", rebuild) // alone
}

func shutdown() error {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	err := client.Do(ctx, "job", work) // ends work's ctx, waits for it, releases at once

	closing, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	return errors.Join(err, client.Close(closing), store.Close())
}

func fencing() error {
	fence := redis.NewFence(rdb)
	err := client.Do(ctx, "item:42", func(ctx context.Context, l *lock.Lease) error {
		stock, err := fence.Get(ctx, "stock:42", l.Token()) // from here on older tokens are refused
		if err != nil {
			return err
		}
		return fence.Set(ctx, "stock:42", l.Token(), sell(stock), 0) // ErrStale if we are too late
	})
	return err
}

// Locker is lock.Locker, for the reader's convenience.
type Locker interface {
	Acquire(ctx context.Context, req lock.Request) (lock.Grant, error)
	Renew(ctx context.Context, g lock.Grant) (lock.Grant, error)
	Release(ctx context.Context, g lock.Grant) error
	Inspect(ctx context.Context, key string) (lock.Record, error)
	Capabilities() lock.Capabilities
}

var (
	_ lock.Locker = Locker(nil)
	_ Locker      = lock.Locker(nil)
)

func fencedRows() error {
	err := client.Do(ctx, "account:7", func(ctx context.Context, l *lock.Lease) error {
		return pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
			if err := postgres.Fence(ctx, tx, l.Key(), l.Token()); err != nil {
				return err // ErrStale, and the transaction is rolled back
			}
			return transfer(ctx, tx)
		})
	})
	return err
}

func severalKeys() error {
	err := client.DoAll(ctx, accounts, func(ctx context.Context, _ []*lock.Lease) error {
		return move(ctx)
	})
	return err
}

func twoAccounts() error {
	err := client.DoAll(ctx, []string{"account:7", "account:9"}, func(ctx context.Context, leases []*lock.Lease) error {
		return book(ctx, leases[0].Token(), leases[1].Token()) // must stop when ctx ends: either lease may be lost
	})
	return err
}

func scheduled() error {
	err := client.TryDo(ctx, "cron:report", work, lock.WithMinHold(2*time.Second))
	if lock.Refused(err, "cron:report") {
		return nil // another replica has this tick
	}
	return err
}

func leading() error {
	err := client.Lead(ctx, "billing", func(ctx context.Context, l *lock.Lease) error {
		return bill(ctx, l.Token()) // must stop when ctx ends, and may be called again
	}, lock.WithMetadata(map[string]string{"address": address}))
	return err
}

func following() error {
	for record, err := range client.Watch(ctx, "billing") {
		if err != nil {
			return err // ctx has ended, or the store has not answered for lock.Patience
		}
		if len(record.Holders) > 0 {
			follow(record.Holders[0].Metadata["address"])
		}
	}
	return nil
}

func permits() error {
	api := semaphore.New(client, "partner-api", 4) // the same n everywhere
	err := api.Do(ctx, 1, func(ctx context.Context, _ []semaphore.Permit) error {
		return call(ctx)
	})
	return err
}

func urgently() error {
	err := client.Do(ctx, "printer", urgent, lock.WithHeadStart(10*time.Second))
	return err
}

func detecting() *lock.Client {
	client := lock.New(store, lock.WithDeadlockDetection(5*time.Second))
	return client
}

func classes(zk *zookeeper.Locker) *lock.Client {
	client := lock.New(tiers.New(
		tiers.Prefix("payment:", zk), // survives a failover
		tiers.Prefix("cart:", store), // fast
	))
	return client
}

func serverShutdown() error {
	closing, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	go func() { closed <- client.Close(closing) }() // waiting handlers end with ErrClosed
	err := server.Shutdown(closing)                 // handlers that hold a lock finish
	return errors.Join(err, <-closed, store.Close())
}

func oldAndNew() error {
	if err := oldLock(ctx, "report"); err != nil {
		return err
	}
	defer oldUnlock("report")
	return client.Do(ctx, "report", work)
}

func lifted(cli *clientv3.Client, base lock.Token) lock.Locker {
	store := etcd.New(cli, etcd.WithTokenBase(base)) // zookeeper.WithTokenBase does the same
	return store
}
