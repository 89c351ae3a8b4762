package testserver

import (
	"crypto/rand"
	"fmt"
	"os"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
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

// VerifyTestMain is goleak's, which fails if goroutines outlive the tests, with two
// differences: it ends the shared servers first, and a goroutine has half a minute to end
// in. A store's client may look once more for a server before it notices that it is closed,
// go-redis a second later. What stays is a leak.
func VerifyTestMain(m *testing.M, opts ...goleak.Option) {
	code := Main{M: m}.Run()
	if code == 0 {
		err := goleak.Find(opts...)
		for end := time.Now().Add(30 * time.Second); err != nil && time.Now().Before(end); {
			err = goleak.Find(opts...) // which takes half a second to find something
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, "goleak:", err)
			code = 1
		}
	}
	os.Exit(code)
}

// Main is a *testing.M whose Run ends with [Shutdown].
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
