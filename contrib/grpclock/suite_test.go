package grpclock_test

import (
	"os"
	"testing"

	"github.com/seed-215fdefa/lock/internal/servicetest"
	"github.com/seed-215fdefa/lock/internal/testserver"
	"github.com/seed-215fdefa/lock/locktest"
)

func TestSuiteOverMemory(t *testing.T) {
	t.Parallel()
	locktest.Run(t, protocol().Harness(servicetest.OnMemory))
}

func TestClientSuiteOverMemory(t *testing.T) {
	t.Parallel()
	locktest.RunClient(t, protocol().Harness(servicetest.OnMemory))
}

func TestSuiteOverRedis(t *testing.T)          { over(t, servicetest.OnRedis, locktest.Run) }
func TestSuiteOverPostgres(t *testing.T)       { over(t, servicetest.OnPostgres, locktest.Run) }
func TestClientSuiteOverRedis(t *testing.T)    { over(t, servicetest.OnRedis, locktest.RunClient) }
func TestClientSuiteOverPostgres(t *testing.T) { over(t, servicetest.OnPostgres, locktest.RunClient) }

// over runs a suite that takes minutes. What it adds to those over memory and of package httplock is
// little.
func over(t *testing.T, on func(testing.TB) *servicetest.Store, run func(*testing.T, locktest.Harness)) {
	t.Helper()
	if os.Getenv("LOCK_TEST_MANY") == "" {
		t.Skip("LOCK_TEST_MANY=1 runs it: it takes minutes")
	}
	testserver.NeedServer(t)
	t.Parallel()
	run(t, protocol().Harness(on))
}
