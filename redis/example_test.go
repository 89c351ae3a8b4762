package redis_test

import (
	"fmt"
	"testing"

	"github.com/seed-215fdefa/lock/internal/testserver"
)

// serverAddr is the address of the server that the examples use; in a program it comes from
// its configuration.
func serverAddr() string { return testserver.SharedRedis(inExample{}).Addr() }

// inExample stands in for the testing.TB that an example does not have.
type inExample struct{ testing.TB }

func (inExample) Helper() {}

func (inExample) Fatalf(format string, args ...any) { panic(fmt.Sprintf(format, args...)) }
