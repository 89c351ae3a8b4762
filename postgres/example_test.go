package postgres_test

import (
	"context"
	"fmt"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/seed-215fdefa/lock/internal/testserver"
	"github.com/seed-215fdefa/lock/postgres"
)

var migrated sync.Once

// databaseURL leads to the server that the examples use; in a program it comes from its
// configuration. The tables are there.
func databaseURL() string {
	url := testserver.PostgresURL(testserver.SharedPostgres(inExample{}).Addr())
	migrated.Do(func() {
		ctx := context.Background()
		pool, err := pgxpool.New(ctx, url)
		if err == nil {
			defer pool.Close()
			err = postgres.Migrate(ctx, pool)
		}
		if err == nil { // what another run has left on a server that stays
			_, err = pool.Exec(ctx, "DELETE FROM lock.locks_marks")
		}
		if err != nil {
			panic(err)
		}
	})
	return url
}

// inExample stands in for the testing.TB that an example does not have.
type inExample struct{ testing.TB }

func (inExample) Helper() {}

func (inExample) Fatalf(format string, args ...any) { panic(fmt.Sprintf(format, args...)) }
