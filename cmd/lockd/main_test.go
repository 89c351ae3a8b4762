package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/seed-215fdefa/lock/internal/testserver"
)

// patience is for what takes milliseconds, on a machine that is starved.
const patience = 60 * time.Second

// TestMain is lockd itself for the processes that tests start.
func TestMain(m *testing.M) {
	if os.Getenv("LOCKD_TEST") != "" {
		main()
	}
	os.Exit(testserver.Main{M: m}.Run())
}

// process is a running lockd.
type process struct {
	t    *testing.T
	cmd  *exec.Cmd
	addr string

	mu    sync.Mutex // guards lines
	lines []map[string]any
	read  chan struct{} // closed at the end of its output
}

// start runs lockd, on a port of its own, and waits until it serves.
func start(t *testing.T, args ...string) *process {
	t.Helper()
	self, err := os.Executable()
	require.NoError(t, err)
	p := &process{t: t, cmd: exec.Command(self, append([]string{"--listen", "127.0.0.1:0"}, args...)...), read: make(chan struct{})}
	p.cmd.Env = append(os.Environ(), "LOCKD_TEST=1")
	out, err := p.cmd.StderrPipe()
	require.NoError(t, err)
	require.NoError(t, p.cmd.Start())
	t.Cleanup(func() {
		_ = p.cmd.Process.Kill()
		<-p.read
		_ = p.cmd.Wait()
	})
	go func() {
		defer close(p.read)
		for s := bufio.NewScanner(out); s.Scan(); {
			var line map[string]any
			if json.Unmarshal(s.Bytes(), &line) != nil {
				line = map[string]any{"msg": s.Text()}
			}
			p.mu.Lock()
			p.lines = append(p.lines, line)
			p.mu.Unlock()
		}
	}()
	p.addr = p.await("serving")["address"].(string)
	return p
}

// await returns the first line of the log with that message.
func (p *process) await(msg string) (line map[string]any) {
	p.t.Helper()
	require.Eventually(p.t, func() bool {
		p.mu.Lock()
		defer p.mu.Unlock()
		for _, l := range p.lines {
			if l["msg"] == msg {
				line = l
				return true
			}
		}
		return false
	}, patience, 5*time.Millisecond, "no %q in the log: %v", msg, p)
	return line
}

// String is the log.
func (p *process) String() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	b, _ := json.Marshal(p.lines)
	return string(b)
}

func (p *process) signal(s syscall.Signal) {
	p.t.Helper()
	require.NoError(p.t, p.cmd.Process.Signal(s))
}

// ended waits for its end, and returns its exit status, -1 after a signal.
func (p *process) ended() int {
	<-p.read
	_ = p.cmd.Wait()
	return p.cmd.ProcessState.ExitCode()
}

// get returns the status and the body of a GET.
func (p *process) get(path string) (int, string) {
	p.t.Helper()
	resp, err := http.Get("http://" + p.addr + path)
	require.NoError(p.t, err)
	return answer(p.t, resp)
}

// post sends a request about a lock, with a token if it is not "".
func (p *process) post(token, path, body string) (int, string) {
	p.t.Helper()
	req, err := http.NewRequest(http.MethodPost, "http://"+p.addr+"/v1/locks/"+path, strings.NewReader(body))
	require.NoError(p.t, err)
	req.Header.Set("Content-Type", "application/json")
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	resp, err := http.DefaultClient.Do(req)
	require.NoError(p.t, err)
	return answer(p.t, resp)
}

func answer(t *testing.T, resp *http.Response) (int, string) {
	t.Helper()
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	return resp.StatusCode, string(b)
}

// eventually waits for a GET to be answered with status.
func (p *process) eventually(path string, status int) {
	p.t.Helper()
	require.Eventually(p.t, func() bool {
		got, _ := p.get(path)
		return got == status
	}, patience, 20*time.Millisecond, "%s never got status %d: %v", path, status, p)
}

