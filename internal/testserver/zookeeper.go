package testserver

import (
	"context"
	_ "embed"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"
)

var zookeeperKind = &kind{
	name:    "zookeeper",
	image:   "zookeeper:3.8",
	program: "java",
	install: "Debian's package zookeeper, version 3.8",
	file:    "/usr/share/java/zookeeper.jar",
	ready: func(ctx context.Context, addr string) error {
		_, err := zookeeperMode(ctx, addr)
		return err
	},
}

// zookeeperScript runs the server in its working folder. Its arguments are the lines of
// zoo.cfg; MYID and JAVA_ARGS are set before it.
//
//go:embed zookeeper.sh
var zookeeperScript string

// ZooKeeper gives the test a ZooKeeper server of its own, with a tick of 200 ms, that
// allows session timeouts from 400 ms to a minute and all four-letter words. An arg that
// begins with "-" is for Java, any other is a line of zoo.cfg; both win over what is set
// here: ZooKeeper(t, "tickTime=2000", "-Dznode.container.checkIntervalMs=100").
//
// If LOCK_TEST_ZOOKEEPER_ADDR is set, that server is returned, and a test with args is
// skipped. It must allow a session timeout of 5 s.
func ZooKeeper(tb testing.TB, args ...string) *Server {
	tb.Helper()
	if s := zookeeperFromEnv(tb, args); s != nil {
		return s
	}
	return launch(tb, zookeeperKind, 1, func(ports []int) []string {
		return zookeeperCommand(0, ports[0], args...)
	})
}

// SharedZooKeeper returns the one server that all tests of this process share, running and
// not frozen. A test works below a node of its own. [Main] ends it.
func SharedZooKeeper(tb testing.TB) *Server {
	tb.Helper()
	if s := zookeeperFromEnv(tb, nil); s != nil {
		return s
	}
	return launchShared(tb, zookeeperKind, 1, func(ports []int) []string {
		return zookeeperCommand(0, ports[0])
	})
}

func zookeeperFromEnv(tb testing.TB, args []string) *Server {
	tb.Helper()
	NeedServer(tb)
	addr := os.Getenv("LOCK_TEST_ZOOKEEPER_ADDR")
	switch {
	case addr == "":
		return nil
	case len(args) > 0:
		tb.Skipf("needs a ZooKeeper with %v, but LOCK_TEST_ZOOKEEPER_ADDR names one", args)
	}
	if _, err := zookeeperMode(context.Background(), addr); err != nil {
		tb.Fatalf("testserver: LOCK_TEST_ZOOKEEPER_ADDR=%s: %v", addr, err)
	}
	return &Server{tb: tb, addr: addr}
}

// zookeeperCommand is a single server, or member id of an ensemble if that is not 0.
func zookeeperCommand(id, port int, args ...string) []string {
	java := []string{
		"-Xmx256m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", // starts in half the time
		"-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
	}
	config := []string{
		"tickTime=200", "initLimit=50", "syncLimit=50",
		"minSessionTimeout=400", "maxSessionTimeout=120000",
		"dataDir=data", "clientPortAddress=127.0.0.1", "clientPort=" + strconv.Itoa(port),
		"admin.enableServer=false", "4lw.commands.whitelist=*", "maxClientCnxns=0",
	}
	for _, arg := range args {
		if strings.HasPrefix(arg, "-") {
			java = append(java, arg)
		} else {
			config = append(config, arg)
		}
	}
	set := fmt.Sprintf("MYID=%d\nJAVA_ARGS='%s'\n", id, strings.Join(java, " "))
	return append([]string{"sh", "-c", set + zookeeperScript, "sh"}, config...)
}

// zookeeperMode is what part the server plays: standalone, leader or follower. A member
// without a quorum plays none.
func zookeeperMode(ctx context.Context, addr string) (string, error) {
	out, err := zookeeperWord(ctx, addr, "srvr")
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(out) {
		if mode, ok := strings.CutPrefix(strings.TrimSpace(line), "Mode: "); ok {
			return mode, nil
		}
	}
	return "", fmt.Errorf("%s does not serve: %q", addr, out)
}

// zookeeperWord sends a four-letter word and returns the reply.
func zookeeperWord(ctx context.Context, addr, word string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", addr)
	if err != nil {
		return "", err
	}
	defer func() { _ = conn.Close() }()
	deadline, _ := ctx.Deadline()
	_ = conn.SetDeadline(deadline)
	if _, err := io.WriteString(conn, word); err != nil {
		return "", err
	}
	out, err := io.ReadAll(conn)
	if err == nil && len(out) == 0 {
		err = fmt.Errorf("%s: no reply to %s", addr, word)
	}
	return string(out), err
}
