package locktest

import (
	"context"
	"flag"
	"fmt"
	"io"
	"maps"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"text/tabwriter"
	"time"

	"go.uber.org/goleak"

	lock "github.com/seed-215fdefa/lock"
)

// underRace says whether the tests run with the race detector.
var underRace bool

func TestMain(m *testing.M) {
	flag.Parse()
	if !underRace { // most of it is work in fake time, then, and no waiting
		_ = flag.Set("test.parallel", strconv.Itoa(runtime.GOMAXPROCS(0)))
	}
	goleak.VerifyTestMain(m)
}

// recorder is where the failures of a case go that is expected to fail.
type recorder struct {
	mu       sync.Mutex // guards both
	failures []string
	skipped  string
}

func (r *recorder) Helper() {}

func (r *recorder) Errorf(format string, args ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.failures = append(r.failures, fmt.Sprintf(format, args...))
}

// ended is what FailNow and SkipNow panic with, to end the case but not the test.
type ended struct{}

func (r *recorder) FailNow() { panic(ended{}) }
func (r *recorder) SkipNow() { panic(ended{}) }

// record runs a case and returns what it reported, without failing t.
func record(t *testing.T, h Harness, c testCase) *recorder {
	t.Helper()
	return recordIn(t, new(suite), h, c)
}

// recordIn is record as a part of s. The pace is measured before, as most cases of Run find it: it
// would make a connection for the first Locker.
func recordIn(t *testing.T, s *suite, h Harness, c testCase) *recorder {
	t.Helper()
	if s.pace == 0 {
		runIn(t, s, h, testCase{row: row{check: func(*env) {}}}, false)
	}
	return runIn(t, s, h, c, false)
}

// runIn runs a case, if patient with the limits of the real clock.
func runIn(t *testing.T, s *suite, h Harness, c testCase, patient bool) *recorder {
	t.Helper()
	r := new(recorder)
	dog := watch(10*time.Minute, c.path, panics) // some are all work, and slow beside other work
	defer dog.stop()
	h.around(t, func(t *testing.T) {
		dog.arm()
		e := newEnv(t, r, h, c)
		e.crowd, e.suite, e.fake = 50, s, e.fake && !patient
		e.onSkip = func(reason string) { r.skipped = reason }
		defer func() {
			if p := recover(); p != nil && p != (ended{}) {
				panic(p)
			}
		}()
		e.run()
	})
	return r
}

func allCases() (cs []testCase) {
	for _, g := range groups() {
		cs = append(cs, g.cases()...)
	}
	return cs
}

// failing are the paths of the cases that a store fails, and one of the failures.
func failing(t *testing.T, h Harness, cases []testCase) map[string]string {
	t.Helper()
	failed := map[string]string{}
	for _, c := range cases {
		if r := record(t, h, c); len(r.failures) > 0 {
			failed[c.path] = r.failures[0]
		}
	}
	return failed
}

// tried are the cases that try what is broken: those that must catch it, and those that need not
// catch anything else, since one of them must fail each of these. With -v it is all of them.
func tried(all []testCase, caught []string, anybody [][]string) (cases []testCase) {
	named := slices.Concat(anybody...)
	for _, c := range all {
		if testing.Verbose() || slices.Contains(caught, c.path) || !slices.Contains(named, c.path) {
			cases = append(cases, c)
		}
	}
	return cases
}

// skipUnderRace skips what runs each case a hundred times with stores that are not sound: the race
// detector sees the same code with one that is, and make test runs this without it.
func skipUnderRace(t *testing.T) {
	t.Helper()
	if underRace {
		t.Skip("it runs without the race detector")
	}
}

// repeats is how often a case runs that must pass: n times, but twice with -short or the race detector.
func repeats(n int) int {
	if underRace || testing.Short() {
		return 2
	}
	return n
}

