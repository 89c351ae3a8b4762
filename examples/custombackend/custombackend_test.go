package custombackend

import (
	"os"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/locktest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestSuite(t *testing.T) {
	locktest.Run(t, locktest.Harness{
		New: func(testing.TB) func() lock.Locker {
			s := New()
			return func() lock.Locker { return s }
		},
		Around: synctest.Test,
	})
}

// What docs/writing-a-store.md says of its size.
func TestSize(t *testing.T) {
	source, err := os.ReadFile("custombackend.go")
	require.NoError(t, err)
	require.Less(t, strings.Count(string(source), "\n"), 80)
}
