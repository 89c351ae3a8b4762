package memory

import (
	"context"

	"github.com/seed-215fdefa/lock"
)

// Value is a variable in this process that the holders of a lock read and write, and
// that a holder who has been succeeded can do neither with.
//
// Load must be given the token as well as Store: it raises the mark when the *read*
// begins. A holder that froze between its Load and its Store is then refused, where a
// Store alone would let it overwrite what its successor has read and is about to change.
//
// It orders the holders of exclusive leases; those of shared ones may Load, and should
// not Store. It never forgets the newest token, whatever becomes of the lock. A Value is
// safe for concurrent use and must not be copied.
type Value[T any] struct {
	key   string
	guard lock.Guard
	v     T // guarded by guard's step for key
}

// NewValue returns a Value that is v until somebody stores another. key is the lock's,
// for the errors.
func NewValue[T any](key string, v T) *Value[T] { return &Value[T]{key: key, v: v} }

// Load returns what was stored last, and refuses all tokens older than t from now on. It
// returns a *StaleError if a newer one has been seen, and ErrInvalid for a token that is
// none. What a T points to is not copied: a holder must not change it, but Store a new one.
func (x *Value[T]) Load(t lock.Token) (T, error) {
	var v T
	err := x.guard.Do(context.Background(), x.key, t, func(context.Context) error {
		v = x.v
		return nil
	})
	return v, err
}

// Store replaces the value, and refuses all tokens older than t from now on. With an
// error, those of Load, it changes nothing.
func (x *Value[T]) Store(t lock.Token, v T) error {
	return x.guard.Do(context.Background(), x.key, t, func(context.Context) error {
		x.v = v
		return nil
	})
}