func write(t *testing.T, name, content string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), name)
	require.NoError(t, os.WriteFile(file, []byte(content), 0o600))
	return file
}

func TestUsage(t *testing.T) {
	broken := write(t, "tokens", `{"callers": "geheim"}`)
	tokens, certificates := write(t, "tokens", tokensFile()), write(t, "tokens", certificatesFile())
	memory := []string{"--store", "memory:", "--listen", "127.0.0.1:0"}
	for _, c := range []struct {
		args   []string
		status int
		says   string
	}{
		{[]string{"--help"}, 0, "usage: lockd --store URL"},
		{[]string{"--help"}, 0, "  memory: "},
		{nil, exitUsage, "give --store URL or set LOCKD_STORE"},
		{[]string{"--stroe=redis://u:geheim@host"}, exitUsage, "not defined: -stroe"},
		{[]string{"redis://u:geheim@host"}, exitUsage, "got 1 arguments"},
		{[]string{"--store", "rdeis://u:geheim@host"}, exitUsage, `unknown scheme "rdeis"`},
		{[]string{"--store", "redis://u:geheim@host?prefx=a"}, exitUsage, `no parameter "prefx"`},
		{[]string{"--store", "memory:", "--listen", "0.0.0.0:0"}, exitUsage, "--no-auth"},
		{[]string{"--store", "memory:", "--listen", ":0"}, exitUsage, "--tokens FILE"},
		{[]string{"--store", "memory:", "--listen", "nonsense"}, exitUnavailable, "--listen"},
		{append(memory, "--tls-key", tokens), exitUsage, "go together"},
		{append(memory, "--tls-cert", tokens, "--tls-key", tokens), exitUsage, "--tls-cert"},
		{append(memory, "--client-ca", tokens), exitUsage, "--client-ca needs"},
		{append(memory, "--tokens", tokens, "--no-auth"), exitUsage, "exclude each other"},
		{append(memory, "--tokens", broken), exitUsage, "--tokens: " + broken},
		{append(memory, "--tokens", certificates), exitUsage, `caller "web" has a certificate: give --client-ca`},
		{append(memory, "--tokens", "/no/such/file"), exitUsage, "no such file"},
		{append(memory, "--audit", "/no/such/file"), exitUsage, "--audit: "},
		{append(memory, "--drain", "10s"), exitUsage, "longer than the drain"},
		{append(memory, "--max-waiters", "0"), exitUsage, "positive"},
	} {
		var out bytes.Buffer
		assert.Equal(t, c.status, run(c.args, &out, &out), c.args)
		assert.Contains(t, out.String(), c.says, c.args)
		assert.NotContains(t, out.String(), "geheim", c.args)
	}
}

func TestEnvironment(t *testing.T) {
	env := func(vars map[string]string) func(string) (string, bool) {
		return func(name string) (string, bool) { v, ok := vars[name]; return v, ok }
	}
	c, err := configure([]string{"--grace", "3s"}, env(map[string]string{
		"LOCKD_STORE": "memory:", "LOCKD_GRACE": "4s", "LOCKD_TLS_CERT": "a", "LOCKD_TLS_KEY": "b", "LOCKD_MAX_WAITERS": "7",
	}))
	require.NoError(t, err)
	assert.Equal(t, "memory:", c.store)
	assert.Equal(t, 3*time.Second, c.grace, "the command line wins")
	assert.Equal(t, "a", c.cert)
	assert.Equal(t, 7, c.maxWaiters)
	_, err = configure(nil, env(map[string]string{"LOCKD_GRACE": "soon"}))
	assert.ErrorContains(t, err, `"soon" of LOCKD_GRACE`)
	assert.ErrorAs(t, err, new(usageError))
	// Each flag is explained, and nothing else.
	help := usage
	for _, name := range []string{
		"store", "listen", "no-auth", "tokens", "tls-cert", "tls-key", "client-ca", "audit", "grace", "drain",
		"max-connections", "max-waiters",
	} {
		assert.Contains(t, help, "--"+name)
	}
}
