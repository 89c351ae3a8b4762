package locktest

import (
	"context"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
	"unicode/utf8"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	lock "github.com/seed-215fdefa/lock"
)

func TestHarnessIsChecked(t *testing.T) {
	t.Parallel()
	h := Harness{
		TTL:    -time.Second,
		Faults: map[Fault]func(testing.TB, lock.Locker) func(){Fault(99): nil, Sever: nil},
		Skips:  map[string]string{"Exclusion/NoSuchCase": "a typing error", "Exclusion": ""},
	}
	err := h.check()
	require.Error(t, err)
	for _, want := range []string{
		"Harness.New is nil",
		"Harness.TTL is -1s",
		"Fault(99)", "LoseWakeup", // the valid ones are named
		"Harness.Faults[Sever] is nil",
		`"Exclusion/NoSuchCase"`, "\n\tExclusion/AmongProcesses/shared\n",
		`Harness.Skips["Exclusion"] gives no reason`,
	} {
		assert.ErrorContains(t, err, want)
	}
}

func TestSkipsNameCasesAndWhatIsAboveThem(t *testing.T) {
	t.Parallel()
	h := refHarness(flaws{}, nil)
	h.Skips = map[string]string{"Admin": "group", "Inspect/Holder": "row", "Inspect/Metadata/shared": "case"}
	require.NoError(t, h.check())
	for path, want := range map[string]string{
		"Admin/List/shared": "group", "Admin/ListStopped": "group", "Inspect/Holder/exclusive": "row",
		"Inspect/Metadata/shared": "case", "Inspect/Metadata/exclusive": "", "Inspect/FreeKey": "",
	} {
		reason, ok := h.skips(path)
		assert.Equal(t, want, reason, path)
		assert.Equal(t, want != "", ok, path)
	}
}

func TestNamesAreUnique(t *testing.T) {
	t.Parallel()
	seen := map[string]bool{}
	for _, c := range allCases() {
		assert.False(t, seen[c.path], c.path)
		assert.NotEmpty(t, c.sentence, c.path)
		assert.Regexp(t, `^[A-Z][A-Za-z]*(/[A-Z][A-Za-z]*)(/exclusive|/shared)?$`, c.path)
		seen[c.path] = true
	}
}

func TestHostileKeysAreValidAndDistinct(t *testing.T) {
	t.Parallel()
	seen := map[string]bool{}
	for _, key := range hostile() {
		assert.NoError(t, lock.CheckKey(key))
		assert.True(t, utf8.ValidString(key))
		assert.False(t, seen[key], "%q twice", key)
		seen[key] = true
	}
}

// TestFailureSaysWhatTheContractSays looks at the report of a case that a broken store
// fails.
func TestFailureSaysWhatTheContractSays(t *testing.T) {
	t.Parallel()
	for _, c := range allCases() {
		if c.path != "RenewNeverCreates/OfAnExpiredGrant/exclusive" {
			continue
		}
		r := record(t, refHarness(flaws{renewCreates: true}, nil), c)
		require.Len(t, r.failures, 1)
		assert.Equal(t, "the contract says: "+c.sentence+
			"\n\twanted: ErrLost from Renew of a grant that is not live\n\tseen:   <nil>", r.failures[0])
	}
}

func TestWatchdogBarksAndNamesTheCase(t *testing.T) {
	t.Parallel()
	reports := make(chan string, 1)
	dog := watch(time.Millisecond, "Group/Case", func(report string) { reports <- report })
	defer dog.stop()
	dog.arm()
	report := <-reports
	assert.Contains(t, report, "case Group/Case is stuck")
	assert.Contains(t, report, "TestWatchdogBarksAndNamesTheCase", "the dump has all goroutines")
}

func TestWatchdogIsQuietUntilArmedAndOnceStopped(t *testing.T) {
	t.Parallel()
	bark := func(string) { t.Error("it barked") }
	sleeping, stopped := watch(time.Nanosecond, "never armed", bark), watch(time.Hour, "stopped", bark)
	stopped.arm()
	stopped.stop()
	sleeping.stop()
}

