//go:build !linux

package testserver

import (
	"os"
	"os/exec"
	"strconv"
)

// dieWithParent has nothing to build on here: a test process that is killed leaves its
// servers behind.
func dieWithParent(*exec.Cmd) {}

// The shell's kill, since not every system that compiles this has the signals.

func suspend(p *os.Process) error { return kill("STOP", p) }

func unsuspend(p *os.Process) error { return kill("CONT", p) }

func kill(sig string, p *os.Process) error {
	return exec.Command("sh", "-c", "kill -"+sig+" "+strconv.Itoa(p.Pid)).Run()
}

func destroy(p *os.Process) error { return kill("KILL", p) }

func processRuns(pid int) bool {
	return exec.Command("sh", "-c", "kill -0 "+strconv.Itoa(pid)).Run() == nil
}
