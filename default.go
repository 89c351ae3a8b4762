package lock

import (
	"context"
	"sync/atomic"
)

var defaultClient atomic.Pointer[Client]

// SetDefault makes c the Client of the package-level functions; nil takes it away. It may
// be called at any time; leases stay with the Client that they are from.
func SetDefault(c *Client) { defaultClient.Store(c) }

// Default returns the Client that SetDefault was given last, or nil.
func Default() *Client { return defaultClient.Load() }

// Do is [Client.Do] of the default Client, or ErrNoDefault.
func Do(ctx context.Context, key string, fn func(context.Context, *Lease) error, opts ...Option) error {
	c := Default()
	if c == nil {
		return opDo.fail(key, ErrNoDefault)
	}
	return c.Do(ctx, key, fn, opts...)
}

// TryDo is [Client.TryDo] of the default Client, or ErrNoDefault.
func TryDo(ctx context.Context, key string, fn func(context.Context, *Lease) error, opts ...Option) error {
	c := Default()
	if c == nil {
		return opTryDo.fail(key, ErrNoDefault)
	}
	return c.TryDo(ctx, key, fn, opts...)
}

// Lock is [Client.Lock] of the default Client, or ErrNoDefault.
func Lock(ctx context.Context, key string, opts ...Option) (*Lease, error) {
	c := Default()
	if c == nil {
		return nil, opLock.fail(key, ErrNoDefault)
	}
	return c.Lock(ctx, key, opts...)
}

// TryLock is [Client.TryLock] of the default Client, or ErrNoDefault.
func TryLock(ctx context.Context, key string, opts ...Option) (*Lease, error) {
	c := Default()
	if c == nil {
		return nil, opTryLock.fail(key, ErrNoDefault)
	}
	return c.TryLock(ctx, key, opts...)
}
