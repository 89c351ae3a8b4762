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

// TestTerminalIsShared has a CMD and somebody else in its pipeline who both read from the terminal.
func TestTerminalIsShared(t *testing.T) {
	self, err := os.Executable()
	require.NoError(t, err)
	for _, c := range []struct {
		name, script string // SELF is lockctl, FILE a file
		reads        []string
	}{
		{
			"a pager, then CMD", `set -m
				SELF run job -- sh -c 'echo in; while [ ! -e FILE ]; do sleep 0.1; done; read line; echo CMD $line.' |
				sh -c 'read in; read line </dev/tty; echo pager $line.; touch FILE; cat'`,
			[]string{"pager one.", "CMD another."},
		},
		{
			"CMD behind a pipe, then the script", `
				: | SELF run job -- sh -c 'read line </dev/tty; echo CMD $line.'
				read line; echo script $line.`,
			[]string{"CMD one.", "script another."},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			names := strings.NewReplacer("SELF", self, "FILE", filepath.Join(t.TempDir(), "file"))
			script := exec.Command("sh", "-c", names.Replace(c.script))
			script.Env = append(os.Environ(), "LOCKCTL_TEST=1", "LOCKCTL_STORE=memory:")
			out := inTerminal(t, script, "one\nanother\n")
			for _, r := range c.reads {
				assert.Contains(t, out, r)
			}
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
