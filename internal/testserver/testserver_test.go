package testserver

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
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
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
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
	if isHelper() {
		helps(redis(t).Addr())
	}
	NeedServer(t)
	kill, addr := startHelper(t)
	pingErr := ping(addr)
	kill()
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

const helperEnv = "LOCK_TESTSERVER_HELPER"

func isHelper() bool { return os.Getenv(helperEnv) != "" }

// helps tells what to the test that has started this process, and returns when that has ended.
func helps(what string) {
	_, _ = os.Stdout.WriteString("helper: " + what + "\n")
	_, _ = io.Copy(io.Discard, os.Stdin)
}

// startHelper runs the test in a process of its own, and returns what it tells and what kills it.
func startHelper(t *testing.T) (kill func(), told string) {
	t.Helper()
	cmd := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$")
	// Where the dead one leaves its folder.
	cmd.Env = append(os.Environ(), helperEnv+"=1", "TMPDIR="+openTempDir(t))
	_, err := cmd.StdinPipe() // it ends with this process
	require.NoError(t, err)
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	for lines := bufio.NewScanner(out); told == "" && lines.Scan(); {
		told, _ = strings.CutPrefix(lines.Text(), "helper: ")
		if told == lines.Text() {
			told = ""
		}
	}
	return func() {
		require.NoError(t, cmd.Process.Kill())
		_ = cmd.Wait()
	}, told
}

// openTempDir is a folder that servers can use which run as other users.
func openTempDir(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for _, d := range []string{dir, filepath.Dir(dir)} {
		require.NoError(t, os.Chmod(d, 0o777))
	}
	return dir
}

func TestServersLeaveNoFolder(t *testing.T) {
	NeedServer(t)
	postgres := SharedPostgres(t)
	dir := openTempDir(t)
	t.Setenv("TMPDIR", dir)
	t.Run("servers", func(t *testing.T) {
		Nginx(t, postgres.Addr())
		PgBouncer(t, postgres)
	})
	left, err := os.ReadDir(dir)
	require.NoError(t, err)
	assert.Empty(t, left)
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

func TestContainersOfOthersAreLeftAlone(t *testing.T) {
	const none = 1 << 22 // above every PID
	host, _ := os.Hostname()
	assert.True(t, abandoned(owner(none)))
	assert.False(t, abandoned(owner(os.Getpid())))
	assert.False(t, abandoned(fmt.Sprintf("%s/pid:[1]/%d", host, none)), "of another namespace")
	assert.False(t, abandoned(""))
}

// program writes a shell script.
func program(t *testing.T, path, script string) {
	t.Helper()
	require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
	require.NoError(t, os.WriteFile(path, []byte("#!/bin/sh\n"+script+"\n"), 0o755))
}

func TestNewestVersionIsFound(t *testing.T) {
	dir := t.TempDir()
	for _, version := range []string{"v9", "v15", "v8.30"} {
		program(t, filepath.Join(dir, version, "server"), "")
	}
	path, err := findIn(filepath.Join(dir, "*"), "server")
	require.NoError(t, err)
	assert.Equal(t, filepath.Join(dir, "v15", "server"), path)
}

// A script runs the program that was found, whatever the PATH has of that name.
func TestFoundProgramIsTheOneThatRuns(t *testing.T) {
	dir := t.TempDir()
	old, found := filepath.Join(dir, "old"), filepath.Join(dir, "found", "server")
	program(t, filepath.Join(old, "server"), "echo old")
	program(t, found, "echo found")
	t.Setenv("PATH", old+string(os.PathListSeparator)+os.Getenv("PATH"))
	p, err := nativeSource{found}.prepare(&kind{name: "test", program: "server"}, []string{"sh", "-c", "exec server"})
	require.NoError(t, err)
	defer p.remove()
	require.NoError(t, p.start())
	<-p.(*native).gone
	assert.Equal(t, "found", p.log())
}

// A pull may take minutes.
func TestNothingIsPulledThatIsInstalled(t *testing.T) {
	dir := t.TempDir()
	host, _ := os.Hostname()
	docker := filepath.Join(dir, "bin", "docker")
	program(t, docker, `case $1 in info) echo "`+host+` []";; image) exit 1;; pull) touch "`+dir+`/pulled";; esac`)
	program(t, filepath.Join(dir, "v1", "server"), "")
	t.Setenv("PATH", filepath.Dir(docker)+string(os.PathListSeparator)+os.Getenv("PATH"))
	t.Setenv("LOCK_TEST_SERVERS", "")
	k := &kind{name: "test", image: "image", program: "server", places: []string{filepath.Join(dir, "v*")}}
	src, err := k.find()
	require.NoError(t, err)
	assert.IsType(t, nativeSource{}, src)
	assert.NoFileExists(t, filepath.Join(dir, "pulled"))

	k.file = filepath.Join(dir, "none") // without which the program is no server
	src, err = k.find()
	require.NoError(t, err)
	assert.Equal(t, dockerSource{}, src)
	assert.FileExists(t, filepath.Join(dir, "pulled"))
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
