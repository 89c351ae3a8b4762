package zookeeper_test

import (
	"fmt"
	"testing"

	"github.com/seed-215fdefa/lock/internal/testserver"
)

// servers are the addresses of the servers that the examples use; in a program they come
// from its configuration.
func servers() []string { return []string{testserver.SharedZooKeeper(inExample{}).Addr()} }

// inExample stands in for the testing.TB that an example does not have.
type inExample struct{ testing.TB }

func (inExample) Helper() {}

func (inExample) Fatalf(format string, args ...any) { panic(fmt.Sprintf(format, args...)) }
