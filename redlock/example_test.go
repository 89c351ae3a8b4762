package redlock_test

import (
	"fmt"
	"testing"

	goredis "github.com/redis/go-redis/v9"

	"github.com/seed-215fdefa/lock/internal/testserver"
)

// connect returns clients of the five servers that the examples use; in a program their
// addresses come from its configuration.
func connect() (nodes []goredis.UniversalClient, closeAll func()) {
	for _, s := range testserver.SharedRedlock(inExample{}) {
		nodes = append(nodes, goredis.NewClient(&goredis.Options{Addr: s.Addr()}))
	}
	return nodes, func() {
		for _, n := range nodes {
			_ = n.Close()
		}
	}
}

// inExample stands in for the testing.TB that an example does not have.
type inExample struct{ testing.TB }

func (inExample) Helper() {}

func (inExample) Fatalf(format string, args ...any) { panic(fmt.Sprintf(format, args...)) }
