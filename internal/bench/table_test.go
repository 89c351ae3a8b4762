package bench

import (
	"flag"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/seed-215fdefa/lock/internal/testserver"
)

var full = flag.Bool("table", false, "measure for minutes and print the table, instead of trying each measurement once")

func TestMain(m *testing.M) {
	flag.Parse()
	if *full {
		fmt.Println(machine())
	}
	testserver.VerifyTestMain(m)
}

// scale is how long things are measured.
type scale struct {
	slice, contended, ping, held time.Duration
	rounds, leases               int
}

func scales() scale {
	if *full {
		return scale{
			slice: 200 * time.Millisecond, contended: 5 * time.Second, ping: time.Second,
			held: time.Minute, rounds: 25, leases: 100_000,
		}
	}
	return scale{
		slice: 10 * time.Millisecond, contended: 50 * time.Millisecond, ping: 10 * time.Millisecond,
		held: 3 * time.Second, rounds: 1, leases: 1000,
	}
}

// table collects rows, and prints them when the measurements are over.
type table struct {
	title string
	head  []string
	rows  [][]string
}

func (t *table) add(cells ...string) { t.rows = append(t.rows, cells) }

func (t *table) print() {
	fmt.Printf("\n%s\n\n| %s |\n|%s\n", t.title, strings.Join(t.head, " | "), strings.Repeat(" --- |", len(t.head)))
	for _, r := range t.rows {
		fmt.Printf("| %s |\n", strings.Join(r, " | "))
	}
}

func machine() string {
	name := "unknown processor"
	if b, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		for line := range strings.Lines(string(b)) {
			if k, v, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(k) == "model name" {
				name = strings.TrimSpace(v)
				break
			}
		}
	}
	return fmt.Sprintf("%s, %d cores shared by server and client, %s, %s/%s",
		name, runtime.NumCPU(), runtime.Version(), runtime.GOOS, runtime.GOARCH)
}

// rate runs f in callers goroutines for d and returns operations per second.
func rate(callers int, d time.Duration, f func(caller, n int)) float64 {
	var ops atomic.Int64
	start := time.Now()
	var wg sync.WaitGroup
	for c := range callers {
		wg.Go(func() {
			for n := 0; n == 0 || time.Since(start) < d; n++ {
				f(c, n)
				ops.Add(1)
			}
		})
	}
	wg.Wait()
	return float64(ops.Load()) / time.Since(start).Seconds()
}

// pairs lets a and b take turns, and returns the medians of their rates and of a/b.
func pairs(s scale, callers int, a, b func(caller, n int)) (rateA, rateB, ratio float64) {
	rate(callers, s.slice, a) // connections and scripts are there afterwards
	rate(callers, s.slice, b)
	var as, bs, rs []float64
	for range s.rounds {
		x, y := rate(callers, s.slice, a), rate(callers, s.slice, b)
		as, bs, rs = append(as, x), append(bs, y), append(rs, x/y)
	}
	return median(as), median(bs), median(rs)
}

func median(v []float64) float64 {
	v = slices.Sorted(slices.Values(v))
	return v[len(v)/2]
}
