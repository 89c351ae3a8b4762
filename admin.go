package lock

import (
	"context"
	"iter"
)

// Capabilities returns what the Client's store declares. It does no I/O. It is zero if
// [Client.Err] is not nil.
func (c *Client) Capabilities() Capabilities {
	if c.Err() != nil {
		return Capabilities{}
	}
	return c.caps
}

// Held yields the leases of the Client that have not ended: those of the functions of Do
// as well. It is a snapshot; a lease may end while it is yielded. It does no I/O.
func (c *Client) Held() iter.Seq[*Lease] {
	return func(yield func(*Lease) bool) {
		if c.Err() != nil {
			return
		}
		for _, l := range c.engine.held() {
			if !yield(l) {
				return
			}
		}
	}
}

// Inspect returns what the store knows of key: who holds it, since when, and who waits. It
// is for people, not for decisions: the answer may be outdated when it arrives. A key that
// nobody holds is no error. The error wraps ErrInvalid, ErrClosed, ErrUnavailable or ctx's.
func (c *Client) Inspect(ctx context.Context, key string) (Record, error) {
	r, err := c.inspect(ctx, key)
	if err != nil {
		return Record{}, opInspect.fail(key, err)
	}
	return r, nil
}

func (c *Client) inspect(ctx context.Context, key string) (Record, error) {
	if err := c.open(ctx); err != nil {
		return Record{}, err
	}
	if err := CheckKey(key); err != nil {
		return Record{}, err
	}
	r, err := c.engine.store.Inspect(ctx, key)
	return r, storeError(ctx, err)
}

// List yields the Record of every key that begins with prefix and is held or waited for,
// in no order, each once. Keys that change meanwhile may be missing. Who waits for whom in a
// cycle is found by [FindDeadlocks]. An error is the last
// thing it yields: it wraps ErrUnsupported if the store is no [Admin], or else the errors of
// [Client.Inspect].
func (c *Client) List(ctx context.Context, prefix string) iter.Seq2[Record, error] {
	return func(yield func(Record, error) bool) {
		a, err := c.admin(ctx)
		if err != nil {
			yield(Record{}, opList.fail(prefix, err))
			return
		}
		for r, err := range a.List(ctx, prefix) {
			if err != nil {
				yield(Record{}, opList.fail(prefix, storeError(ctx, err)))
				return
			}
			if !yield(r, nil) {
				return
			}
		}
	}
}

// ForceRelease ends owner's grant of key, whoever it belongs to, and no other. The owner is
// found with Inspect or List. Its holder learns of the loss early or at its next renewal,
// and may still be working when the next holder begins: only fenced resources are safe.
//
// The error wraps ErrLost if owner does not hold key, ErrUnsupported if the store is no
// [Admin], or else the errors of [Client.Inspect].
func (c *Client) ForceRelease(ctx context.Context, key, owner string) error {
	a, err := c.admin(ctx)
	if err == nil {
		err = CheckGrant(Grant{Key: key, Owner: owner})
	}
	if err == nil {
		err = storeError(ctx, a.ForceRelease(ctx, key, owner))
	}
	if err != nil {
		return opForce.fail(key, err)
	}
	return nil
}

func (c *Client) admin(ctx context.Context) (Admin, error) {
	if err := c.open(ctx); err != nil {
		return nil, err
	}
	a, ok := As[Admin](c.engine.store)
	if !ok {
		return nil, unsupported("List and ForceRelease", c.caps)
	}
	return a, nil
}

// open returns an error unless the Client was made by New, is open, and ctx is usable.
func (c *Client) open(ctx context.Context) error {
	if err := c.usable(ctx); err != nil {
		return err
	}
	if c.engine.closed() {
		return ErrClosed
	}
	return ctx.Err()
}
