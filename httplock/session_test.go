package httplock_test

import (
	"context"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
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
	s := serve(t, onMemory(t).open)
	var script, want strings.Builder
	for _, block := range consoles.FindAllStringSubmatch(string(page), -1) {
		for line := range strings.Lines(block[1]) {
			if command, ok := strings.CutPrefix(line, "$ "); ok {
				script.WriteString(strings.ReplaceAll(command, "127.0.0.1:8080", s.addr))
			} else {
				want.WriteString(line)
			}
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	shell := exec.CommandContext(ctx, "bash", "-eu", "-c", script.String())
	shell.Env = append(os.Environ(), "no_proxy=127.0.0.1")
	out, err := shell.CombinedOutput()
	require.NoError(t, err, "%s", out)
	require.Equal(t, varying.ReplaceAllString(want.String(), "…"), varying.ReplaceAllString(string(out), "…"))
}
