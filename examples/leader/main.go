// Leader elects one of several processes, by a lock in etcd that it holds for as long as it
// lives. Only the leader writes the term's plan, and a leader that was deposed without
// knowing it, a zombie, is refused. Start it in two terminals: the second waits. Interrupt
// the first, and the second leads at once; kill it (-9), or freeze it (-STOP), and the
// second leads when the TTL is over.
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
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/etcd"
	"github.com/seed-215fdefa/lock/examples/internal/pause"
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
	ttl      time.Duration
	every    time.Duration
	freeze   int
}

func (c *config) flags() *flag.FlagSet {
	f := flag.NewFlagSet("leader", flag.ContinueOnError)
	f.StringVar(&c.etcd, "etcd", "127.0.0.1:2379", "addresses of the members, with commas between them")
	f.StringVar(&c.election, "election", "plan", "what is led")
	f.StringVar(&c.name, "name", fmt.Sprint(os.Getpid()), "what this candidate is called")
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
	client := lock.New(store, lock.WithTTL(c.ttl), lock.WithMetadata(map[string]string{"name": c.name}))
	defer func() {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		_ = client.Close(ctx) // what it could not release ends with its TTL
	}()
	return (&candidate{config: c, client: client, fence: etcd.NewFence(cli), out: out}).run(ctx)
}

// candidate is this process.
type candidate struct {
	config
	client *lock.Client
	fence  *etcd.Fence
	out    io.Writer
	writes int
}

// run leads whenever it is elected, until ctx ends.
func (c *candidate) run(ctx context.Context) error {
	for {
		err := c.client.Do(ctx, c.election, c.lead)
		switch {
		case ctx.Err() != nil:
			return nil // and Do has released the lock
		case errors.Is(err, lock.ErrStale):
			c.say("is refused, for it leads no more")
		case errors.Is(err, lock.ErrLost):
			c.say("leads no more")
		default:
			return err
		}
	}
}

// lead is what only one process may do. The token is the number of its term.
func (c *candidate) lead(ctx context.Context, l *lock.Lease) error {
	c.say("leads, term %d", l.Token())
	for ctx.Err() == nil {
		if err := c.write(ctx, l.Token()); err != nil {
			return err
		}
		c.say("has written %d", c.writes)
		select {
		case <-time.After(c.every):
		case <-ctx.Done():
		}
	}
	return context.Cause(ctx)
}

// write is one transaction, refused if a later term has begun to write. Whether it comes in
// time is for the fence to say, so it is not given up when ctx ends meanwhile.
func (c *candidate) write(ctx context.Context, term lock.Token) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	c.writes++
	if c.writes == c.freeze {
		c.say("freezes")
		if err := pause.Self(); err != nil {
			return err
		}
		c.say("goes on, and writes %d", c.writes)
	}
	return c.fence.Put(ctx, "example/"+c.election, term, fmt.Sprintf("%s's plan number %d", c.name, c.writes))
}

// say writes one line with one call, as files and pipes like it.
func (c *candidate) say(format string, args ...any) {
	fmt.Fprintf(c.out, "%s %s\n", c.name, fmt.Sprintf(format, args...))
}
