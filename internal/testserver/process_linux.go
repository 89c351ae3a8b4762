package testserver

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// dieWithParent makes the kernel kill the child when the thread that starts it ends.
func dieWithParent(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
}

// suspend returns when the process and its descendants are frozen: the signal alone only
// asks for it. It looks again for children that were born meanwhile.
func suspend(p *os.Process) error {
	for frozen := 0; ; {
		pids := family(p.Pid)
		if len(pids) == frozen {
			return nil
		}
		if err := endWithUs(p.Pid, pids); err != nil {
			return err
		}
		for _, pid := range pids {
			if err := freeze(pid); err != nil {
				return err
			}
		}
		frozen = len(pids)
	}
}

func freeze(pid int) error {
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
		return ignoreGone(err)
	}
	for deadline := time.Now().Add(stopTimeout); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		switch state, _ := stat(pid); state {
		case 'T', 'Z', 0:
			return nil
		}
	}
	return errors.New("it does not stop")
}

// unsuspend thaws the descendants first: a parent may end what does not answer it.
func unsuspend(p *os.Process) error {
	for _, pid := range slices.Backward(family(p.Pid)) {
		if err := ignoreGone(syscall.Kill(pid, syscall.SIGCONT)); err != nil {
			return err
		}
	}
	return endWithUs(p.Pid, nil)
}

// frozen are the families that are frozen, by their first. The kernel ends only the first with
// this process, and the others do not run to notice.
var frozen struct {
	mu     sync.Mutex // guards the rest
	pids   map[int][]int
	helper io.Writer // the input of a process that ends them when this one does
}

// helperScript keeps the last line of its input, and kills what it names when there is no more.
const helperScript = `last=
while read -r pids; do last=$pids; done
[ -z "$last" ] || kill -KILL $last`

// endWithUs has pids, which are first's family, killed when this process ends, however it does.
func endWithUs(first int, pids []int) error {
	frozen.mu.Lock()
	defer frozen.mu.Unlock()
	if frozen.helper == nil && len(pids) == 0 {
		return nil
	}
	if frozen.helper == nil {
		cmd := exec.Command("sh", "-c", helperScript)
		cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // what ends this process by its group spares it
		in, err := cmd.StdinPipe()
		if err != nil {
			return err
		}
		if err := cmd.Start(); err != nil {
			return err
		}
		frozen.helper, frozen.pids = in, make(map[int][]int)
	}
	frozen.pids[first] = pids
	var all []string
	for _, family := range frozen.pids {
		for _, pid := range family {
			all = append(all, strconv.Itoa(pid))
		}
	}
	_, err := fmt.Fprintln(frozen.helper, strings.Join(all, " "))
	return err
}

// destroy kills the process and its descendants, and returns when the latter are gone.
// They are frozen first, lest one starts another.
func destroy(p *os.Process) error {
	if err := suspend(p); err != nil {
		return err
	}
	pids := family(p.Pid)
	for _, pid := range pids {
		if err := ignoreGone(syscall.Kill(pid, syscall.SIGKILL)); err != nil {
			return err
		}
	}
	for _, pid := range pids[1:] {
		for deadline := time.Now().Add(stopTimeout); ; time.Sleep(time.Millisecond) {
			if state, _ := stat(pid); state == 0 || state == 'Z' {
				break
			}
			if time.Now().After(deadline) {
				return fmt.Errorf("process %d still runs after %v", pid, stopTimeout)
			}
		}
	}
	return endWithUs(p.Pid, nil)
}

func ignoreGone(err error) error {
	if errors.Is(err, syscall.ESRCH) {
		return nil
	}
	return err
}

// family returns pid and then its descendants, parents before their children.
func family(pid int) []int {
	children := make(map[int][]int)
	stats, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, path := range stats {
		if child, err := strconv.Atoi(filepath.Base(filepath.Dir(path))); err == nil {
			_, parent := stat(child)
			children[parent] = append(children[parent], child)
		}
	}
	pids := []int{pid}
	for i := 0; i < len(pids); i++ {
		pids = append(pids, children[pids[i]]...)
	}
	return pids
}

// stat returns a process's state, 0 if there is no such process, and its parent.
func stat(pid int) (state byte, parent int) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, 0
	}
	// Both follow the program's name, which is in parentheses.
	_, _ = fmt.Sscanf(string(b[bytes.LastIndexByte(b, ')')+1:]), " %c %d", &state, &parent)
	return state, parent
}

func processRuns(pid int) bool {
	err := syscall.Kill(pid, 0)
	return err == nil || errors.Is(err, syscall.EPERM)
}