func TestLimitEndsBeforeTheTestProgramDoes(t *testing.T) {
	t.Parallel()
	end, ok := t.Deadline()
	limit, _ := Harness{TTL: 24 * time.Hour}.limit(t)
	if ok {
		assert.LessOrEqual(t, limit, max(time.Until(end), time.Second))
	}
	limit, _ = Harness{}.limit(t)
	assert.LessOrEqual(t, limit, caseLimit+time.Minute)
}

func TestFaultString(t *testing.T) {
	t.Parallel()
	assert.Equal(t, "Sever LoseRecord Failover Fault(0) Fault(200)", strings.Join([]string{
		Sever.String(), LoseRecord.String(), Failover.String(), Fault(0).String(), Fault(200).String(),
	}, " "))
}

// pooled is a process whose Close waits until no call is under way.
type pooled struct {
	*refClient
	calls *sync.WaitGroup
}

func (p pooled) Unwrap() lock.Locker { return p.refClient }

func (p pooled) Acquire(ctx context.Context, req lock.Request) (lock.Grant, error) {
	p.calls.Add(1)
	defer p.calls.Done()
	return p.refClient.Acquire(ctx, req)
}

func (p pooled) Watch(ctx context.Context, key string, changed func()) error {
	p.calls.Add(1)
	defer p.calls.Done()
	return p.refClient.Watch(ctx, key, changed)
}

// TestCallsEndBeforeLockersAreClosed: otherwise the bubble of these cases is deadlocked.
func TestCallsEndBeforeLockersAreClosed(t *testing.T) {
	t.Parallel()
	h := refHarness(flaws{}, nil)
	keyspace := h.New
	h.New = func(tb testing.TB) func() lock.Locker {
		open := keyspace(tb)
		return func() lock.Locker {
			c, _ := lock.As[*refClient](open())
			p := pooled{c, new(sync.WaitGroup)}
			tb.Cleanup(p.calls.Wait)
			return p
		}
	}
	for _, c := range allCases() {
		if c.path == "Inspect/Waiters/exclusive" || c.path == "Watcher/Holders/exclusive" || c.path == "FailureLeavesNothing/AbandonedWaiter/exclusive" {
			assert.Empty(t, record(t, h, c).failures, c.path)
		}
	}
}

// TestErrorsOfTheStoresOwn: a call may fail by itself, also just before its ctx is ended.
func TestErrorsOfTheStoresOwn(t *testing.T) {
	t.Parallel()
	own := func(ctx context.Context, call func(ctx context.Context) error) error {
		limited, cancel := context.WithTimeout(ctx, Harness{}.ttl()/4)
		defer cancel()
		switch err := call(limited); {
		case err == nil:
			return nil
		case ctx.Err() != nil:
			return ctx.Err()
		}
		return errBroken
	}
	h := refHarness(flaws{}, alter(func(a *altered, c *refClient) {
		a.renew = func(ctx context.Context, g lock.Grant) (renewed lock.Grant, err error) {
			err = own(ctx, func(ctx context.Context) (err error) {
				renewed, err = c.Renew(ctx, g)
				return err
			})
			return renewed, err
		}
		a.inspect = func(ctx context.Context, key string) (rec lock.Record, err error) {
			err = own(ctx, func(ctx context.Context) (err error) {
				rec, err = c.Inspect(ctx, key)
				return err
			})
			return rec, err
		}
	}))
	for _, c := range allCases() {
		if c.path == "CancelIsPrompt/Freeze/exclusive" {
			for range repeats(200) {
				require.Empty(t, record(t, h, c).failures)
			}
		}
	}
}

// TestBenchmarkOfASlowLine: lining up takes longer than the TTL of the one who is in front.
func TestBenchmarkOfASlowLine(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		failed := false
		testing.Benchmark(func(b *testing.B) {
			defer func() { failed = failed || b.Failed() }()
			one := make(chan struct{}, 1)
			open := refHarness(flaws{}, alter(func(a *altered, c *refClient) {
				a.acquire = func(ctx context.Context, req lock.Request) (lock.Grant, error) {
					one <- struct{}{}
					time.Sleep(100 * time.Millisecond)
					<-one
					return c.Acquire(ctx, req)
				}
			})).New(b)
			ctx, cancel := context.WithCancel(context.Background())
			defer cancel()
			(&bench{B: b, ctx: ctx, cancel: cancel, callers: 16, ttl: time.Second, open: open}).contended()
		})
		assert.False(t, failed)
	})
}

