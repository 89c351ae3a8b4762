package testserver

import (
	"context"
	"os"
	"strings"
	"testing"
)

// RedlockNodes is how many servers those of Redlock are.
const RedlockNodes = 5

// redlockKinds are those of the shared servers, of which there is one of a kind.
var redlockKinds = func() (ks [RedlockNodes]*kind) {
	for i := range ks {
		ks[i] = redisKind.anew()
	}
	return ks
}()

// Redlock gives the test five Redis servers of its own that know nothing of each other.
// args are as Redis takes them.
//
// If LOCK_TEST_REDLOCK_ADDR names five servers, separated by commas, those are returned, and
// a test with args is skipped.
func Redlock(tb testing.TB, args ...string) []*Server {
	tb.Helper()
	if all := redlockFromEnv(tb, args); all != nil {
		return all
	}
	all := make([]*Server, RedlockNodes)
	for i := range all {
		all[i] = redis(tb, args...)
	}
	return all
}

// SharedRedlock returns the five that all tests of this process share, running and not
// frozen. A test works under a [Prefix] of its own.
func SharedRedlock(tb testing.TB) []*Server {
	tb.Helper()
	if all := redlockFromEnv(tb, nil); all != nil {
		return all
	}
	all := make([]*Server, RedlockNodes)
	for i, k := range redlockKinds {
		all[i] = launchShared(tb, k, 1, func(ports []int) []string { return redisCommand(ports[0]) })
	}
	return all
}

func redlockFromEnv(tb testing.TB, args []string) []*Server {
	tb.Helper()
	NeedServer(tb)
	env := os.Getenv("LOCK_TEST_REDLOCK_ADDR")
	if env == "" {
		return nil
	}
	if len(args) > 0 {
		tb.Skipf("needs Redis servers with %v, but LOCK_TEST_REDLOCK_ADDR names some", args)
	}
	addrs := strings.Split(env, ",")
	if len(addrs) != RedlockNodes {
		tb.Fatalf("testserver: LOCK_TEST_REDLOCK_ADDR=%s: must name %d servers", env, RedlockNodes)
	}
	var all []*Server
	for _, addr := range addrs {
		if err := redisReady(context.Background(), addr); err != nil {
			tb.Fatalf("testserver: LOCK_TEST_REDLOCK_ADDR: %s: %v", addr, err)
		}
		all = append(all, &Server{tb: tb, addr: addr})
	}
	return all
}
