package testserver

import (
	"bufio"
	"bytes"
	"context"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(Main{M: m}) }

func TestKillLosesDataAndKeepsTheAddress(t *testing.T) {
	s := Redis(t)
	needControl(t, s)
	addr := s.Addr()
	s.call("SET", "k", "v")

	s.Kill()
	require.Error(t, ping(addr))
	s.Kill() // a dead server stays dead
	s.Start()

	assert.Equal(t, addr, s.Addr())
	assert.Nil(t, s.call("GET", "k"))
}

func TestStopWritesWhatTheServerPersists(t *testing.T) {
	s := Redis(t, "--save", "3600 1")
	s.call("SET", "k", "v")

	s.Stop()
	require.Error(t, ping(s.Addr()))
	s.Start()

	assert.Equal(t, "v", s.call("GET", "k"))
}

func TestKillKeepsAnAppendOnlyFile(t *testing.T) {
	s := Redis(t, "--appendonly", "yes", "--appendfsync", "always")
	s.call("SET", "k", "v")

	s.Kill()
	s.Start()

	assert.Equal(t, "v", s.call("GET", "k"))
}

func TestPauseAnswersNothingUntilResume(t *testing.T) {
	s := Redis(t)
	needControl(t, s)
	s.Resume() // not frozen: nothing to do
	s.Pause()
	ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
	defer cancel()
	require.ErrorIs(t, redisReady(ctx, s.Addr()), os.ErrDeadlineExceeded, "the connection opens, no answer comes")
	s.Resume()
	require.NoError(t, ping(s.Addr()))

	s.Pause()
	s.Stop() // thaws it first
	s.Start()
	require.NoError(t, ping(s.Addr()))

	s.Pause() // and the test's end must cope with it
}

func TestServersAreGoneWithTheirTest(t *testing.T) {
	for _, state := range []string{"running", "frozen", "dead"} {
		var s *Server
		t.Run(state, func(t *testing.T) {
			s = Redis(t)
			needControl(t, s)
			switch state {
			case "frozen":
				s.Pause()
			case "dead":
				s.Kill()
			}
		})
		if s != nil && s.Controlled() {
			assert.False(t, s.inst.isAlive(), state)
			assert.Error(t, ping(s.Addr()), state)
		}
	}
}

// A test process that is killed can clean up nothing by itself.
func TestServersAreGoneWithTheirProcess(t *testing.T) {
	const helper = "LOCK_TESTSERVER_HELPER"
	if os.Getenv(helper) != "" {
		_, _ = os.Stdout.WriteString("addr " + redis(t).Addr() + "\n")
		select {}
	}
	NeedServer(t)
	cmd := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$")
	cmd.Env = append(os.Environ(), helper+"=1", "TMPDIR="+t.TempDir()) // where the dead one leaves its folder
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	var addr string
	for lines := bufio.NewScanner(out); addr == "" && lines.Scan(); {
		addr, _ = strings.CutPrefix(lines.Text(), "addr ")
	}
	pingErr := ping(addr)
	require.NoError(t, cmd.Process.Kill())
	_ = cmd.Wait()
	require.NoError(t, pingErr)

	if src, _ := redisKind.source(); src == (dockerSource{}) {
		sweep()
	}
	eventually(t, stopTimeout, "the server's end", func() error {
		if ping(addr) == nil {
			return assert.AnError
		}
		return nil
	})
}

func TestSharedIsOneServerAndMended(t *testing.T) {
	first := SharedRedis(t)
	assert.Equal(t, first.Addr(), SharedRedis(t).Addr())
	assert.NotEqual(t, Prefix(), Prefix())
	needControl(t, first)
	first.Pause()
	require.NoError(t, ping(SharedRedis(t).Addr()), "frozen")
	first.Kill()
	require.NoError(t, ping(SharedRedis(t).Addr()), "dead")
}

func TestStartTellsWhatTheServerSaid(t *testing.T) {
	NeedServer(t)
	_, err := newInstance(redisKind, 1, func(p []int) []string { return redisCommand(p[0], "--nonsense", "1") })
	require.ErrorContains(t, err, "nonsense")
}

func TestAPortTakenIsTriedElsewhere(t *testing.T) {
	NeedServer(t)
	busy := Redis(t)
	needControl(t, busy)
	_, taken := busy.hostPort()
	tries := 0
	inst, err := newInstance(redisKind, 1, func(p []int) []string {
		if tries++; tries == 1 {
			return append(redisCommand(p[0]), "--cluster-enabled", "yes", "--cluster-port", taken)
		}
		return redisCommand(p[0])
	})
	require.NoError(t, err)
	assert.Equal(t, 2, tries)
	assert.NoError(t, inst.close())
}

// PostgreSQL says so in other words than the kernel.
func TestAPortOfPostgresTakenIsTriedElsewhere(t *testing.T) {
	NeedServer(t)
	busy := Redis(t)
	needControl(t, busy)
	_, taken := busy.hostPort()
	tries := 0
	inst, err := newInstance(postgresKind, 1, func(p []int) []string {
		if tries++; tries == 1 {
			return postgresCommand(p[0], "", "-c", "port="+taken)
		}
		return postgresCommand(p[0], "")
	})
	require.NoError(t, err)
	assert.Equal(t, 2, tries)
	assert.NoError(t, inst.close())
}

func TestPortsAreGivenOnce(t *testing.T) {
	a, err := reservePorts(blockSize)
	require.NoError(t, err)
	b, err := reservePorts(blockSize)
	require.NoError(t, err)
	all := slices.Concat(a, b)
	slices.Sort(all)
	assert.Len(t, slices.Compact(all), 2*blockSize)
}

// The image's name is in two places, since a package can embed nothing from above it.
func TestImagesAreThoseOfCompose(t *testing.T) {
	compose, err := os.ReadFile("../../compose.yaml")
	require.NoError(t, err)
	for _, k := range []*kind{redisKind, etcdKind, postgresKind, pgbouncerKind, nginxKind, zookeeperKind, dynamoKind} {
		assert.True(t, bytes.Contains(compose, []byte("image: "+k.image+"\n")), k.image)
	}
}

func TestDockerOfAnotherNetworkIsPassedOver(t *testing.T) {
	for info, want := range map[string]bool{
		"here [name=seccomp,profile=builtin name=cgroupns]": true,
		"here []": true,
		"docker-desktop [name=seccomp,profile=unconfined]":       false,
		"here [name=seccomp,profile=builtin name=rootless]":      false,
		"here [name=seccomp,profile=builtin name=userns]":        false,
		"here.far.away [name=apparmor name=seccomp,profile=x y]": false,
		"": false,
	} {
		assert.Equal(t, want, sharesNetwork(info, "here"), info)
	}
}

func ping(addr string) error { return redisReady(context.Background(), addr) }

func needControl(t *testing.T, s *Server) {
	t.Helper()
	if !s.Controlled() {
		t.Skip("needs control of the server")
	}
}
