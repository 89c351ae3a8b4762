//go:build unix

package storetest

import (
	"errors"
	"os"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
)

// stop returns when p, a child of this process, does not run any more: the signal alone
// only asks for it.
func stop(tb testing.TB, p *os.Process) {
	tb.Helper()
	require.NoError(tb, p.Signal(syscall.SIGSTOP))
	for {
		var status syscall.WaitStatus
		_, err := syscall.Wait4(p.Pid, &status, syscall.WUNTRACED, nil)
		if errors.Is(err, syscall.EINTR) {
			continue
		}
		require.NoError(tb, err)
		require.True(tb, status.Stopped(), "it has ended instead: %v", status)
		return
	}
}

func resume(tb testing.TB, p *os.Process) {
	tb.Helper()
	require.NoError(tb, p.Signal(syscall.SIGCONT))
}
