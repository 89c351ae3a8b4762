package etcd_test

import (
	"testing"

	"github.com/seed-215fdefa/lock/internal/storetest"
	"github.com/seed-215fdefa/lock/internal/testserver"
)

// TestCrowd: thousands of one process wait for one key. All are in line within seconds, the holder
// keeps its lock meanwhile, and all are served in order.
func TestCrowd(t *testing.T) {
	storetest.Crowd(t, openOn(t, testserver.Prefix(), []string{testserver.Etcd(t).Addr()}), 3000)
}
