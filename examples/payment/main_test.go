//go:build unix

package main

import (
	"context"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/seed-215fdefa/lock/examples/internal/program"
	"github.com/seed-215fdefa/lock/internal/testserver"
)

func TestMain(m *testing.M) { program.Main(testserver.Main{M: m}, main) }

func TestPaidOnce(t *testing.T) {
	t.Parallel()
	out, err := pay(t)
	require.NoError(t, err, "%s", out)
	assert.Contains(t, out, "paid 1 times: cashier")
	assert.Contains(t, out, "finds the invoice paid\n")
}

func TestPaidOnceWithAFrozenHolder(t *testing.T) {
	t.Parallel()
	out, err := pay(t, "-freeze")
	require.NoError(t, err, "%s", out)
	assert.Contains(t, out, "cashier 1 goes on, and books the payment\n")
	assert.Contains(t, out, "cashier 1 tries again: ")
	assert.Contains(t, out, "idle-in-transaction timeout")
	assert.Contains(t, out, "cashier 1 finds the invoice paid\n")
	assert.Contains(t, out, "paid 1 times: cashier 2\n")
}

// TestWithoutTheFence shows that it is the fence that the other tests rest on.
func TestWithoutTheFence(t *testing.T) {
	t.Parallel()
	out, err := pay(t, "-freeze", "-unfenced")
	var exit *exec.ExitError
	require.ErrorAs(t, err, &exit, "%s", out)
	assert.Contains(t, out, "paid 2 times")
}

// TestCashierFails: an error of one cashier ends the office, whether the other is not there yet or
// frozen, in which case it never ends by itself.
func TestCashierFails(t *testing.T) {
	t.Setenv("LOCK_EXAMPLE_AS_PROGRAM", "1") // as Main has it, for the cashiers
	server := testserver.SharedPostgres(t)
	good, bad := testserver.PostgresURL(server.Addr()), "no URL"
	for name, url := range map[string]string{"cashier 1": bad, "cashier 2": good} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			pool, err := pgxpool.New(ctx, good)
			require.NoError(t, err)
			defer pool.Close()
			c := config{postgres: url, invoice: testserver.Prefix(), ttl: 8 * time.Second, freeze: true}
			o := &office{config: c, books: &books{pool: pool, invoice: c.invoice}}
			o.out = writer(func(said string) {
				if strings.Contains(said, "freezes") {
					o.postgres = bad // for cashier 2, who is not there yet
				}
			})
			require.ErrorContains(t, o.run(ctx), name+": exit status 1")
			require.NoError(t, ctx.Err(), "it has waited for the other")
		})
	}
}

type writer func(string)

func (w writer) Write(b []byte) (int, error) {
	w(string(b))
	return len(b), nil
}

func pay(t *testing.T, flags ...string) (string, error) {
	t.Helper()
	server := testserver.SharedPostgres(t)
	return program.Start(t, append(flags, "-postgres", testserver.PostgresURL(server.Addr()), "-invoice", testserver.Prefix(), "-ttl=8s")...).Wait()
}
