package memory

import (
	"context"

	"github.com/seed-215fdefa/lock"
)

// Value is a variable in this process that the holders of a lock read and write. It refuses a
// holder that has been succeeded.
//
// Load needs the token as well as Store: it raises the mark when the read begins. So if a holder
// freezes between its Load and its Store, the Store is refused. Otherwise that Store would
// overwrite what its successor has read and is about to change.
//
// A Value orders the holders of exclusive leases. Those of shared leases may Load, and should
// not Store. It never forgets the newest token, whatever becomes of the lock. A Value is safe
// for concurrent use and must not be copied.
type Value[T any] struct {
	key   string
	guard lock.Guard
	v     T // guarded by guard's step for key
}

// NewValue returns a Value that holds v until somebody stores another. key is the lock's name,
// for the errors.
func NewValue[T any](key string, v T) *Value[T] { return &Value[T]{key: key, v: v} }

// Load returns the value stored last, and refuses all tokens older than t from now on. It
// returns a *StaleError if a newer token has been seen, and ErrInvalid if t is no valid token.
// It does not copy what a T points to: a holder must not change that, but Store a new one.
func (x *Value[T]) Load(t lock.Token) (T, error) {
	var v T
	err := x.guard.Do(context.Background(), x.key, t, func(context.Context) error {
		v = x.v
		return nil
	})
	return v, err
}

// Store replaces the value, and refuses all tokens older than t from now on. It returns the same
// errors as Load; then it has changed nothing.
func (x *Value[T]) Store(t lock.Token, v T) error {
	return x.guard.Do(context.Background(), x.key, t, func(context.Context) error {
		x.v = v
		return nil
	})
}
