//go:build unix

package main

import (
	"bytes"
	"regexp"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/examples/internal/program"
	"github.com/seed-215fdefa/lock/memory"
)

func TestMain(m *testing.M) { program.Main(m, main) }

// theStory is what the program prints. Placeholders stand for what varies: who came FIRST, what
// that one and the SECOND write (MINE, THEIRS), and the tokens.
const theStory = `0.00s story the account has 100; Ann books 50 and Bob 10, at the same time
0.00s FIRST has the lock, token OLD
0.00s FIRST reads 100
0.00s FIRST freezes, with 100 in hand (a long GC pause, a suspended machine)
0.00s SECOND waits: somebody else has the lock
0.99s FIRST has lost the lock, and its context has ended: lock: lost: expired (token OLD)
1.00s SECOND has the lock, token NEW
1.00s SECOND reads 100
1.00s SECOND writes THEIRS
1.00s SECOND releases the lock
2.00s FIRST wakes up, knows nothing of it, and writes MINE
2.00s FIRST is refused: lock: stale token OLD for "account:42": NEW has been seen
2.00s story without the token, MINE would have wiped out the other booking
2.00s FIRST tries again
2.00s FIRST has the lock, token LAST
2.00s FIRST reads THEIRS
2.00s FIRST writes 160
2.00s FIRST releases the lock
2.00s story the account has 160: both are booked, once each`

// TestStory has the story in fake time: each line at its moment. Which line of one moment
// comes first is the scheduler's choice.
func TestStory(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		require.NoError(t, run(t.Context(), &out))
		got, want := compare(t, out.String())
		require.Equal(t, want, got)
	})
}

// TestProgram runs the program as `go run` would. Its times are the machine's affair, as
// long as it comes to an end.
func TestProgram(t *testing.T) {
	p := program.Start(t)
	out, err := p.Wait()
	require.NoError(t, err, "%s", out)
	got, want := compare(t, out)
	require.ElementsMatch(t, untimed(want), untimed(got))
}

// TestLossIsNoError: a deposit whose lock is lost is booked once, be it lost before the booking or
// after it.
func TestLossIsNoError(t *testing.T) {
	for _, at := range []string{"reads", "writes"} {
		t.Run(at, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				store, lost := memory.NewFaulty(), 0
				b := &bank{
					story: &story{begin: time.Now(), out: writer(func(line string) {
						if strings.Contains(line, at) && lost == 0 {
							lost = store.Lose(account)
						}
					})},
					client: lock.New(store), balance: memory.NewValue(account, 100),
				}
				b.frozen.Store(true) // nobody freezes
				require.NoError(t, b.deposit(t.Context(), "Ann", 50))
				require.Equal(t, 1, lost)
				n, err := b.balance.Load(lock.MaxToken)
				require.NoError(t, err)
				require.Equal(t, 150, n)
				require.NoError(t, b.client.Close(t.Context()))
			})
		})
	}
}

type writer func(string)

func (w writer) Write(b []byte) (int, error) {
	w(string(b))
	return len(b), nil
}

// compare returns the lines of the output and those of the story, sorted.
func compare(t *testing.T, out string) (got, want []string) {
	t.Helper()
	grants := regexp.MustCompile(`(Ann|Bob) +has the lock, token (\d+)`).FindAllStringSubmatch(out, -1)
	require.Len(t, grants, 3, "%s", out)
	first, mine, theirs := "Ann", "150", "110"
	second := "Bob"
	if grants[0][1] == "Bob" {
		first, second, mine, theirs = second, first, theirs, mine
	}
	story := strings.NewReplacer("FIRST", first, "SECOND", second, "MINE", mine, "THEIRS", theirs,
		"OLD", grants[0][2], "NEW", grants[1][2], "LAST", grants[2][2]).Replace(theStory)
	out = regexp.MustCompile(` +`).ReplaceAllString(strings.TrimSpace(out), " ")
	got, want = strings.Split(out, "\n"), strings.Split(story, "\n")
	slices.Sort(got)
	slices.Sort(want)
	return got, want
}

func untimed(lines []string) []string {
	all := make([]string, len(lines))
	for i, line := range lines {
		_, all[i], _ = strings.Cut(line, " ")
	}
	return all
}
