package main

import (
	"bytes"
	"errors"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/seed-215fdefa/lock/cmd/internal/guard"
)

// TestNohup gets a hangup while it waits, and then runs CMD: both ignore it.
func TestNohup(t *testing.T) {
	c, url, _ := client(t)
	l, err := c.Lock(t.Context(), "job")
	require.NoError(t, err)
	cmd := lockctl(t, url, "run", "job", "--", "grep", "SigIgn", "/proc/self/status")
	cmd.Args = append([]string{"sh", "-c", `trap "" HUP; exec "$0" "$@"`}, cmd.Args...)
	cmd.Path, err = exec.LookPath("sh")
	require.NoError(t, err)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, os.Stderr
	require.NoError(t, cmd.Start())
	waits(t, c)
	require.NoError(t, cmd.Process.Signal(syscall.SIGHUP))
	require.NoError(t, l.Release(t.Context()))
	require.NoError(t, cmd.Wait())
	mask, err := strconv.ParseUint(strings.TrimSpace(strings.TrimPrefix(out.String(), "SigIgn:")), 16, 64)
	require.NoError(t, err, out.String())
	assert.NotZero(t, mask&(1<<(syscall.SIGHUP-1)), "SigIgn %x", mask)
}

// TestDescriptors: CMD has those that lockctl was started with, and no others.
func TestDescriptors(t *testing.T) {
	descriptors := func(prefix ...string) string {
		file, err := os.Create(filepath.Join(t.TempDir(), "log"))
		require.NoError(t, err)
		defer file.Close()
		cmd := lockctl(t, "memory:", append(prefix, "sh", "-c", "echo hi >&3; echo ho >&4; ls /proc/$$/fd >&3")...)
		if len(prefix) == 0 {
			cmd = exec.Command(cmd.Args[1], cmd.Args[2:]...)
		}
		cmd.ExtraFiles, cmd.Stderr = []*os.File{file, file}, os.Stderr
		require.NoError(t, cmd.Run())
		b, err := os.ReadFile(file.Name())
		require.NoError(t, err)
		return string(b)
	}
	without := descriptors()
	require.True(t, strings.HasPrefix(without, "hi\nho\n0\n"), without)
	assert.Equal(t, without, descriptors("run", "job", "--"))
}

// TestUpgradedMeanwhile removes lockctl's file while lockctl waits.
func TestUpgradedMeanwhile(t *testing.T) {
	c, url, _ := client(t)
	l, err := c.Lock(t.Context(), "job")
	require.NoError(t, err)
	cmd := lockctl(t, url, "run", "job", "--", "true")
	cmd.Path = duplicate(t, cmd.Path)
	cmd.Stderr = os.Stderr
	require.NoError(t, cmd.Start())
	waits(t, c)
	require.NoError(t, os.Remove(cmd.Path))
	require.NoError(t, l.Release(t.Context()))
	assert.NoError(t, cmd.Wait())
}

// duplicate copies a program.
func duplicate(t *testing.T, path string) string {
	t.Helper()
	from, err := os.Open(path)
	require.NoError(t, err)
	defer from.Close()
	to, err := os.OpenFile(filepath.Join(t.TempDir(), "lockctl"), os.O_CREATE|os.O_WRONLY, 0o700)
	require.NoError(t, err)
	_, err = io.Copy(to, from)
	require.NoError(t, err)
	require.NoError(t, to.Close())
	return to.Name()
}

// TestLateGuard starts a guard when the lock is over already: CMD does not run.
func TestLateGuard(t *testing.T) {
	ours, theirs, err := os.Pipe()
	require.NoError(t, err)
	defer ours.Close()
	file := filepath.Join(t.TempDir(), "file")
	touch, err := exec.LookPath("touch")
	require.NoError(t, err)
	cmd := lockctl(t, "memory:", guard.Command, "3", "4", "0", "1m", touch, "touch", file)
	cmd.ExtraFiles = []*os.File{theirs, theirs}
	err = errors.Join(cmd.Start(), theirs.Close())
	require.NoError(t, err)
	report, err := io.ReadAll(ours)
	require.NoError(t, err)
	assert.Empty(t, report, "CMD has started")
	_ = cmd.Wait()
	assert.Equal(t, exitLost, cmd.ProcessState.ExitCode())
	assert.NoFileExists(t, file)
}

// TestStoppedCommandEnds stops CMD before lockctl gets a signal to end it.
func TestStoppedCommandEnds(t *testing.T) {
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGHUP, syscall.SIGINT) // lest lockctl inherits that they are ignored
	t.Cleanup(func() { signal.Stop(signals) })
	for _, s := range []syscall.Signal{syscall.SIGHUP, syscall.SIGINT, syscall.SIGQUIT, syscall.SIGTERM} {
		t.Run(s.String(), func(t *testing.T) {
			t.Parallel()
			cmd, out := inBackground(t, "memory:", "echo $$; kill -STOP $$")
			t.Cleanup(func() { _ = cmd.Process.Kill() })
			line, err := out.ReadString('\n')
			require.NoError(t, err)
			child, err := strconv.Atoi(strings.TrimSpace(line))
			require.NoError(t, err)
			require.Eventually(t, func() bool { return state(child) == "T" }, time.Minute, 10*time.Millisecond)
			require.NoError(t, cmd.Process.Signal(s))
			gone(t, child)
			_ = cmd.Wait()
			assert.Equal(t, 128+int(s), cmd.ProcessState.ExitCode())
		})
	}
}
