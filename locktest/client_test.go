package locktest

import (
	"context"
	"go/parser"
	"go/token"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	lock "github.com/seed-215fdefa/lock"
)

func clientCases() (cs []testCase) {
	for _, g := range clientGroups() {
		cs = append(cs, g.cases()...)
	}
	return cs
}

// TestBrokenClientsAreCaught breaks Clients, and shows which case found it. It fails too
// for a case that none of them fails.
func TestBrokenClientsAreCaught(t *testing.T) {
	skipUnderRace(t)
	t.Parallel()
	clients := brokenClients()
	var caught [][]string
	for _, b := range clients {
		caught = append(caught, b.caught)
	}
	failed := make([]map[string]string, len(clients))
	t.Run("clients", func(t *testing.T) {
		for i, b := range clients {
			t.Run(b.what, func(t *testing.T) {
				t.Parallel()
				h := refHarness(flaws{}, nil)
				h.newClient, h.newSemaphore = b.make, b.permits
				failed[i] = failing(t, h, tried(clientCases(), b.caught, caught))
				for _, path := range b.caught {
					if failed[i][path] == "" {
						t.Errorf("not caught by %s, but by %q", path, sortedKeys(failed[i]))
					}
				}
			})
		}
	})
	for _, c := range clientCases() {
		fails := func(f map[string]string) bool { return f[c.path] != "" }
		if !slices.ContainsFunc(failed, fails) {
			t.Errorf("no broken client fails %s: the case may not be able to", c.path)
		}
	}
}

// wholeSeconds is a sound store that grants whole seconds only, so slowly that five of its paces
// are none.
func wholeSeconds(a *altered, c *refClient) {
	a.acquire = func(ctx context.Context, req lock.Request) (lock.Grant, error) {
		time.Sleep(50 * time.Millisecond)
		req.TTL = (req.TTL + time.Second - 1).Truncate(time.Second)
		return c.Acquire(ctx, req)
	}
}

// TestSoundClientPasses runs the Client's own suite many times: it has no false positives.
func TestSoundClientPasses(t *testing.T) {
	t.Parallel()
	for name, h := range map[string]Harness{
		"nearby":                 refHarness(flaws{}, nil),
		"far, and whole seconds": refHarness(flaws{far: true}, alter(wholeSeconds)),
	} {
		runs := repeats(50)
		if name != "nearby" {
			runs = repeats(5)
		}
		for _, c := range clientCases() {
			t.Run(name+"/"+c.path, func(t *testing.T) {
				t.Parallel()
				for n := range runs {
					r := record(t, h, c)
					for _, f := range r.failures {
						t.Errorf("run %d: %s", n, f)
					}
					if r.skipped != "" {
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

// stall is the one time that a machine, or the way to a sound store, stands still.
type stall struct {
	mu   sync.Mutex // guards over
	over time.Time
}

func (s *stall) begin(d time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.over.IsZero() {
		s.over = time.Now().Add(d)
	}
}

// wait waits until it is over, if it has begun.
func (s *stall) wait(ctx context.Context) error {
	s.mu.Lock()
	over := s.over
	s.mu.Unlock()
	select {
	case <-time.After(time.Until(over)):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// atTheFirstLook: a look has its answer, and then nothing is renewed for longer than a TTL.
func (s *stall) atTheFirstLook(a *altered, c *refClient) {
	a.inspect = func(ctx context.Context, key string) (lock.Record, error) {
		rec, err := c.Inspect(ctx, key)
		s.begin(4 * time.Second)
		_ = s.wait(ctx)
		return rec, err
	}
	a.renew = func(ctx context.Context, g lock.Grant) (lock.Grant, error) {
		if err := s.wait(ctx); err != nil {
			return g, err
		}
		return c.Renew(ctx, g)
	}
}

// atTheFirstWait: the answer to a request that waits takes longer than a TTL.
func (s *stall) atTheFirstWait(a *altered, c *refClient) {
	a.acquire = func(ctx context.Context, req lock.Request) (lock.Grant, error) {
		if req.Wait {
			s.begin(1200 * time.Millisecond)
			if err := s.wait(ctx); err != nil {
				return lock.Grant{}, err
			}
		}
		return c.Acquire(ctx, req)
	}
}

// TestStallIsForgiven: no case blames a sound Client for a stall.
func TestStallIsForgiven(t *testing.T) {
	t.Parallel()
	for name, at := range map[string]func(s *stall, a *altered, c *refClient){
		"at the first look": (*stall).atTheFirstLook, "at the first wait": (*stall).atTheFirstWait,
	} {
		for _, c := range clientCases() {
			t.Run(name+"/"+c.path, func(t *testing.T) {
				t.Parallel()
				s := new(stall)
				r := record(t, refHarness(flaws{}, alter(func(a *altered, c *refClient) { at(s, a, c) })), c)
				for _, f := range r.failures {
					t.Error(f)
				}
			})
		}
	}
}

// TestDissolvesByAnyTokens: the case is not blind where each key counts its tokens from 1.
func TestDissolvesByAnyTokens(t *testing.T) {
	t.Parallel()
	h := refHarness(flaws{counterOnly: true}, nil)
	h.newClient = brokenClient{store: func(l lock.Locker) lock.Locker { return &hasty{lister: &lister{Locker: l}} }}.make
	for _, c := range clientCases() {
		for range 8 {
			if strings.HasPrefix(c.path, "Deadlocks/Dissolves/") {
				assert.NotEmpty(t, record(t, h, c).failures, c.path)
			}
		}
	}
}

// TestClientInFakeTime is the suite as a test of an application's store runs it.
func TestClientInFakeTime(t *testing.T) {
	h := refHarness(flaws{}, nil)
	h.Around = synctest.Test
	RunClient(t, h)
}

// TestClientSentences: what a failure says is promised is a run of whole sentences of the
// comments in package lock.
func TestClientSentences(t *testing.T) {
	t.Parallel()
	var texts []string
	for _, name := range []string{
		"client", "lease", "close", "options", "observe", "errors", "deadlock", "doall", "lead", "watch", "semaphore/semaphore",
	} {
		file, err := parser.ParseFile(token.NewFileSet(), "../"+name+".go", nil, parser.ParseComments)
		require.NoError(t, err)
		for _, doc := range file.Comments {
			for _, text := range regexp.MustCompile(`\n\n|(?m)^ *- `).Split(doc.Text(), -1) {
				texts = append(texts, strings.Join(strings.Fields(text), " "))
			}
		}
	}
	for _, c := range clientCases() {
		found := slices.ContainsFunc(texts, func(text string) bool { return wholeSentences(text, c.sentence) })
		assert.True(t, found, "%s: package lock does not say %q", c.path, c.sentence)
	}
}
