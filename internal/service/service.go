// Package service is the lock service without a transport: what packages httplock and grpclock
// share. A [Server] serves any [lock.Locker]. A [Client] is a Locker that asks one, through a
// [Transport], which carries one request and its answer. The package comment of httplock says how
// waiting works, and what is promised.
package service

import (
	"context"
	"iter"
	"time"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/internal/storekit"
)

// PingInterval is how often the events of a watch say that it is alive.
const PingInterval = 5 * time.Second

// Service is what may be asked of a Server, and of the Transport to it.
type Service interface {
	// Acquire asks once. With Wait it may have to be asked again: see [Answer].
	Acquire(ctx context.Context, req lock.Request) (Answer, error)
	// Renew returns g with its new TTL.
	Renew(ctx context.Context, g lock.Grant) (lock.Grant, error)
	Release(ctx context.Context, g lock.Grant) error
	ForceRelease(ctx context.Context, key, owner string) error
	Inspect(ctx context.Context, key string) (lock.Record, error)
	List(ctx context.Context, prefix string) iter.Seq2[lock.Record, error]
	// Watch calls event until that returns false: with true for each change, and with false every
	// PingInterval.
	Watch(ctx context.Context, key string, event func(changed bool) bool) error
	Capabilities(ctx context.Context) (lock.Capabilities, error)
}

// Answer is that to an Acquire: a grant, or if its token is 0 a place in line.
type Answer struct {
	Grant lock.Grant // its Start means nothing
	// Renew says of a grant that it is shorter than asked for, and must be renewed before it is used.
	Renew bool

	New    bool        // the replica did not know of the waiter
	Record lock.Record // of those in front, if the waiter is new; without a Key if it is not known
}

// Transport sends a Client's requests to a Server, once each. It returns the errors that
// [Problem.Rebuild] makes, and for other answers ones that wrap the Problem.
type Transport interface {
	Service
	// Classify tells the class of an error that is no answer of a Server.
	Classify(err error) storekit.Class
}
