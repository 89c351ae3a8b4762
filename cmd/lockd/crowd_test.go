package main

import (
	"context"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/httplock"
	"github.com/seed-215fdefa/lock/internal/testserver"
)

// TestThousandsWait: thousands wait for one key, each over a connection of its own; the service is
// killed, and starts again while they do; all are served, in order if no place can have expired.
// With LOCK_TEST_MANY=1 they are 2,000. Each polls about every two seconds, and two cores, shared by
// Redis and both sides, did not keep up with 4,000.
func TestThousandsWait(t *testing.T) {
	n := 200
	if os.Getenv("LOCK_TEST_MANY") != "" {
		n = 2_000
	}
	url := "redis://" + testserver.Redis(t).Addr()
	p := start(t, "--store", url)
	l := httplock.New("http://" + p.addr)
	t.Cleanup(func() { _ = l.Close() })
	holder, err := l.Acquire(t.Context(), lock.Request{Key: "k", Owner: "holder", TTL: time.Hour})
	require.NoError(t, err)
	rss := memory(t, p)

	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Minute)
	defer cancel()
	var waiters sync.WaitGroup
	order, errs := make(chan int, n), make(chan error, n)
	begun := time.Now()
	for i := range n {
		placed := make(chan struct{})
		req := lock.Request{
			Key: "k", Owner: "w" + strconv.Itoa(i), TTL: time.Minute, Wait: true,
			Waiting: func(lock.Record) { close(placed) },
		}
		waiters.Go(func() {
			g, err := l.Acquire(ctx, req)
			order <- i
			if err == nil {
				err = l.Release(ctx, g)
			}
			errs <- err
		})
		select {
		case <-placed:
		case <-ctx.Done():
			t.Fatal("placed", i, ctx.Err())
		}
	}
	t.Logf("%d wait after %v: %d bytes of the service each", n, time.Since(begun), (memory(t, p)-rss)/n)

	p.signal(syscall.SIGKILL)
	p.ended()
	begun = time.Now()
	start(t, "--store", url, "--listen", p.addr)
	require.NoError(t, l.Release(ctx, holder))
	waiters.Wait()
	took, last, overtaken := time.Since(begun), -1, 0
	for range n {
		require.NoError(t, <-errs)
		i := <-order
		if i < last {
			overtaken++
		}
		last = max(last, i)
	}
	t.Logf("all are served after %v; %d of them after one who came later", took, overtaken)
	if took < time.Second { // a place lives for 1.5 without a poll
		require.Zero(t, overtaken)
	}
}

// memory is the resident memory of lockd in bytes.
func memory(t *testing.T, p *process) int {
	t.Helper()
	_, body := p.get("/metrics")
	_, rest, found := strings.Cut(body, "\nprocess_resident_memory_bytes ")
	require.True(t, found)
	line, _, _ := strings.Cut(rest, "\n")
	f, err := strconv.ParseFloat(line, 64)
	require.NoError(t, err)
	return int(f)
}
