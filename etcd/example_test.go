package etcd_test

import (
	"fmt"
	"testing"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/seed-215fdefa/lock/internal/testserver"
)

// dial returns a client of the server that the examples use; in a program its endpoints come
// from the configuration.
func dial() *clientv3.Client {
	cli, err := connect(testserver.SharedEtcd(inExample{}).Addr())
	if err != nil {
		panic(err)
	}
	return cli
}

// inExample stands in for the testing.TB that an example does not have.
type inExample struct{ testing.TB }

func (inExample) Helper() {}

func (inExample) Fatalf(format string, args ...any) { panic(fmt.Sprintf(format, args...)) }