// TestUndosThatOvertake: a request that comes after its undo may be granted, for its TTL.
func TestUndosThatOvertake(t *testing.T) {
	t.Parallel()
	tried := 0
	for _, c := range allCases() {
		if strings.Contains(c.path, "Freeze") {
			tried++
			assert.Empty(t, record(t, refHarness(flaws{overtakes: true}, nil), c).failures, c.path)
		}
	}
	assert.Greater(t, tried, 10)
}

// TestLimitsOfTheRealClock: what is let pass on a starved machine does not hide a wait that is too
// long on any machine.
func TestLimitsOfTheRealClock(t *testing.T) {
	t.Parallel()
	const (
		dead  = "/(ByTheNext|AfterALongTime|ByATry)/exclusive|/WithALongTTL|/BehindALivingReader|/OnlyALivingOne|/Abandoned(Waiter|AtTheHead)"
		many  = "/ManyOfThem"
		looks = "/LostWakeup"
	)
	for cases, f := range map[string]subtle{
		dead:  {longHeartbeat: true},
		many:  {deadOneByOne: true},
		looks: {slowRecheck: true},
	} {
		tried := 0
		for _, c := range allCases() {
			if regexp.MustCompile(cases).MatchString(c.path) {
				tried++
				assert.Empty(t, runIn(t, new(suite), refHarness(flaws{}, nil), c, true).failures, c.path)
				assert.NotEmpty(t, runIn(t, new(suite), refHarness(flaws{subtle: f}, nil), c, true).failures, c.path)
			}
		}
		assert.NotZero(t, tried, cases)
	}
}

// TestFailuresOfALateMachine: places in line may be lost then, and a failure counts otherwise only.
func TestFailuresOfALateMachine(t *testing.T) {
	t.Parallel()
	for _, late := range []bool{true, false} {
		var slow atomic.Bool
		h := refHarness(flaws{}, alter(func(a *altered, c *refClient) {
			a.inspect = func(ctx context.Context, key string) (lock.Record, error) {
				if slow.Load() {
					time.Sleep(2 * time.Second)
				}
				return c.Inspect(ctx, key)
			}
		}))
		tries := 0
		check := unlessLate(func(e *env) {
			tries++
			slow.Store(late && tries < 3)
			time.Sleep(5 * time.Second)
			if tries < 3 {
				e.fail("a place in line", "none")
			}
		})
		r := runIn(t, new(suite), h, testCase{row: row{check: check}}, true)
		if late {
			assert.Empty(t, r.failures)
			assert.Equal(t, 3, tries)
		} else {
			assert.Len(t, r.failures, 1)
			assert.Equal(t, 1, tries)
		}
	}
}

// TestRenewalsOfALateMachine: a grant that is shorter than asked is over if the suite is late to
// renew it.
func TestRenewalsOfALateMachine(t *testing.T) {
	t.Parallel()
	for _, stall := range []time.Duration{0, 3 * time.Second} {
		h := refHarness(flaws{}, alter(func(a *altered, c *refClient) {
			a.acquire = func(ctx context.Context, req lock.Request) (lock.Grant, error) {
				req.TTL = min(req.TTL, 2*time.Second)
				return c.Acquire(ctx, req)
			}
			a.renew = func(ctx context.Context, g lock.Grant) (lock.Grant, error) {
				time.Sleep(stall)
				return c.Renew(ctx, g)
			}
		}))
		r := record(t, h, testCase{row: row{check: func(e *env) {
			a, b := e.open(), e.open()
			first := e.lasting(a, e.rival(e.key()))
			time.Sleep(2500 * time.Millisecond)
			e.mustBeHeld(b, e.rival(first.g.Key))
		}}})
		assert.Empty(t, r.failures)
		assert.Equal(t, stall > 0, strings.Contains(r.skipped, "late with a renewal"), r.skipped)
	}
}
