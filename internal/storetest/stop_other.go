//go:build !unix

package storetest

import (
	"os"
	"testing"
)

func stop(tb testing.TB, _ *os.Process) {
	tb.Helper()
	tb.Skip("needs SIGSTOP, which this system does not have")
}

func resume(testing.TB, *os.Process) {}
