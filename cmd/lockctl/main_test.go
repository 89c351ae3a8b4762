package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"syscall"
	"testing"

	goredis "github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/httplock"
	"github.com/seed-215fdefa/lock/internal/testserver"
	"github.com/seed-215fdefa/lock/memory"
	"github.com/seed-215fdefa/lock/redis"
)

// TestMain is lockctl itself for the processes that tests start, and CMD for some of them.
func TestMain(m *testing.M) {
	switch {
	case len(os.Args) > 1 && os.Args[1] == criticalCommand:
		os.Exit(critical(os.Args[2:]))
	case os.Getenv("LOCKCTL_TEST") != "":
		main()
	}
	os.Exit(testserver.Main{M: m}.Run())
}

// lockctl returns a command that runs lockctl on the store at url.
func lockctl(t *testing.T, url string, args ...string) *exec.Cmd {
	t.Helper()
	self, err := os.Executable()
	require.NoError(t, err)
	cmd := exec.Command(self, args...)
	cmd.Env = append(os.Environ(), "LOCKCTL_TEST=1", "LOCKCTL_STORE="+url)
	return cmd
}

// outcome runs lockctl to its end.
func outcome(t *testing.T, url string, args ...string) (status int, stdout, stderr string) {
	t.Helper()
	cmd := lockctl(t, url, args...)
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	if err := cmd.Run(); err != nil {
		require.IsType(t, &exec.ExitError{}, err)
	}
	return cmd.ProcessState.ExitCode(), out.String(), errOut.String()
}

// client returns a Client of the server's locks, and the URL of the same.
func client(t *testing.T) (c *lock.Client, url string, s *testserver.Server) {
	t.Helper()
	s = testserver.Redis(t)
	rdb := goredis.NewClient(&goredis.Options{Addr: s.Addr()})
	l := redis.New(rdb)
	c = lock.New(l)
	t.Cleanup(func() {
		assert.NoError(t, c.Close(context.Background()))
		assert.NoError(t, l.Close())
		assert.NoError(t, rdb.Close())
	})
	return c, "redis://" + s.Addr(), s
}

// TestReadme runs the README's line, without the go command in front and the comment behind.
func TestReadme(t *testing.T) {
	readme, err := os.ReadFile("../../README.md")
	require.NoError(t, err)
	line := regexp.MustCompile(`(?m)^go run -C cmd ./lockctl (.*?) +#`).FindSubmatch(readme)
	require.NotNil(t, line)
	status, out, errOut := outcome(t, "", strings.Fields(string(line[1]))...)
	require.Zero(t, status, errOut)
	require.Regexp(t, `(?m)^LOCK_TOKEN=\d+$`, out)
}

func TestUsage(t *testing.T) {
	for _, c := range []struct {
		args   []string
		status int
		says   string
	}{
		{nil, 0, "usage: lockctl"},
		{[]string{"help", "run"}, 0, "--grace"},
		{[]string{"help", "stores"}, 0, "redis+sentinel://"},
		{[]string{"run", "-h"}, 0, "--grace"},
		{[]string{"juggle"}, exitUsage, `unknown command "juggle"`},
		{[]string{"run", "key"}, exitUsage, "want KEY -- CMD"},
		{[]string{"run", "--ttl", "soon", "key", "--", "true"}, exitUsage, `"soon"`},
		{[]string{"run", "-n", "--wait", "1s", "key", "--", "true"}, exitUsage, "choose one"},
		{[]string{"run", "-E", "256", "key", "--", "true"}, exitUsage, "0 to 255"},
		{[]string{"run", "--ttl", "3s", "--grace", "3s", "key", "--", "true"}, exitUsage, "leaves nothing"},
		{[]string{"run", "--min-hold", "-1s", "key", "--", "true"}, exitUsage, "must not be negative"},
		{[]string{"run", "", "--", "true"}, exitUsage, "key"},
		{[]string{"run", "key", "--", "no-such-command"}, 127, "command not found"},
		{[]string{"run", "key", "--", "/etc/passwd"}, 126, "permission denied"},
		{[]string{"inspect"}, exitUsage, "want KEY"},
		{[]string{"--store", "ftp://x", "ls"}, exitUsage, `unknown scheme "ftp"`},
		{[]string{"--store", "redis://u:geheim@h/x", "ls"}, exitUsage, `database "x"`},
		{[]string{"--store", "redis://u:geheim@127.0.0.1:1", "ls"}, exitUnavailable, "refused"},
	} {
		status, out, errOut := outcome(t, "memory:", c.args...)
		assert.Equal(t, c.status, status, "%q: %s", c.args, errOut)
		assert.Contains(t, out+errOut, c.says, "%q", c.args)
		assert.NotContains(t, out+errOut, "geheim", "%q", c.args)
	}
}

func TestStatusOfCommand(t *testing.T) {
	for script, want := range map[string]int{"exit 0": 0, "exit 3": 3, "kill -TERM $$": 128 + 15, "kill -KILL $$": 128 + 9} {
		status, _, errOut := outcome(t, "memory:", "run", "key", "--", "sh", "-c", script)
		assert.Equal(t, want, status, "%s: %s", script, errOut)
	}
}

func TestEnvironment(t *testing.T) {
	status, out, _ := outcome(t, "memory:", "run", "a key", "sh", "-c", `echo "$LOCK_KEY,$LOCK_TOKEN,$LOCK_OWNER"`)
	assert.Zero(t, status)
	parts := strings.Split(strings.TrimSpace(out), ",")
	require.Len(t, parts, 3)
	assert.Equal(t, "a key", parts[0])
	_, err := lock.ParseToken(parts[1])
	assert.NoError(t, err)
	assert.NotEmpty(t, parts[2])
}

