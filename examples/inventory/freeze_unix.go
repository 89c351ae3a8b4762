//go:build unix

package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"
)

// freeze stops this process, all its threads, until somebody thaws it.
func freeze(context.Context) error {
	// The signal stops the process soon, but maybe not before Kill has returned.
	thawed := make(chan os.Signal, 1)
	signal.Notify(thawed, syscall.SIGCONT)
	defer signal.Stop(thawed)
	if err := syscall.Kill(os.Getpid(), syscall.SIGSTOP); err != nil {
		return err
	}
	<-thawed
	return nil
}

func thaw(p *os.Process) error { return p.Signal(syscall.SIGCONT) }
