package main

import (
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// TestTerminalComesBack runs a script in a terminal: it must be able to read from it after CMD, however
// that has ended.
func TestTerminalComesBack(t *testing.T) {
	self, err := os.Executable()
	require.NoError(t, err)
	broken := filepath.Join(t.TempDir(), "broken")
	require.NoError(t, os.WriteFile(broken, []byte("no program\n"), 0o700))
	for name, cmd := range map[string]string{
		"CMD ends":          "true",
		"CMD has read":      "head -n 1",
		"CMD is no program": broken,
		"the guard is dead": `sh -c 'report=$(tr "\0" "\n" </proc/$PPID/cmdline | sed -n 4p)
			while [ -p /proc/$PPID/fd/$report ]; do :; done; kill -KILL $PPID; sleep 1000'`, // once it has reported
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			script := exec.Command("sh", "-c", self+" run job -- "+cmd+"; read line; echo read $line.")
			script.Env = append(os.Environ(), "LOCKCTL_TEST=1", "LOCKCTL_STORE=memory:")
			out := inTerminal(t, script, "one\nanother\n")
			assert.Contains(t, out, map[bool]string{true: "read another.", false: "read one."}[name == "CMD has read"])
		})
	}
}

// inTerminal runs cmd in a terminal of its own, in which somebody types, and returns what is to be seen there.
func inTerminal(t *testing.T, cmd *exec.Cmd, types string) string {
	t.Helper()
	user, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	require.NoError(t, err)
	defer user.Close()
	require.NoError(t, unix.IoctlSetPointerInt(int(user.Fd()), unix.TIOCSPTLCK, 0))
	n, err := unix.IoctlGetInt(int(user.Fd()), unix.TIOCGPTN)
	require.NoError(t, err)
	terminal, err := os.OpenFile("/dev/pts/"+strconv.Itoa(n), os.O_RDWR|unix.O_NOCTTY, 0)
	require.NoError(t, err)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = terminal, terminal, terminal
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	err = cmd.Start()
	require.NoError(t, errors.Join(err, terminal.Close()))
	timer := time.AfterFunc(time.Minute, func() { _ = cmd.Process.Kill() })
	defer timer.Stop()
	_, err = io.WriteString(user, types)
	require.NoError(t, err)
	var seen strings.Builder
	_, err = io.Copy(&seen, user)
	assert.ErrorIs(t, err, syscall.EIO, "everybody has gone")
	_ = cmd.Wait()
	return seen.String()
}
