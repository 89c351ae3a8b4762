package testserver

import (
	"crypto/rand"
	"fmt"
	"os"
	"sync"
	"testing"
)

// shared holds the servers that live as long as the test process, one of a kind.
var shared struct {
	mu    sync.Mutex // guards kinds
	kinds map[*kind]*instance
}

// launchShared is launch for a server that all tests of the process use together.
func launchShared(tb testing.TB, k *kind, ports int, command func(ports []int) []string) *Server {
	tb.Helper()
	shared.mu.Lock()
	defer shared.mu.Unlock()
	inst := shared.kinds[k]
	var err error
	if inst != nil {
		err = inst.mend()
	} else if inst, err = newInstance(k, ports, command); err == nil {
		if shared.kinds == nil {
			shared.kinds = make(map[*kind]*instance)
		}
		shared.kinds[k] = inst
	}
	if err != nil {
		tb.Fatalf("testserver: %v", err)
	}
	return &Server{tb: tb, addr: inst.addr, inst: inst}
}

// Shutdown ends the servers that tests share. A TestMain calls it after the tests, by
// way of [Main] or itself. A process that ends without it leaves no server behind
// either, except in containers, which the next test run removes.
func Shutdown() {
	shared.mu.Lock()
	defer shared.mu.Unlock()
	for k, inst := range shared.kinds {
		if err := inst.close(); err != nil {
			fmt.Fprintln(os.Stderr, "testserver:", err)
		}
		delete(shared.kinds, k)
	}
}

// Main is a *testing.M whose Run ends with [Shutdown], so that what looks for leaks
// after the tests finds none of ours:
//
//	func TestMain(m *testing.M) { goleak.VerifyTestMain(testserver.Main{M: m}) }
type Main struct{ M *testing.M }

// Run runs the tests, ends the shared servers, and returns the tests' exit code.
func (m Main) Run() int {
	defer Shutdown()
	return m.M.Run()
}

// Prefix returns a short key prefix that no other test uses, here or in another
// process: a clean keyspace on a server that is shared.
func Prefix() string {
	return "t" + rand.Text()[:12] + ":"
}
