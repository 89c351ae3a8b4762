package testserver

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

var etcdKind = &kind{
	name:    "etcd",
	image:   "gcr.io/etcd-development/etcd:v3.6.14",
	program: "etcd",
	install: "etcd, version 3.6",
	places:  []string{filepath.Join(cacheDir(), "etcd-v3.6.14")},
	ready:   etcdReady,
}

// Etcd gives the test an etcd server of its own, a cluster of one member. args are as on
// etcd's command line and win over what is set here: Etcd(t, "--auto-compaction-retention", "1").
//
// If LOCK_TEST_ETCD_ADDR is set, that server is returned, and a test with args is skipped.
func Etcd(tb testing.TB, args ...string) *Server {
	tb.Helper()
	if s := etcdFromEnv(tb, args); s != nil {
		return s
	}
	return launch(tb, etcdKind, 2, func(ports []int) []string { return etcdCommand(ports, args...) })
}

// SharedEtcd returns the one server that all tests of this process share, running and not
// frozen. Its keyspace is not empty: a test works under a [Prefix] of its own. [Main] ends
// it.
func SharedEtcd(tb testing.TB) *Server {
	tb.Helper()
	if s := etcdFromEnv(tb, nil); s != nil {
		return s
	}
	return launchShared(tb, etcdKind, 2, func(ports []int) []string { return etcdCommand(ports) })
}

func etcdFromEnv(tb testing.TB, args []string) *Server {
	tb.Helper()
	NeedServer(tb)
	addr := os.Getenv("LOCK_TEST_ETCD_ADDR")
	switch {
	case addr == "":
		return nil
	case len(args) > 0:
		tb.Skipf("needs an etcd with %v, but LOCK_TEST_ETCD_ADDR names one", args)
	}
	if err := etcdReady(context.Background(), addr); err != nil {
		tb.Fatalf("testserver: LOCK_TEST_ETCD_ADDR=%s: %v", addr, err)
	}
	return &Server{tb: tb, addr: addr}
}

// etcdCommand runs a cluster of one. ports are for clients and for peers.
func etcdCommand(ports []int, args ...string) []string {
	return etcdMember("only", ports[0], ports[1], "only="+loopbackURL(ports[1]), args...)
}

// etcdMember runs a member in its working folder, on loopback only. The shortest TTL of a
// lease is one and a half election timeouts, in whole seconds: with these times it is 1 s.
func etcdMember(name string, client, peer int, cluster string, args ...string) []string {
	return append([]string{
		"etcd",
		"--name", name,
		"--data-dir", "etcd.data",
		"--listen-client-urls", loopbackURL(client),
		"--advertise-client-urls", loopbackURL(client),
		"--listen-peer-urls", loopbackURL(peer),
		"--initial-advertise-peer-urls", loopbackURL(peer),
		"--initial-cluster", cluster,
		"--heartbeat-interval", "50",
		"--election-timeout", "500",
		"--log-level", "warn",
	}, args...)
}

func loopbackURL(port int) string { return fmt.Sprintf("http://127.0.0.1:%d", port) }

// etcdReady returns nil once the member at addr knows a leader and answers with a quorum.
func etcdReady(ctx context.Context, addr string) error {
	var health struct{ Health, Reason string }
	if err := etcdCall(ctx, addr, http.MethodGet, "/health", &health); err != nil {
		return err
	}
	if health.Health != "true" {
		return fmt.Errorf("health %q: %s", health.Health, health.Reason)
	}
	return nil
}

// etcdCall sends a request to a member's HTTP interface and reads the JSON that it answers.
func etcdCall(ctx context.Context, addr, method, path string, answer any) error {
	ctx, cancel := context.WithTimeout(ctx, stopTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, "http://"+addr+path, strings.NewReader("{}"))
	if err != nil {
		return err
	}
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	var body bytes.Buffer
	if _, err := body.ReadFrom(resp.Body); err != nil {
		return err
	}
	if err := json.Unmarshal(body.Bytes(), answer); err != nil {
		return fmt.Errorf("%s %s: %s: %.200q", method, path, resp.Status, body.String())
	}
	return nil
}
