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

// Option sets up a [Locker]; [Migrate], [Schema], [Fence] and [FenceSQL] take those that name
// the schema and the tables.
type Option func(*settings) error

// WithSchema sets the schema that has the tables and functions. Default "lock". Any name
// will do; it is quoted.
func WithSchema(name string) Option {
	return func(s *settings) error {
		s.names.schema = name
		return s.names.check()
	}
}

// WithTable sets the name of the table of locks, 1 to 40 bytes. Default "locks". The names
// of the other tables, and of the functions, begin with it. Any name will do; it is quoted.
func WithTable(name string) Option {
	return func(s *settings) error {
		s.names.table = name
		return s.names.check()
	}
}

// WithListenConfig sets how to connect in order to listen, where the pool's way leads
// through a transaction pooler, which does not pass notifications on. Default: as the pool
// connects. It must lead to the same database.
func WithListenConfig(config *pgx.ConnConfig) Option {
	return func(s *settings) error {
		if config == nil {
			return fmt.Errorf("%w: postgres: listen config is nil", lock.ErrInvalid)
		}
		s.listen = config.Copy()
		return nil
	}
}

// WithPolling does without a connection that listens: the first in line looks every so
// often, at least each millisecond, those behind it more rarely. The Locker then does not
// declare Push and EarlyLoss. A release still hands over at once to a waiter of the same
// Locker.
func WithPolling(every time.Duration) Option {
	return func(s *settings) error {
		if every < time.Millisecond {
			return fmt.Errorf("%w: postgres: polling every %v: must be at least 1ms", lock.ErrInvalid, every)
		}
		s.poll = every
		return nil
	}
}

// WithPushObserver has f called when wake-ups and notices of forced losses do not arrive any
// more, with the reason, and with nil when they do again. Calls do not overlap; f must not
// block. Default: nobody is told, and waiters look more often meanwhile.
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
