package lock

import (
	"context"
	"sync/atomic"
)

var defaultClient atomic.Pointer[Client]

// SetDefault makes c the Client of the package-level functions; nil means none. It may be
// called at any time. A lease stays with the Client that it came from.
func SetDefault(c *Client) { defaultClient.Store(c) }

// Default returns the Client that was last given to SetDefault, or nil.
func Default() *Client { return defaultClient.Load() }

// Do calls [Client.Do] on the default Client. Without one it returns ErrNoDefault.
func Do(ctx context.Context, key string, fn func(context.Context, *Lease) error, opts ...Option) error {
	c := Default()
	if c == nil {
		return opDo.fail(key, ErrNoDefault)
	}
	return c.Do(ctx, key, fn, opts...)
}

// TryDo calls [Client.TryDo] on the default Client. Without one it returns ErrNoDefault.
func TryDo(ctx context.Context, key string, fn func(context.Context, *Lease) error, opts ...Option) error {
	c := Default()
	if c == nil {
		return opTryDo.fail(key, ErrNoDefault)
	}
	return c.TryDo(ctx, key, fn, opts...)
}

// Lock calls [Client.Lock] on the default Client. Without one it returns ErrNoDefault.
func Lock(ctx context.Context, key string, opts ...Option) (*Lease, error) {
	c := Default()
	if c == nil {
		return nil, opLock.fail(key, ErrNoDefault)
	}
	return c.Lock(ctx, key, opts...)
}

// TryLock calls [Client.TryLock] on the default Client. Without one it returns ErrNoDefault.
func TryLock(ctx context.Context, key string, opts ...Option) (*Lease, error) {
	c := Default()
	if c == nil {
		return nil, opTryLock.fail(key, ErrNoDefault)
	}
	return c.TryLock(ctx, key, opts...)
}
