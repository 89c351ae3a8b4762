//go:build unix && !linux

package guard

import (
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// childAttributes puts CMD into a process group of its own, which it is ended with. If lockctl
// is in the foreground of a terminal, that group gets it, so that CMD can read from it.
func childAttributes() *syscall.SysProcAttr {
	a := &syscall.SysProcAttr{Setpgid: true}
	if tty := terminal(); tty >= 0 {
		a.Foreground, a.Ctty = true, tty
	}
	return a
}

func lockThread() {}

func foreground(fd int) (int, error) { return unix.IoctlGetInt(fd, unix.TIOCGPGRP) }

// Executable is the path of this program.
func Executable() (string, error) { return os.Executable() }

// SinceBoot is the time in nanoseconds since some moment that is the same for all processes.
func SinceBoot() int64 {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &t); err != nil {
		panic("guard: no clock: " + err.Error())
	}
	return t.Nano()
}