// TestBrokenStoresAreCaught breaks a sound store in one way after the other, and shows
// which case of the suite found it. It fails too for a case that none of them fails.
func TestBrokenStoresAreCaught(t *testing.T) {
	skipUnderRace(t)
	t.Parallel()
	stores := brokenStores()
	var caught [][]string
	for _, b := range stores {
		caught = append(caught, b.caught)
	}
	failed := make([]map[string]string, len(stores))
	t.Run("stores", func(t *testing.T) {
		for i, b := range stores {
			t.Run(b.what, func(t *testing.T) {
				t.Parallel()
				failed[i] = failing(t, refHarness(b.flaws, b.wrap), tried(allCases(), b.caught, caught))
				for _, path := range b.caught {
					if failed[i][path] == "" {
						t.Errorf("not caught by %s, but by %q", path, sortedKeys(failed[i]))
					}
				}
			})
		}
	})
	if testing.Verbose() {
		table(os.Stdout, stores, failed)
	}
	for _, c := range allCases() {
		fails := func(f map[string]string) bool { return f[c.path] != "" }
		if !slices.ContainsFunc(failed, fails) {
			t.Errorf("no broken store fails %s: the case may not be able to", c.path)
		}
	}
}

// table shows what caught each store, and what followed from its flaw.
func table(out io.Writer, stores []broken, failed []map[string]string) {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "BROKEN STORE\tCAUGHT BY\tFAILS TOO")
	for i, b := range stores {
		rest := maps.Clone(failed[i])
		for _, path := range b.caught {
			delete(rest, path)
		}
		fmt.Fprintf(w, "%s\t%s\t%s\n", b.what, strings.Join(b.caught, ", "), summary(rest))
	}
	_ = w.Flush()
}

func sortedKeys[V any](m map[string]V) []string {
	var ks []string
	for k := range m {
		ks = append(ks, k)
	}
	slices.Sort(ks)
	return ks
}

// summary names the groups, and how many cases of each.
func summary(failed map[string]string) string {
	n := map[string]int{}
	for path := range failed {
		group, _, _ := strings.Cut(path, "/")
		n[group]++
	}
	var parts []string
	for _, g := range sortedKeys(n) {
		parts = append(parts, fmt.Sprintf("%s (%d)", g, n[g]))
	}
	return strings.Join(parts, ", ")
}

// soundStores keep the contract, each in its own way.
func soundStores() map[string]Harness {
	inspectsFirst := alter(func(a *altered, c *refClient) {
		a.acquire = func(ctx context.Context, req lock.Request) (lock.Grant, error) {
			if err := lock.CheckRequest(req, c.Capabilities()); err != nil {
				return lock.Grant{}, err
			}
			asking, answered := c.bounded(ctx, false)
			_, err := c.Inspect(asking, "another")
			answered()
			if err != nil {
				return lock.Grant{}, err
			}
			return c.Acquire(ctx, req)
		}
	})
	firstReplyOnly := refHarness(flaws{handshakes: true}, nil)
	firstReplyOnly.Strike = nil
	return map[string]Harness{
		"plain":            refHarness(flaws{}, nil),
		"far away":         refHarness(flaws{far: true, handshakes: true}, nil),
		"two round trips":  refHarness(flaws{}, inspectsFirst),
		"far, two, cold":   refHarness(flaws{far: true, handshakes: true}, inspectsFirst),
		"without a Strike": firstReplyOnly,
	}
}

// TestReasonMayBeLate: a service answers a renewal before it has heard from its store why the grant
// is lost.
func TestReasonMayBeLate(t *testing.T) {
	t.Parallel()
	for _, c := range allCases() {
		if strings.HasPrefix(c.path, "Admin/ForceRelease/") {
			if r := record(t, refHarness(flaws{}, reasonAfter(1)), c); len(r.failures) > 0 || r.skipped != "" {
				t.Errorf("%s: %q, skipped: %q", c.path, r.failures, r.skipped)
			}
		}
	}
}

// TestSoundStorePasses runs the suite a hundred times on stores that keep the contract: it
// has no false positives, and no fault of theirs misses.
func TestSoundStorePasses(t *testing.T) {
	t.Parallel()
	for name, h := range soundStores() {
		runs := repeats(5)
		if name == "plain" {
			runs = repeats(100)
		}
		for _, c := range allCases() {
			t.Run(name+"/"+c.path, func(t *testing.T) {
				t.Parallel()
				for n := range runs {
					r := record(t, h, c)
					for _, f := range r.failures {
						t.Errorf("run %d: %s", n, f)
					}
					if r.skipped != "" && !strings.Contains(c.path, "IsRefused") && r.skipped != "Harness has no Strike and no Proxy" {
						t.Errorf("run %d: skipped: %s", n, r.skipped)
					}
					if t.Failed() {
						return
					}
				}
			})
		}
	}
}
