package testserver

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"
	"time"
)

// nativeSource runs the program at path.
type nativeSource struct{ path string }

func (n nativeSource) prepare(k *kind, command []string) (process, error) {
	if command[0] == k.program {
		command = append([]string{n.path}, command[1:]...)
	}
	dir, err := os.MkdirTemp("", "lock-"+k.name+"-")
	if err != nil {
		return nil, err
	}
	return &native{command: command, path: filepath.Dir(n.path), dir: dir}, nil
}

// native is a child process. What it starts itself is killed and frozen with it.
type native struct {
	command []string
	path    string // the program's folder, the first in the child's PATH
	dir     string // its working folder, for data and log

	cmd  *exec.Cmd
	gone chan struct{} // closed when cmd has ended
}

func (p *native) start() error {
	out, err := os.OpenFile(p.logFile(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer out.Close()
	cmd := exec.Command(p.command[0], p.command[1:]...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = p.dir, out, out
	cmd.Env = append(os.Environ(),
		"PATH="+p.path+string(os.PathListSeparator)+os.Getenv("PATH"),
		"LC_ALL=C") // Redis ends where the user's locale is one that the machine has not
	dieWithParent(cmd)

	started, gone := make(chan error, 1), make(chan struct{})
	go func() {
		// The kernel takes the thread that forked for the parent, and would end the
		// server with that thread. So the thread is kept until the server is gone.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		defer close(gone)
		err := cmd.Start()
		started <- err
		if err == nil {
			_ = cmd.Wait() // how it ended is in its log
		}
	}()
	if err := <-started; err != nil {
		return err
	}
	p.cmd, p.gone = cmd, gone
	return nil
}

func (p *native) kill() error {
	if !p.alive() {
		return nil
	}
	if err := destroy(p.cmd.Process); err != nil && p.alive() {
		return err
	}
	return p.await()
}

func (p *native) stop() error {
	if !p.alive() {
		return nil
	}
	if err := p.resume(); err != nil {
		return err
	}
	if err := p.signal(syscall.SIGTERM); err != nil {
		return err
	}
	return p.await()
}

func (p *native) pause() error {
	if !p.alive() {
		return errNotRunning
	}
	return suspend(p.cmd.Process)
}

func (p *native) resume() error {
	if !p.alive() {
		return errNotRunning
	}
	return unsuspend(p.cmd.Process)
}

func (p *native) alive() bool {
	if p.cmd == nil {
		return false
	}
	select {
	case <-p.gone:
		return false
	default:
		return true
	}
}

func (p *native) log() string {
	b, err := os.ReadFile(p.logFile())
	if err != nil {
		return err.Error()
	}
	return lastLines(b)
}

func (p *native) remove() { _ = os.RemoveAll(p.dir) }

func (p *native) logFile() string { return filepath.Join(p.dir, "server.log") }

// signal takes a server that ended just now for a success.
func (p *native) signal(sig os.Signal) error {
	err := p.cmd.Process.Signal(sig)
	if errors.Is(err, os.ErrProcessDone) {
		return nil
	}
	return err
}

func (p *native) await() error {
	select {
	case <-p.gone:
		return nil
	case <-time.After(stopTimeout):
		return fmt.Errorf("process %d still runs after %v", p.cmd.Process.Pid, stopTimeout)
	}
}

var errNotRunning = errors.New("it is not running")

// lastLines keeps what a failed test's reader wants to see of a log.
func lastLines(log []byte) string {
	const most = 25
	lines := bytes.Split(bytes.TrimSpace(log), []byte("\n"))
	if n := len(lines); n > most {
		lines = lines[n-most:]
	}
	return string(bytes.Join(lines, []byte("\n")))
}
