// Package testserver gives a test a real server and control of it.
//
// A store's tests ask for what they need, [Redis] or [RedisCluster] say, and get a
// server that runs, answers, and is gone when the test ends. They may kill it, freeze
// it and start it again on the same port with the same data.
//
// Servers come, in this order, from
//
//   - an address in the environment (LOCK_TEST_REDIS_ADDR), which gives no control: a
//     test that wants to kill or freeze such a server is skipped, and says why;
//   - a Docker daemon that has the image that compose.yaml names;
//   - a program installed on this machine;
//   - a Docker daemon that can pull the image.
//
// LOCK_TEST_SERVERS=docker or =native insists on Docker or on a program. Where there is
// none the test fails and says what to install. Under -short it is skipped.
//
// A new store adds one file: a [kind] and a constructor that calls [launch].
package testserver

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"sync"
	"testing"
	"time"
)

const (
	// startTimeout is until a started server answers: one in Java needs three seconds of
	// the CPU to itself, and a busy machine gives it a twentieth.
	startTimeout = 4 * time.Minute
	stopTimeout  = 10 * time.Second // until a server told to end is gone
	pollInterval = 10 * time.Millisecond
	// lookInterval is longer since a look at a container is a run of Docker's client, which
	// would take the CPU that the server needs to start.
	lookInterval = 250 * time.Millisecond
)

// NeedServer skips the test under -short. Every constructor here calls it, so a test
// does it only to skip before other work of its own.
func NeedServer(tb testing.TB) {
	tb.Helper()
	if testing.Short() {
		tb.Skip("needs a real server")
	}
}

// Server is what one test holds of a running server. Its methods fail the test when
// they cannot do their work, and are safe for concurrent use, one after the other.
type Server struct {
	tb   testing.TB
	addr string
	inst *instance // nil: somebody else runs the server
}

// Addr is the server's host:port. It stays the same over Kill and Start.
func (s *Server) Addr() string { return s.addr }

// Controlled tells whether the server is ours to kill and to freeze. It is not when
// the environment named its address.
func (s *Server) Controlled() bool { return s.inst != nil }

// Kill ends the server at once, as a crash would (SIGKILL), and returns when it is
// gone. What it had not written to disk is lost. A dead server stays dead.
func (s *Server) Kill() {
	s.tb.Helper()
	s.control("kill", process.kill)
}

// Stop asks the server to end (SIGTERM), so that it may write its data, and returns
// when it is gone.
func (s *Server) Stop() {
	s.tb.Helper()
	s.control("stop", process.stop)
}

// Start runs a killed or stopped server again, with the same port, arguments and
// data, and returns when it answers.
func (s *Server) Start() {
	s.tb.Helper()
	s.control("start", func(p process) error {
		if p.alive() {
			return errors.New("it is running")
		}
		return s.inst.boot(p)
	})
}

// Pause freezes the server (SIGSTOP): connections stay open and nothing is answered.
// It returns when the server is frozen.
func (s *Server) Pause() {
	s.tb.Helper()
	s.control("pause", process.pause)
}

// Resume thaws a frozen server. A server that runs is left as it is.
func (s *Server) Resume() {
	s.tb.Helper()
	s.control("resume", process.resume)
}

func (s *Server) hostPort() (host, port string) {
	host, port, err := net.SplitHostPort(s.addr)
	if err != nil {
		s.tb.Fatalf("testserver: %v", err)
	}
	return host, port
}

func (s *Server) control(verb string, do func(process) error) {
	s.tb.Helper()
	if !s.Controlled() {
		s.tb.Skipf("needs to %s the server, but %s is run by somebody else", verb, s.addr)
	}
	s.inst.mu.Lock()
	defer s.inst.mu.Unlock()
	if err := do(s.inst.proc); err != nil {
		s.tb.Fatalf("testserver: %s %s at %s: %v", verb, s.inst.kind.name, s.addr, err)
	}
}

// kind is what a store's servers have in common.
type kind struct {
	name    string // in messages and in the names of folders and containers
	image   string // as in compose.yaml
	program string // looked for on this machine
	install string // what to install where there is no server

	// places are folders, as patterns for filepath.Glob, where program is looked for
	// before the PATH. Of several matches the newest version wins, by the numbers in its name.
	places []string
	file   string // what program needs besides itself; "" if nothing

	// ready returns nil once the server at addr does its work.
	ready func(ctx context.Context, addr string) error

	once sync.Once // guards the search for src
	src  source
	err  error
}

