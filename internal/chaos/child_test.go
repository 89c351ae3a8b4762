//go:build linux

package chaos

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/semaphore"
)

// childEnv makes the test binary a process of a campaign. Its value is a spec.
const childEnv = "LOCK_CHAOS_CHILD"

const (
	processes = 4
	workers   = 5 // in each process
	shortKeys = 10
	longKeys  = 3 // of the first worker of each process, which holds for about a TTL
	permits   = 3 // of the semaphore that all processes share

	semaphoreName = "permits"
)

func keyName(i int) string { return fmt.Sprintf("key-%d", i) }

func keyNumber(name string) int64 {
	i, _ := strconv.ParseInt(strings.TrimPrefix(name, "key-"), 10, 64)
	return i
}

// spec is what a process is told.
type spec struct {
	Store     string
	Servers   []string
	Fence     string            // the Redis of the fenced registers, where the store is Redis
	Master    string            // the name that Sentinels know it by
	Sentinels []string          // reached without a detour
	Ways      map[string]string // from servers' addresses to this process's proxies
	Bare      string            // the file of the registers that have no fence
	Journal   string
	Proc      int
	Seed      uint64
	TTL       [2]time.Duration // least and most
	Flaw      string           // see tap
}

// child is one process of a campaign.
type child struct {
	spec
	journal *journal
	conn    *connection
	client  *lock.Client
	bare    *os.File
	ops     atomic.Int64
	stop    atomic.Bool
	wg      sync.WaitGroup // of workers

	semaphore *semaphore.Semaphore
}

// runChild is the whole life of a process. It ends when its standard input does, at the
// latest, so that it does not outlive the test.
func runChild(env string) error {
	c := &child{}
	err := json.Unmarshal([]byte(env), &c.spec)
	if err != nil {
		return err
	}
	if c.journal, err = openJournal(c.Journal, c.Proc); err != nil {
		return err
	}
	if c.bare, err = os.OpenFile(c.Bare, os.O_CREATE|os.O_RDWR, 0o600); err != nil {
		return err
	}
	go c.watch()
	base := settled(0)
	if c.conn, err = open(c.spec); err != nil {
		return err
	}
	c.client = lock.New(&tap{Locker: c.conn.locker, journal: c.journal, flaw: c.Flaw})
	c.semaphore = semaphore.New(c.client, semaphoreName, permits, lock.WithTTL(c.TTL[0]))
	for i := range workers {
		c.wg.Go(func() { c.work(i) })
	}
	commands := bufio.NewScanner(os.Stdin)
	for commands.Scan() {
		switch commands.Text() {
		case "drain": // end the ops under way, begin no more
			c.stop.Store(true)
			c.wg.Wait()
		case "close":
			c.close(base)
		}
		fmt.Println(commands.Text())
	}
	return commands.Err()
}

// close ends everything, in the middle of ops unless they were drained, and writes down
// what goroutines it leaves.
func (c *child) close(base int) {
	e := event{Kind: kClosed, At: now()}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	err := c.client.Close(ctx)
	e.End, e.Err, e.Text = now(), classOf(err), text(err)
	c.stop.Store(true)
	c.wg.Wait()
	c.conn.shut()
	if n := settled(base) - base; n > 0 {
		buf := make([]byte, 1<<20)
		e.Value, e.Text = int64(n), string(buf[:runtime.Stack(buf, true)])
	}
	c.journal.add(e)
}

// settled returns the number of goroutines once it is no more than n, or after 5 s.
func settled(n int) int {
	for range 500 {
		if have := runtime.NumGoroutine(); have <= n {
			return have
		}
		if n == 0 {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	return runtime.NumGoroutine()
}

// watch writes down when this process did not get to run.
func (c *child) watch() {
	const step, late = 2 * time.Millisecond, 5 * time.Millisecond
	for {
		at := now()
		time.Sleep(step)
		if now()-at > int64(step+late) {
			c.journal.add(event{Kind: kLate, At: at})
		}
	}
}
