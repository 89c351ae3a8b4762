package httplock_test

import (
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/seed-215fdefa/lock/internal/storetest"
)

var (
	consoles = regexp.MustCompile("(?s)```console\n(.*?)```")
	varying  = regexp.MustCompile(`[0-9a-f]{32}|5f0c…|[0-9]{16}`)
)

// TestSession runs the commands of docs/service.md and compares what they print with what the page
// shows. Owners and tokens may differ.
func TestSession(t *testing.T) {
	for _, tool := range []string{"bash", "curl", "jq", "od"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skip("there is no ", tool)
		}
	}
	t.Parallel()
	page, err := os.ReadFile("../docs/service.md")
	require.NoError(t, err)
	var script, want strings.Builder
	for _, block := range consoles.FindAllStringSubmatch(string(page), -1) {
		for line := range strings.Lines(block[1]) {
			if command, ok := strings.CutPrefix(line, "$ "); ok {
				script.WriteString(command)
			} else {
				want.WriteString(line)
			}
		}
	}
	var out []byte
	for range 5 { // a busy machine may be late for the renewal of the short grant
		s := serve(t, onMemory(t).Open)
		shell := exec.CommandContext(storetest.Bounded(t), "bash", "-eu", "-c", strings.ReplaceAll(script.String(), "127.0.0.1:8080", s.Addr))
		shell.Env = append(os.Environ(), "no_proxy=127.0.0.1")
		if out, err = shell.CombinedOutput(); err == nil && same(want.String(), string(out)) {
			return
		}
	}
	require.NoError(t, err, "%s", out)
	require.Equal(t, varying.ReplaceAllString(want.String(), "…"), varying.ReplaceAllString(string(out), "…"))
}

func same(want, out string) bool {
	return varying.ReplaceAllString(want, "…") == varying.ReplaceAllString(out, "…")
}
