package testserver

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"time"
)

const (
	dockerTimeout = 30 * time.Second
	pullTimeout   = 5 * time.Minute
	// ownerLabel is on each container, with the host and the process that it belongs
	// to. docker ps --filter label=lock.testserver shows them all.
	ownerLabel = "lock.testserver"
)

// dockerSource runs containers of a kind's image. They use the host's network: a node of
// a cluster and a client must know it by the same address.
type dockerSource struct{}

// findDaemon returns nil if there is a Docker daemon that can put containers on this machine's
// network.
func findDaemon() error {
	if _, err := exec.LookPath("docker"); err != nil {
		return fmt.Errorf("docker: %w", err)
	}
	info, err := docker(dockerTimeout, "info", "--format", "{{.Name}} {{.SecurityOptions}}")
	if err != nil {
		return err
	}
	if host, _ := os.Hostname(); !sharesNetwork(info, host) {
		return fmt.Errorf("docker: the host's network is not this machine's: %s", info)
	}
	sweepOnce.Do(sweep)
	return nil
}

// findImage returns nil if the daemon has the image.
func findImage(image string) error {
	_, err := docker(dockerTimeout, "image", "inspect", "--format", "{{.Id}}", image)
	return err
}

func pullImage(image string) error {
	_, err := docker(pullTimeout, "pull", "--quiet", image)
	return err
}

// sharesNetwork takes the daemon's name and its security options. With another name it has
// a machine of its own: far away, in Docker Desktop, or outside of the container that the
// tests run in. Without root it has a network of its own, and with users of its own it
// gives no container the host's.
func sharesNetwork(info, host string) bool {
	name, options, _ := strings.Cut(info, " ")
	return name == host && !strings.Contains(options, "name=rootless") && !strings.Contains(options, "name=userns")
}

func (dockerSource) prepare(k *kind, command []string) (process, error) {
	name := "lock-" + k.name + "-" + strings.ToLower(rand.Text()[:10])
	_, err := docker(dockerTimeout, append([]string{
		"create", "--name", name, "--network", "host", "--label", ownerLabel + "=" + owner(os.Getpid()),
		"--workdir", "/data", "--entrypoint", command[0], k.image,
	}, command[1:]...)...)
	return &container{name: name}, err
}

// container is a server in Docker. It is kept when the server ends, and started again,
// because it has the server's data; remove takes it away.
type container struct {
	name   string
	frozen bool
}

func (c *container) start() error {
	_, err := docker(dockerTimeout, "start", c.name)
	return err
}

func (c *container) kill() error {
	if !c.alive() {
		return nil
	}
	c.frozen = false // Docker thaws what it kills
	return c.end("KILL")
}

func (c *container) stop() error {
	if err := c.resume(); err != nil || !c.alive() {
		return err
	}
	return c.end("TERM")
}

// end sends the signal and returns when the container has ended.
func (c *container) end(signal string) error {
	if _, err := docker(dockerTimeout, "kill", "--signal", signal, c.name); err != nil && c.alive() {
		return err
	}
	_, err := docker(stopTimeout, "wait", c.name)
	return err
}

func (c *container) pause() error {
	if c.frozen {
		return nil
	}
	_, err := docker(dockerTimeout, "pause", c.name)
	c.frozen = err == nil
	return err
}

func (c *container) resume() error {
	if !c.frozen {
		return nil
	}
	_, err := docker(dockerTimeout, "unpause", c.name)
	c.frozen = err != nil
	return err
}

// alive takes a container for alive of which the daemon has not said that it is not: a busy machine
// may leave the question unanswered.
func (c *container) alive() bool {
	out, err := docker(dockerTimeout, "inspect", "--format", "{{.State.Running}}", c.name)
	if err != nil {
		return !strings.Contains(strings.ToLower(err.Error()), "no such")
	}
	return out == "true"
}

func (c *container) log() string {
	out, err := docker(dockerTimeout, "logs", "--tail", "25", c.name)
	if err != nil {
		return err.Error()
	}
	return out
}

func (c *container) remove() {
	_, _ = docker(dockerTimeout, "rm", "--force", "--volumes", c.name)
}

var sweepOnce sync.Once

// sweep removes the containers of test processes of this host and PID namespace that have ended
// without doing so.
func sweep() {
	out, err := docker(dockerTimeout, "ps", "--all", "--filter", "label="+ownerLabel,
		"--format", `{{.ID}} {{.Label "`+ownerLabel+`"}}`)
	if err != nil {
		return
	}
	for line := range strings.Lines(out) {
		if id, label, _ := strings.Cut(strings.TrimSpace(line), " "); abandoned(label) {
			_, _ = docker(dockerTimeout, "rm", "--force", "--volumes", id)
		}
	}
}

// abandoned reports whether label is that of a process which has ended. Of those in another
// container this one knows nothing.
func abandoned(label string) bool {
	i := strings.LastIndexByte(label, '/')
	pid, err := strconv.Atoi(label[i+1:])
	return err == nil && label == owner(pid) && !processRuns(pid)
}

// owner names a process of this host and this PID namespace.
func owner(pid int) string {
	host, _ := os.Hostname()
	namespace, _ := os.Readlink("/proc/self/ns/pid") // of Linux alone
	return host + "/" + namespace + "/" + strconv.Itoa(pid)
}

// docker runs the client and returns what it printed, without surrounding space.
func docker(limit time.Duration, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	cmd := exec.CommandContext(ctx, "docker", args...)
	cmd.WaitDelay = time.Second
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	if args[0] == "logs" { // both streams are the server's
		cmd.Stderr = &out
	}
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			err = errors.Join(err, fmt.Errorf("no answer in %v", limit))
		}
		return "", fmt.Errorf("docker %s: %w: %s", args[0], err, bytes.TrimSpace(errOut.Bytes()))
	}
	return strings.TrimSpace(out.String()), nil
}
