//go:build linux

package chaos

import (
	"bufio"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/internal/testserver"
	"github.com/seed-215fdefa/lock/locktest/faultproxy"
	"github.com/seed-215fdefa/lock/semaphore"
)

var (
	storeFlag = flag.String("store", "", "the store of a campaign; without it, the short ones of CI")
	seedFlag  = flag.Uint64("seed", 1, "of the schedule and of the callers' choices")
	forFlag   = flag.Duration("for", time.Minute, "how long faults go on")
	outFlag   = flag.String("out", "", "folder where the journals are kept")
)

func TestMain(m *testing.M) {
	if env := os.Getenv(childEnv); env != "" {
		if err := runChild(env); err != nil {
			fmt.Fprintln(os.Stderr, "chaos:", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(testserver.Main{M: m}.Run())
}

// TestChaos is what `make chaos` runs, and a short campaign otherwise.
func TestChaos(t *testing.T) {
	testserver.NeedServer(t)
	if *storeFlag == "" {
		for _, store := range []string{"memory", "redis"} {
			t.Run(store, func(t *testing.T) {
				(&campaign{T: t, store: store, seed: *seedFlag, length: 20 * time.Second}).run().verdict(t)
			})
		}
		return
	}
	require.Contains(t, slices.Sorted(maps.Keys(worlds)), *storeFlag, "-store")
	(&campaign{T: t, store: *storeFlag, seed: *seedFlag, length: *forFlag}).run().verdict(t)
}

// TestBrokenStore is a campaign against a store that grants a held key at times.
func TestBrokenStore(t *testing.T) {
	testserver.NeedServer(t)
	for seed := uint64(1); ; seed++ { // a slow machine does less in the time
		r := (&campaign{T: t, store: "memory", flaw: "two holders", seed: seed, length: 5 * time.Second}).run()
		if len(r.violations["exclusion by deadline"]) > 0 {
			return
		}
		require.Less(t, seed, uint64(5), "%s", r)
	}
}

// campaign is one run against one store.
type campaign struct {
	*testing.T
	store  string
	flaw   string
	seed   uint64
	length time.Duration

	dir       string
	journal   *journal
	world     *world
	direct    *connection
	processes []*process
	began     time.Time

	mu      sync.Mutex // guards the rest
	started int        // processes, ever
}

// process is a place for one child after another.
type process struct {
	ways   []*faultproxy.Proxy
	number int // of the child that runs now
	cmd    *exec.Cmd
	in     io.WriteCloser
	out    *bufio.Scanner
}

// run returns what the checks say. It fails the test itself for what is left behind.
func (r *campaign) run() *report {
	r.prepare()
	var wg sync.WaitGroup
	wg.Go(func() {
		r.nemesis(1, append(r.wireFaults(), r.processFaults()...), [2]time.Duration{100 * time.Millisecond, 1500 * time.Millisecond})
	})
	wg.Go(func() { r.nemesis(2, r.forces(), [2]time.Duration{300 * time.Millisecond, 3 * time.Second}) })
	r.nemesis(0, r.world.faults, [2]time.Duration{300 * time.Millisecond, 2500 * time.Millisecond})
	wg.Wait()
	time.Sleep(r.length - time.Since(r.began))
	healed := time.Now()
	r.finish()
	r.leftovers(healed)
	return r.check()
}

func (r *campaign) prepare() {
	r.dir = r.TempDir()
	if *outFlag != "" {
		r.dir = filepath.Join(*outFlag, fmt.Sprintf("%s%s-%d", r.store, r.flaw, r.seed))
		require.NoError(r, os.RemoveAll(r.dir))
		require.NoError(r, os.MkdirAll(r.dir, 0o755))
	}
	var err error
	r.journal, err = openJournal(filepath.Join(r.dir, "000.json"), 0)
	require.NoError(r, err)
	r.world = worlds[r.store](r.T)
	r.direct, err = r.world.direct()
	require.NoError(r, err)
	r.Cleanup(r.direct.shut)
	servers := r.world.spec.Servers
	if r.world.spec.Fence != "" {
		servers = append(slices.Clone(servers), r.world.spec.Fence)
	}
	for range processes {
		p := &process{}
		for _, addr := range servers {
			p.ways = append(p.ways, faultproxy.New(r.T, addr))
		}
		r.processes = append(r.processes, p)
		r.start(p)
	}
	if r.Failed() {
		r.FailNow()
	}
	r.began = time.Now()
	r.Logf("store %s, seed %d, %v; %+v", r.store, r.seed, r.length, r.direct.locker.Capabilities())
}

// start runs a child in p. It is called by any goroutine, while no other looks at p.
func (r *campaign) start(p *process) {
	r.mu.Lock()
	r.started++
	p.number = r.started
	r.mu.Unlock()
	s := r.world.spec
	s.Proc, s.Seed, s.Flaw, s.Bare = p.number, r.seed, r.flaw, filepath.Join(r.dir, "bare")
	s.Journal = filepath.Join(r.dir, fmt.Sprintf("%03d.json", p.number))
	s.Ways = map[string]string{}
	for i, way := range p.ways {
		addr := s.Fence
		if i < len(s.Servers) {
			addr = s.Servers[i]
		}
		s.Ways[addr] = way.Addr()
	}
	env, _ := json.Marshal(s)
	p.cmd = exec.Command(os.Args[0])
	// One at a time: what keeps a goroutine of the child waiting keeps its watch waiting too.
	p.cmd.Env = append(os.Environ(), childEnv+"="+string(env), "GOMAXPROCS=1")
	p.cmd.Stderr = os.Stderr
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	p.in, _ = p.cmd.StdinPipe() // fails only for a command that has one
	out, _ := p.cmd.StdoutPipe()
	p.out = bufio.NewScanner(out)
	if err := p.cmd.Start(); err != nil {
		r.Error(err)
		return
	}
	r.Cleanup(p.kill)
}

func (p *process) kill() {
	_ = p.cmd.Process.Kill()
	_ = p.cmd.Wait()
}

// tell returns when the child has done what it was told. One that does not has its
// goroutines printed.
func (r *campaign) tell(p *process, command string) {
	_, _ = fmt.Fprintln(p.in, command)
	timer := time.AfterFunc(90*time.Second, func() { _ = p.cmd.Process.Signal(syscall.SIGQUIT) })
	defer timer.Stop()
	if !p.out.Scan() || p.out.Text() != command {
		r.Errorf("stuck: process %d does not %s: it says %q", p.number, command, p.out.Text())
	}
}

// finish ends the ops of half of the processes, and closes the others in the middle of them.
func (r *campaign) finish() {
	var wg sync.WaitGroup
	for i, p := range r.processes {
		wg.Go(func() {
			if i%2 == 0 {
				r.tell(p, "drain")
			} else {
				time.Sleep(3 * time.Second)
			}
			r.tell(p, "close")
		})
	}
	wg.Wait()
}

// leftovers checks that the dead block nothing, and tells what the store keeps.
func (r *campaign) leftovers(healed time.Time) {
	caps := r.direct.locker.Capabilities()
	time.Sleep(r.world.spec.TTL[1] + caps.ExpirySlack - time.Since(healed))
	probe := lock.New(r.direct.locker, lock.WithTTL(r.world.spec.TTL[1]))
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	for i := range shortKeys + longKeys {
		l, err := probe.Lock(ctx, keyName(i), lock.WithWait(5*time.Second)) // a starved machine's time
		if err != nil {
			r.Errorf("left behind: %s cannot be had %v after the last fault: %v", keyName(i), time.Since(healed), err)
			continue
		}
		require.NoError(r, l.Release(ctx))
	}
	all := semaphore.New(probe, semaphoreName, permits, lock.WithWait(5*time.Second))
	if err := all.Do(ctx, permits, func(context.Context, []semaphore.Permit) error { return nil }); err != nil {
		r.Errorf("left behind: not all permits can be had %v after the last fault: %v", time.Since(healed), err)
	}
	require.NoError(r, probe.Close(ctx)) // and what it lets go in the background is let go
	if admin, ok := lock.As[lock.Admin](r.direct.locker); ok {
		for rec, err := range admin.List(ctx, "") {
			require.NoError(r, err)
			r.Errorf("left behind: %+v", rec)
		}
	}
	if r.direct.raw == nil {
		return
	}
	raw, err := r.direct.raw(ctx)
	require.NoError(r, err)
	kinds := make(map[string]int)
	for _, name := range raw {
		kinds[hexNumber.ReplaceAllString(name, "#")]++
	}
	r.Logf("left in the store %v after the last fault: %v", time.Since(healed).Round(time.Second), kinds)
}

// hexNumber is what tells two of the same kind apart.
var hexNumber = regexp.MustCompile(`[0-9a-f]*[0-9][0-9a-f]*`)

// check reads the journals of all processes, of killed ones too.
func (r *campaign) check() *report {
	for _, p := range r.processes {
		_ = p.in.Close()
		_ = p.cmd.Wait()
	}
	h := history{caps: r.direct.locker.Capabilities()}
	names, _ := filepath.Glob(filepath.Join(r.dir, "*.json"))
	for _, name := range names {
		events, err := readJournal(name)
		require.NoError(r, err)
		h.events = append(h.events, events...)
	}
	return h.check()
}

// verdict logs the report, and fails the test for each violation, or if there was nothing to see.
func (rep *report) verdict(t *testing.T) {
	t.Logf("%s", rep)
	if why := rep.idle(); why != "" {
		t.Error(why)
	}
	for check, found := range rep.violations {
		t.Errorf("%s: %d violations", check, len(found))
	}
}

func TestIdleCampaign(t *testing.T) {
	busy := story{{Kind: kOp, Value: 1}, {Kind: kFault, Text: "kill server"}}
	require.Empty(t, history{events: busy}.check().idle())
	require.NotEmpty(t, history{events: busy[:1]}.check().idle())
	require.NotEmpty(t, history{events: busy[1:]}.check().idle())
	require.NotEmpty(t, history{events: story{busy[0], {Kind: kFault, Text: "force release"}}}.check().idle())
}

func TestSchedule(t *testing.T) {
	faults := []fault{{name: "a", weight: 3}, {name: "b", weight: 1}}
	pause := [2]time.Duration{time.Millisecond, time.Second}
	plan := func(seed, lane uint64) []step {
		return schedule(seed, lane, faults, time.Second, pause, 10*time.Minute)
	}
	require.Equal(t, plan(7, 0), plan(7, 0))
	require.NotEqual(t, plan(7, 0), plan(8, 0))
	require.NotEqual(t, plan(7, 0), plan(7, 1))
	count := make(map[int]int)
	for _, s := range plan(7, 0) {
		count[s.Fault]++
		require.Less(t, s.At%cycleLength, stormLength)
	}
	require.Greater(t, count[0], count[1])
	require.Positive(t, count[1])
}
