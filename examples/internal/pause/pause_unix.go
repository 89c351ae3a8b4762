//go:build unix

// Package pause freezes a process, as a long garbage collection or a suspended machine
// would.
package pause

import (
	"os"
	"os/signal"
	"syscall"
)

// Self stops this process, all its threads, until somebody resumes it.
func Self() error {
	// The signal stops the process soon, but maybe not before Kill has returned.
	resumed := make(chan os.Signal, 1)
	signal.Notify(resumed, syscall.SIGCONT)
	defer signal.Stop(resumed)
	if err := syscall.Kill(os.Getpid(), syscall.SIGSTOP); err != nil {
		return err
	}
	<-resumed
	return nil
}

// Resume lets a process that stopped go on.
func Resume(p *os.Process) error { return p.Signal(syscall.SIGCONT) }
