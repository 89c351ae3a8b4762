package testserver

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"
)

var redisKind = &kind{
	name:    "redis",
	image:   "redis:7.4-bookworm",
	program: "redis-server",
	install: "redis-server, version 7",
	ready:   redisReady,
}

// Redis gives the test a Redis server of its own, which keeps nothing on disk unless
// args say so. args are as on redis-server's command line and win over what is set
// here: Redis(t, "--appendonly", "yes").
//
// If LOCK_TEST_REDIS_ADDR is set, that server is returned, and a test with args is
// skipped.
func Redis(tb testing.TB, args ...string) *Server {
	tb.Helper()
	if s := redisFromEnv(tb, args); s != nil {
		return s
	}
	return redis(tb, args...)
}

// SharedRedis returns the one server that all tests of this process share, running and
// not frozen. Its keyspace is not empty: a test works under a [Prefix] of its own.
// [Main] ends it.
func SharedRedis(tb testing.TB) *Server {
	tb.Helper()
	if s := redisFromEnv(tb, nil); s != nil {
		return s
	}
	return launchShared(tb, redisKind, 1, func(ports []int) []string { return redisCommand(ports[0]) })
}

// redis is Redis without regard to LOCK_TEST_REDIS_ADDR, for what must be controlled.
func redis(tb testing.TB, args ...string) *Server {
	tb.Helper()
	return launch(tb, redisKind, 1, func(ports []int) []string { return redisCommand(ports[0], args...) })
}

func redisFromEnv(tb testing.TB, args []string) *Server {
	tb.Helper()
	NeedServer(tb)
	addr := os.Getenv("LOCK_TEST_REDIS_ADDR")
	switch {
	case addr == "":
		return nil
	case len(args) > 0:
		tb.Skipf("needs a Redis with %v, but LOCK_TEST_REDIS_ADDR names one", args)
	}
	if err := redisReady(context.Background(), addr); err != nil {
		tb.Fatalf("testserver: LOCK_TEST_REDIS_ADDR=%s: %v", addr, err)
	}
	return &Server{tb: tb, addr: addr}
}

// redisCommand runs the server in its working folder, on loopback only.
func redisCommand(port int, args ...string) []string {
	return append([]string{
		"redis-server",
		"--port", strconv.Itoa(port),
		"--bind", "127.0.0.1",
		"--save", "",
		"--appendonly", "no",
		"--enable-debug-command", "local",
		"--repl-diskless-sync", "no", // a new replica is in step a second sooner
	}, args...)
}

// redisReady also takes a server that wants a password for ready, but not one that is
// still loading its data.
func redisReady(ctx context.Context, addr string) error {
	_, err := respCall(ctx, addr, "PING")
	var reply respError
	if errors.As(err, &reply) && strings.HasPrefix(string(reply), "NOAUTH") {
		return nil
	}
	return err
}

// call sends a command to a Redis server and fails the test on an error.
func (s *Server) call(args ...string) any {
	s.tb.Helper()
	reply, err := respCall(context.Background(), s.addr, args...)
	if err != nil {
		s.tb.Fatalf("testserver: %s: %s: %v", s.addr, strings.Join(args, " "), err)
	}
	return reply
}

// inStep checks that replica follows master and gets each write as it happens.
func inStep(master, replica *Server) error {
	if err := replica.fields(map[string]string{"role": "slave", "master_link_status": "up"}, "INFO", "replication"); err != nil {
		return err
	}
	reply, err := respCall(context.Background(), master.addr, "INFO", "replication")
	if err != nil {
		return err
	}
	_, port := replica.hostPort()
	for line := range strings.Lines(reply.(string)) {
		if strings.Contains(line, ",port="+port+",state=online,") {
			return nil
		}
	}
	return fmt.Errorf("%s is not online for its master", replica.addr)
}

// fields sends a command that replies with lines of "name:value", like INFO, and
// compares some of them.
func (s *Server) fields(want map[string]string, args ...string) error {
	reply, err := respCall(context.Background(), s.addr, args...)
	if err != nil {
		return err
	}
	text, _ := reply.(string)
	have := make(map[string]string)
	for line := range strings.Lines(text) {
		if name, value, ok := strings.Cut(strings.TrimSpace(line), ":"); ok {
			have[name] = value
		}
	}
	for name, value := range want {
		if have[name] != value {
			return fmt.Errorf("%s: %s is %q, not yet %q", s.addr, name, have[name], value)
		}
	}
	return nil
}
