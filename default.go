package lock

import (
	"context"
	"iter"
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

// DoAll calls [Client.DoAll] on the default Client. Without one it returns ErrNoDefault.
func DoAll(ctx context.Context, keys []string, fn func(context.Context, []*Lease) error, opts ...Option) error {
	c := Default()
	if c == nil {
		return opDoAll.fail(firstOf(keys), ErrNoDefault)
	}
	return c.DoAll(ctx, keys, fn, opts...)
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

// Lead calls [Client.Lead] on the default Client. Without one it returns ErrNoDefault.
func Lead(ctx context.Context, key string, fn func(context.Context, *Lease) error, opts ...Option) error {
	c := Default()
	if c == nil {
		return opLead.fail(key, ErrNoDefault)
	}
	return c.Lead(ctx, key, fn, opts...)
}

// Watch calls [Client.Watch] on the Client that is the default when the loop begins. Without
// one it yields ErrNoDefault.
func Watch(ctx context.Context, key string) iter.Seq2[Record, error] {
	return func(yield func(Record, error) bool) {
		c := Default()
		if c == nil {
			yield(Record{}, opWatch.fail(key, ErrNoDefault))
			return
		}
		c.Watch(ctx, key)(yield)
	}
}