func TestHeld(t *testing.T) {
	c, url, _ := client(t)
	l, err := c.Lock(t.Context(), "job", lock.WithMetadata(map[string]string{"why": "the\nnight"}))
	require.NoError(t, err)

	status, _, errOut := outcome(t, url, "run", "-n", "job", "--", "true")
	assert.Equal(t, exitHeld, status)
	assert.Contains(t, errOut, "held")
	status, _, _ = outcome(t, url, "run", "-n", "-E", "0", "job", "--", "false")
	assert.Zero(t, status, "-E 0")
	status, _, _ = outcome(t, url, "hold", "--wait", "10s", "-E", "9", "job")
	assert.Equal(t, 9, status)

	_, out, _ := outcome(t, url, "ls")
	assert.Contains(t, out, l.Owner())
	assert.Contains(t, out, `why="the\nnight"`)
	_, out, _ = outcome(t, url, "ls", "--json", "jo")
	var r jsonRecord
	require.NoError(t, json.Unmarshal([]byte(out), &r), out)
	assert.Equal(t, "job", r.Key)
	assert.Equal(t, l.Token(), r.Holders[0].Token)
	_, out, _ = outcome(t, url, "inspect", "job")
	assert.Contains(t, out, "holders  1")

	status, _, _ = outcome(t, url, "force", "job", "somebody-else")
	assert.Equal(t, exitLost, status)
	status, _, _ = outcome(t, url, "force", "job", l.Owner())
	assert.Zero(t, status)
	<-l.Context().Done()
	status, _, _ = outcome(t, url, "run", "-n", "job", "--", "true")
	assert.Zero(t, status)
}

// TestWatch sees a lock taken and given back.
func TestWatch(t *testing.T) {
	c, url, _ := client(t)
	cmd := lockctl(t, url, "watch", "--json", "job")
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	d := json.NewDecoder(out)
	holders := func(want int) {
		for {
			var r jsonRecord
			require.NoError(t, d.Decode(&r))
			if r.HolderCount == want {
				return
			}
		}
	}
	holders(0)
	l, err := c.Lock(t.Context(), "job")
	require.NoError(t, err)
	holders(1)
	require.NoError(t, l.Release(t.Context()))
	holders(0)
	require.NoError(t, cmd.Process.Signal(syscall.SIGTERM))
	assert.NoError(t, cmd.Wait())
}

func TestDoctor(t *testing.T) {
	_, url, s := client(t)
	status, out, errOut := outcome(t, url, "doctor")
	assert.NotContains(t, out, "WRONG lock")
	assert.Contains(t, out, "ok    hand over", errOut)
	assert.Contains(t, out, "ok    force")
	_ = status // a test server has no persistence, which the doctor finds
	s.Kill()
	status, out, _ = outcome(t, url, "doctor")
	assert.Equal(t, exitUnavailable, status)
	assert.Contains(t, out, "WRONG reach the store")
}

// TestOutageIsNoMisuse: scripts try again after 69, not after 64.
func TestOutageIsNoMisuse(t *testing.T) {
	status, _, errOut := outcome(t, "zookeeper://u:geheim@127.0.0.1:1", "ls")
	assert.Equal(t, exitUnavailable, status, errOut)
}

// TestDoctorIsContent has healthy stores.
func TestDoctorIsContent(t *testing.T) {
	for _, url := range []string{"memory:", "etcd://" + testserver.Etcd(t).Addr(), "zookeeper://" + testserver.ZooKeeper(t).Addr()} {
		status, out, errOut := outcome(t, url, "doctor")
		assert.Zero(t, status, out+errOut)
	}
}

// TestDoctorFindsLostWakeups has a pooler in front of PostgreSQL, which passes no notifications on.
func TestDoctorFindsLostWakeups(t *testing.T) {
	server := testserver.Postgres(t)
	url := testserver.PostgresURL(server.Addr())
	status, _, errOut := outcome(t, url, "migrate")
	require.Zero(t, status, errOut)
	status, out, errOut := outcome(t, url, "doctor")
	assert.Zero(t, status, out+errOut)
	assert.Contains(t, out, "ok    hand over")
	assert.Contains(t, out, "ok    force")
	bouncer := testserver.PgBouncer(t, server)
	for range 5 { // on a starved machine a look may come soon after a release, like a wake-up
		status, out, _ = outcome(t, testserver.PostgresURL(bouncer.Addr())+"&default_query_exec_mode=exec", "doctor")
		if strings.Contains(out, "WRONG hand over") {
			break
		}
	}
	assert.Equal(t, exitUnavailable, status)
	assert.Contains(t, out, "WRONG hand over to who waits: wake-ups do not arrive")
	assert.Contains(t, out, "WRONG force: the holder does not hear of it")
}

// forceless is a store that confirms a force, and does nothing.
type forceless struct{ *memory.Locker }

func (forceless) ForceRelease(context.Context, string, string) error { return nil }

// TestDoctorThroughService is allowed no other keys than those with its prefix, and no force has an effect.
func TestDoctorThroughService(t *testing.T) {
	store := memory.New()
	h := httplock.NewHandler(forceless{store}, httplock.WithAuthorization(func(_ *http.Request, _ httplock.Action, key string) error {
		if !strings.HasPrefix(key, "mine:") {
			return errors.New("not yours")
		}
		return nil
	}))
	s := httptest.NewServer(h)
	t.Cleanup(func() { s.Close(); h.Close(); assert.NoError(t, store.Close()) })
	status, out, _ := outcome(t, s.URL, "doctor", "--prefix", "mine:")
	assert.Equal(t, exitUnavailable, status)
	assert.Contains(t, out, "ok    list")
	assert.Contains(t, out, "WRONG force: it was confirmed, but the grant is still there")
}
