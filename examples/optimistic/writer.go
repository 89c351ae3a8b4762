package main

import (
	"context"
	"errors"
	"sync/atomic"
	"time"

	goredis "github.com/redis/go-redis/v9"

	"github.com/seed-215fdefa/lock"
)

// tries is how often a writer tries without the lock.
const tries = 3

// writer adds to the number. It is safe for concurrent use.
type writer struct {
	*config
	rdb          *goredis.Client
	client       *lock.Client
	free, locked atomic.Int64 // how many were added so
}

// add adds one.
func (w *writer) add(ctx context.Context) error {
	for range tries {
		if err := w.try(ctx); !errors.Is(err, goredis.TxFailedErr) {
			return counted(&w.free, err)
		}
	}
	added := false
	err := w.client.Do(ctx, w.number, func(ctx context.Context, _ *lock.Lease) error {
		for { // against those only who are at one of their three tries
			if err := w.try(ctx); !errors.Is(err, goredis.TxFailedErr) {
				added = err == nil
				return err
			}
		}
	})
	if added {
		err = nil // if the lock was lost, others were in its way, and no more: the lock only brings order
	}
	return counted(&w.locked, err)
}

func counted(n *atomic.Int64, err error) error {
	if err == nil {
		n.Add(1)
	}
	return err
}

// try reads the number, thinks, and writes it, or returns TxFailedErr if somebody else has
// written meanwhile.
func (w *writer) try(ctx context.Context) error {
	return w.rdb.Watch(ctx, func(tx *goredis.Tx) error {
		n, err := tx.Get(ctx, w.number).Int()
		if err != nil && !errors.Is(err, goredis.Nil) {
			return err
		}
		if err := think(ctx, w.takes); err != nil {
			return err
		}
		_, err = tx.TxPipelined(ctx, func(p goredis.Pipeliner) error {
			return p.Set(ctx, w.number, n+1, 0).Err()
		})
		return err
	}, w.number)
}

func think(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
