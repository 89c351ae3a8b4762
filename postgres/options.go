package postgres

import (
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/seed-215fdefa/lock"
)

// settings are what options set.
type settings struct {
	names  names
	listen *pgx.ConnConfig // nil: as the pool connects
	poll   time.Duration   // 0: listen instead
	onPush func(error)     // may be nil
}

// Option sets up a [Locker]. [Migrate], [Schema], [Fence] and [FenceSQL] take the options that
// name the schema and the tables.
type Option func(*settings) error

// WithSchema sets the schema of the tables and functions. Any name will do; it is quoted.
// Default "lock".
func WithSchema(name string) Option {
	return func(s *settings) error {
		s.names.schema = name
		return s.names.check()
	}
}

// WithTable sets the name of the table of locks, 1 to 40 bytes. Any name will do; it is quoted.
// The names of the other tables, and of the functions, begin with it. Default "locks".
func WithTable(name string) Option {
	return func(s *settings) error {
		s.names.table = name
		return s.names.check()
	}
}

// WithListenConfig sets how the Locker connects in order to listen. Set it if the pool connects
// through a transaction pooler, which does not pass notifications on. It must connect to the
// same database. Default: as the pool connects.
func WithListenConfig(config *pgx.ConnConfig) Option {
	return func(s *settings) error {
		if config == nil {
			return fmt.Errorf("%w: postgres: listen config is nil", lock.ErrInvalid)
		}
		s.listen = config.Copy()
		return nil
	}
}

// WithPolling makes the Locker poll instead of listening. The first in line polls at this
// interval, at least 1 ms; those behind it poll less often. The Locker then does not declare
// Push and EarlyLoss. A release still hands over at once to a waiter of the same Locker.
func WithPolling(every time.Duration) Option {
	return func(s *settings) error {
		if every < time.Millisecond {
			return fmt.Errorf("%w: postgres: polling every %v: must be at least 1ms", lock.ErrInvalid, every)
		}
		s.poll = every
		return nil
	}
}

// WithPushObserver sets a function that learns whether wake-ups and notices of forced losses
// arrive. f is called with the reason when they stop, and with nil when they arrive again. Calls
// do not overlap. f must not block. Default: none.
func WithPushObserver(f func(error)) Option {
	return func(s *settings) error {
		s.onPush = f
		return nil
	}
}

func newSettings(opts []Option) (settings, error) {
	s := settings{names: names{"lock", "locks"}}
	for _, o := range opts {
		if o == nil {
			return s, fmt.Errorf("%w: postgres: option is nil", lock.ErrInvalid)
		}
		if err := o(&s); err != nil {
			return s, err
		}
	}
	return s, nil
}
