package guard

import (
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"
)

// childAttributes puts CMD into a process group of its own, which it is ended with. If lockctl
// is in the foreground of a terminal, that group gets it, so that CMD can read from it. And
// CMD does not outlive the guard.
func childAttributes() *syscall.SysProcAttr {
	a := &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if tty := terminal(); tty >= 0 {
		a.Foreground, a.Ctty = true, tty
	}
	return a
}

func lockThread() { runtime.LockOSThread() }

func foreground(fd int) (int, error) { return unix.IoctlGetInt(fd, unix.TIOCGPGRP) }

// Executable is the path of this very program, even if its file was replaced or removed meanwhile.
func Executable() (string, error) { return "/proc/self/exe", nil }

// SinceBoot is the time since boot in nanoseconds, the same for all processes. It counts the
// time that the machine sleeps.
func SinceBoot() int64 {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &t); err != nil {
		panic("guard: no clock: " + err.Error())
	}
	return t.Nano()
}
