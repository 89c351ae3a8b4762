//go:build unix

// Package guard is the parent of the CMD of lockctl run: a process of its own, by [Command].
//
// It imports little: Go initializes a package once those that it imports are, so the guard, which
// runs in this package's init, does not wait for those of the stores' clients. They take most of
// the time that lockctl needs to start.
package guard

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Command makes a program that imports this package a guard, if it is the first argument. Behind it
// are two descriptors, the deadline, in nanoseconds as of [SinceBoot], the grace, CMD's path and its argv.
// Later deadlines come on the first descriptor; CMD's process ID goes to the second. CMD gets neither. The
// exit status is that of CMD, 128+n after signal n, 126 if CMD cannot be executed, or 76 if the deadline was
// over before.
const Command = "__guard"

func init() {
	if len(os.Args) > 7 && os.Args[1] == Command {
		os.Exit(run(os.Args[2:]))
	}
}

func run(args []string) int {
	deadlines, err := inherited(args[0])
	report, err2 := inherited(args[1])
	deadline, err3 := strconv.ParseInt(args[2], 10, 64)
	grace, err4 := time.ParseDuration(args[3])
	if errors.Join(err, err2, err3, err4) != nil {
		return 64
	}
	// Those of a terminal reach CMD directly, others through lockctl: the guard stays. A
	// signal that is caught, unlike one that is ignored, is as usual for CMD.
	Notify(make(chan os.Signal, 1))

	if SinceBoot() >= deadline { // the machine may have slept
		fmt.Fprintln(os.Stderr, "lockctl run: the lock was over before CMD started")
		return 76
	}
	cmd, err := start(args[4:])
	if err != nil {
		Reclaim(0)
		fmt.Fprintln(os.Stderr, "lockctl run:", err)
		return 126
	}
	_ = binary.Write(report, binary.NativeEndian, int64(cmd.Pid))
	_ = report.Close()
	over := make(chan syscall.WaitStatus, 1)
	go func() { over <- wait(cmd.Pid) }()
	status := enforce(cmd.Pid, deadline, grace, received(deadlines), over)
	Reclaim(cmd.Pid)
	if status.Signaled() {
		return 128 + int(status.Signal())
	}
	return status.ExitStatus()
}

// inherited opens the descriptor with a number, and keeps it from CMD.
func inherited(number string) (*os.File, error) {
	fd, err := strconv.Atoi(number)
	if err != nil {
		return nil, err
	}
	syscall.CloseOnExec(fd)
	return os.NewFile(uintptr(fd), number), nil
}

// wait waits for CMD's end. A CMD that is stopped as it needs the terminal's foreground, such as for a
// password, gets it from this process's group, and goes on.
func wait(group int) syscall.WaitStatus {
	for {
		var status syscall.WaitStatus
		_, err := syscall.Wait4(group, &status, syscall.WUNTRACED, nil)
		switch {
		case errors.Is(err, syscall.EINTR):
		case !status.Stopped():
			return status
		case WantsTerminal(status.StopSignal()) && handOver(syscall.Getpgrp(), group):
			_ = syscall.Kill(-group, syscall.SIGCONT)
		}
	}
}

// received are the deadlines that arrive. The channel is closed when lockctl is gone.
func received(r io.Reader) <-chan int64 {
	c := make(chan int64)
	go func() {
		defer close(c)
		for {
			var d int64
			if binary.Read(r, binary.NativeEndian, &d) != nil {
				return
			}
			c <- d
		}
	}()
	return c
}

// enforce ends the group when the last deadline is over, or lockctl is gone. It returns how CMD has
// ended.
func enforce(group int, deadline int64, grace time.Duration, deadlines <-chan int64, over <-chan syscall.WaitStatus) syscall.WaitStatus {
	for SinceBoot() < deadline {
		// In steps, since timers stand still while the machine sleeps.
		timer := time.After(min(time.Duration(deadline-SinceBoot()), time.Second))
		select {
		case status := <-over:
			return status
		case d, ok := <-deadlines:
			if !ok {
				d, deadlines = min(deadline, SinceBoot()), nil
			}
			deadline = d
		case <-timer:
		}
	}
	_ = syscall.Kill(-group, syscall.SIGTERM)
	_ = syscall.Kill(-group, syscall.SIGCONT) // a stopped one would not hear it
	// CMD may be gone before what it has started.
	for deadline += int64(grace); !errors.Is(syscall.Kill(-group, 0), syscall.ESRCH); time.Sleep(10 * time.Millisecond) {
		if SinceBoot() >= deadline {
			_ = syscall.Kill(-group, syscall.SIGKILL)
			break
		}
	}
	return <-over
}

// start starts CMD from a thread of its own: on Linux the kernel kills CMD when the thread that
// started it is gone.
func start(argv []string) (cmd *os.Process, err error) {
	started := make(chan struct{})
	go func() {
		lockThread()
		cmd, err = os.StartProcess(argv[0], argv[1:], &os.ProcAttr{
			Files: []*os.File{os.Stdin, os.Stdout, os.Stderr}, Sys: childAttributes(),
		})
		close(started)
		select {}
	}()
	<-started
	return cmd, err
}

// Reclaim takes the terminal back from CMD's group for that of this process: once CMD is over, whoever goes
// on in it, such as a script, would be stopped when it reads, and Ctrl-C would reach nobody. A terminal
// whose foreground somebody else has stays as it is. CMD's group is not known, 0, if CMD did not start.
// Reclaim reports whether this process's group has the terminal, and leaves SIGTTOU ignored.
func Reclaim(group int) bool { return handOver(group, syscall.Getpgrp()) }

// handOver gives the terminal's foreground to a group, if from has it, or nobody any more. It reports
// whether that group has it now.
func handOver(from, to int) bool {
	tty, err := unix.Open("/dev/tty", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return false
	}
	defer unix.Close(tty)
	owner, err := foreground(tty)
	if err != nil || owner != from && owner != to && !errors.Is(syscall.Kill(-owner, 0), syscall.ESRCH) {
		return false
	}
	signal.Ignore(syscall.SIGTTOU) // which whoever is in the background gets for this
	return unix.IoctlSetPointerInt(tty, unix.TIOCSPGRP, to) == nil
}

// WantsTerminal reports whether s is what a process group gets when one of it needs the terminal's
// foreground, and another group has it.
func WantsTerminal(s syscall.Signal) bool { return s == syscall.SIGTTIN || s == syscall.SIGTTOU }

// terminal is the descriptor of a terminal whose foreground this process is in, or -1.
func terminal() int {
	if pgrp, err := foreground(0); err == nil && pgrp == syscall.Getpgrp() {
		return 0
	}
	return -1
}
