// Command etcd is the etcd server, of the version that go.mod pins: there is no Debian
// package of a version that is new enough.
package main

import (
	"os"

	"go.etcd.io/etcd/server/v3/etcdmain"
)

func main() { etcdmain.Main(os.Args) }
