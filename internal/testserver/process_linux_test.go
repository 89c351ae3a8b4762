package testserver

import (
	"fmt"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// What is frozen does not notice that its parent is gone.
func TestFrozenServersAreGoneWithTheirProcess(t *testing.T) {
	NeedServer(t)
	if src, _ := postgresKind.source(); src == (dockerSource{}) {
		t.Skip("needs a server that is no container")
	}
	if isHelper() {
		s := postgres(t)
		s.Pause()
		pids := fmt.Sprint(family(s.inst.proc.(*native).cmd.Process.Pid))
		helps(strings.Trim(pids, "[]"))
	}
	kill, told := startHelper(t)
	kill()
	pids := strings.Fields(told)
	require.Greater(t, len(pids), 1)
	eventually(t, stopTimeout, "the end of all", func() error {
		for _, s := range pids {
			pid, err := strconv.Atoi(s)
			require.NoError(t, err)
			if state, _ := stat(pid); state == 'T' {
				return assert.AnError
			}
		}
		return nil
	})
}
