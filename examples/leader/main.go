// Leader elects one of several processes, by a lock in etcd that it holds for as long as it
// lives. Only the leader writes the term's plan, the others find it by the lock's metadata and
// ask it, and a leader that was deposed without knowing it, a zombie, is refused. Start it in
// three terminals: the second and the third follow the first. Interrupt that, and another
// leads at once; kill it (-9), or freeze it (-STOP), and another leads when the TTL is over.
//
//	go run ./examples/leader -etcd localhost:2379 -name a
//
// With -freeze 3 the process stops itself before its third write, when it has made sure for
// the last time that it leads. When it is resumed (kill -CONT) there is another leader.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"sync"
	"syscall"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/etcd"
)

func main() {
	// The work gets this ctx, so it ends with the first signal, and a second one is not
	// waited for.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop)
	if err := run(ctx, os.Args[1:], os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "leader:", err)
		os.Exit(1)
	}
}

type config struct {
	etcd     string
	election string
	name     string
	listen   string
	ttl      time.Duration
	every    time.Duration
	freeze   int
}

func (c *config) flags() *flag.FlagSet {
	f := flag.NewFlagSet("leader", flag.ContinueOnError)
	f.StringVar(&c.etcd, "etcd", "127.0.0.1:2379", "addresses of the members, with commas between them")
	f.StringVar(&c.election, "election", "plan", "what is led")
	f.StringVar(&c.name, "name", fmt.Sprint(os.Getpid()), "what this process is called")
	f.StringVar(&c.listen, "listen", "127.0.0.1:0", "where this process can be asked while it leads")
	f.DurationVar(&c.ttl, "ttl", 2*time.Second, "how long the others wait for a leader that does not answer")
	f.DurationVar(&c.every, "every", 300*time.Millisecond, "how often the leader writes")
	f.IntVar(&c.freeze, "freeze", 0, "the number of the write before which this process stops itself; 0: none")
	return f
}

func run(ctx context.Context, args []string, out io.Writer) error {
	var c config
	if err := c.flags().Parse(args); err != nil {
		return err
	}
	cli, err := clientv3.New(clientv3.Config{
		Endpoints:         strings.Split(c.etcd, ","),
		DialKeepAliveTime: 10 * time.Second, DialKeepAliveTimeout: 3 * time.Second,
	})
	if err != nil {
		return err
	}
	defer cli.Close()
	store := etcd.New(cli)
	defer store.Close()
	client := lock.New(store, lock.WithTTL(c.ttl))
	defer func() {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		_ = client.Close(ctx) // what it could not release ends with its TTL
	}()
	door, err := net.Listen("tcp", c.listen)
	if err != nil {
		return err
	}
	r := &replica{config: c, client: client, fence: etcd.NewFence(cli), out: out, address: door.Addr().String()}
	return r.run(ctx, door)
}

// run serves, follows and stands for election, until ctx ends or one of these fails.
func (r *replica) run(ctx context.Context, door net.Listener) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	server := &http.Server{Handler: r, ReadHeaderTimeout: time.Second}
	context.AfterFunc(ctx, func() { _ = server.Close() })
	var all sync.WaitGroup
	for _, part := range []func() error{
		func() error { return server.Serve(door) },
		func() error { return r.follow(ctx) },
		func() error {
			return r.client.Lead(ctx, r.election, r.lead, lock.WithMetadata(map[string]string{
				"name": r.name, "address": r.address,
			}))
		},
	} {
		all.Go(func() { cancel(part()) })
	}
	all.Wait()
	if err := context.Cause(ctx); !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}
