//go:build unix

package program

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// The program under test leaves a process behind, which has its stderr.
func TestMain(m *testing.M) {
	Main(m, func() {
		cmd := exec.Command("sleep", "1000")
		cmd.Stderr = os.Stderr
		if err := cmd.Start(); err != nil {
			panic(err)
		}
	})
}

// TestLeftBehind: Wait does not wait for the process, but reports and kills it.
func TestLeftBehind(t *testing.T) {
	f := &fails{TB: t}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _ = Start(f).Wait()
	}()
	<-done
	require.True(t, strings.HasPrefix(f.said, "it has left processes behind"), f.said)
}

// fails is a test that is to fail.
type fails struct {
	testing.TB
	said string
}

func (f *fails) Fatalf(format string, args ...any) {
	f.said = fmt.Sprintf(format, args...)
	runtime.Goexit()
}