// anew is k without what has been found for it.
func (k *kind) anew() *kind {
	return &kind{
		name: k.name, image: k.image, program: k.program, install: k.install,
		places: k.places, file: k.file, ready: k.ready,
	}
}

// process is one server under somebody's control: the kernel's or Docker's.
// Its methods are never called at the same time.
type process interface {
	start() error  // the first time, or again after kill or stop
	kill() error   // returns when it is gone; nil if it was gone already
	stop() error   // the same, letting it end by itself
	pause() error  // returns when it is frozen
	resume() error // nil if it was not frozen
	alive() bool
	log() string // the end of what it printed
	remove()     // what it left behind, after kill
}

// instance is a server that this test process has started.
type instance struct {
	kind *kind
	addr string

	mu   sync.Mutex // makes the calls of proc's methods one at a time
	proc process
}

// launch gives tb a server of its own. command gets as many ports as asked for, of
// which the first is the server's address, and returns the program and its arguments;
// it is called again with other ports if somebody else has taken one of them.
func launch(tb testing.TB, k *kind, ports int, command func(ports []int) []string) *Server {
	tb.Helper()
	inst, err := newInstance(k, ports, command)
	if err != nil {
		tb.Fatalf("testserver: %v", err)
	}
	return inst.endsWith(tb)
}

// endsWith makes i a server of tb.
func (i *instance) endsWith(tb testing.TB) *Server {
	tb.Cleanup(func() {
		if tb.Failed() {
			tb.Logf("%s at %s printed last:\n%s", i.kind.name, i.addr, i.proc.log())
		}
		if err := i.close(); err != nil {
			tb.Errorf("testserver: %v", err)
		}
	})
	return &Server{tb: tb, addr: i.addr, inst: i}
}

func newInstance(k *kind, nports int, command func(ports []int) []string) (*instance, error) {
	src, err := k.source()
	if err != nil {
		return nil, err
	}
	const tries = 5
	for try := 1; ; try++ {
		ports, err := reservePorts(nports)
		if err != nil {
			return nil, err
		}
		proc, err := src.prepare(k, command(ports))
		if err != nil {
			return nil, fmt.Errorf("%s: %w", k.name, err)
		}
		inst := &instance{
			kind: k,
			addr: net.JoinHostPort("127.0.0.1", strconv.Itoa(ports[0])),
			proc: proc,
		}
		err = inst.boot(proc)
		if err == nil {
			return inst, nil
		}
		closeErr := inst.close()
		if !errors.Is(err, errPortTaken) || try == tries {
			return nil, errors.Join(fmt.Errorf("%s at %s: %w", k.name, inst.addr, err), closeErr)
		}
	}
}

// errPortTaken ends a boot that another port may save.
var errPortTaken = errors.New("the port is in use")

// boot starts the server and waits until it is ready.
func (i *instance) boot(p process) error {
	if err := p.start(); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
	defer cancel()
	for looked := time.Now(); ; time.Sleep(pollInterval) {
		err := i.kind.ready(ctx, i.addr)
		switch {
		case err == nil:
			return nil
		case ctx.Err() != nil:
			return fmt.Errorf("not ready after %v: %w; it printed:\n%s", startTimeout, err, p.log())
		case time.Since(looked) < lookInterval:
			continue
		}
		if !p.alive() {
			out := p.log()
			if portTaken(out) {
				return fmt.Errorf("%w:\n%s", errPortTaken, out)
			}
			return fmt.Errorf("it ended at once:\n%s", out)
		}
		looked = time.Now()
	}
}

func (i *instance) isAlive() bool {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.proc.alive()
}

// close ends the server in whatever state it is and removes what it left.
func (i *instance) close() error {
	i.mu.Lock()
	defer i.mu.Unlock()
	err := i.proc.kill()
	i.proc.remove()
	if err != nil {
		return fmt.Errorf("ending %s at %s: %w", i.kind.name, i.addr, err)
	}
	return nil
}

// mend brings a shared server back that a test has left frozen or dead.
func (i *instance) mend() error {
	i.mu.Lock()
	defer i.mu.Unlock()
	if !i.proc.alive() {
		return i.boot(i.proc)
	}
	return i.proc.resume()
}

// eventually returns when check does so without an error, and fails the test if that
// takes longer than limit.
func eventually(tb testing.TB, limit time.Duration, what string, check func() error) {
	tb.Helper()
	deadline := time.Now().Add(limit)
	for {
		err := check()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			tb.Fatalf("testserver: waited %v for %s: %v", limit, what, err)
		}
		time.Sleep(pollInterval)
	}
}
