package storetest

import (
	"os"
	"testing"
	"time"

	"github.com/seed-215fdefa/lock/internal/testserver"
	"github.com/seed-215fdefa/lock/locktest"
)

// FarAway runs the suite on a network with a round trip of 200 ms. harness is that of
// processes which are oneWay from their servers.
func FarAway(t *testing.T, harness func(oneWay time.Duration) locktest.Harness) {
	if os.Getenv("LOCK_TEST_FAR") == "" {
		t.Skip("make far runs it: on a slow network it takes minutes")
	}
	testserver.NeedServer(t)
	h := harness(100 * time.Millisecond)
	h.Skips = map[string]string{
		"KeysAreOpaque":     "a hundred keys, each with ten round trips; distance does not change them",
		"RecordsAreBounded": "dozens of waiters, one after the other; distance does not change them",
	}
	locktest.Run(t, h)
}
