package main

import (
	"bufio"
	"context"
	"io"
	"net/http/httptest"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/httplock"
	inmemory "github.com/seed-215fdefa/lock/memory"
)

var pageScript = regexp.MustCompile("(?s)```sh\n(#!/bin/bash\n.*?)```")

// underLock starts the script of docs/service.md, which runs command in a shell under the lock at url, whose
// TTL is so many seconds. The job reads from the writer, and the reader has what it says.
func underLock(t *testing.T, ttl, url, command string) (*exec.Cmd, io.Writer, *bufio.Reader) {
	t.Helper()
	for _, tool := range []string{"bash", "curl", "jq", "od"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skip("there is no ", tool)
		}
	}
	page, err := os.ReadFile("../../docs/service.md")
	require.NoError(t, err)
	found := pageScript.FindSubmatch(page)
	require.NotNil(t, found)
	cmd := exec.CommandContext(t.Context(), "bash", write(t, "with-lock", string(found[1])), "sh", "-c", command)
	cmd.Env = append(os.Environ(), "TTL="+ttl, "LOCK="+url, "no_proxy=127.0.0.1")
	in, err := cmd.StdinPipe()
	require.NoError(t, err)
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	return cmd, in, bufio.NewReader(out)
}

// TestPageScript has the script wait for its turn, and end as its job does.
func TestPageScript(t *testing.T) {
	t.Parallel()
	p := start(t, "--store", "memory")
	url := "http://" + p.addr + "/v1/locks/report"
	first, in, out := underLock(t, "30", url, "echo $LOCK_TOKEN; read line; exit 7")
	token, err := out.ReadString('\n')
	require.NoError(t, err)
	second, _, after := underLock(t, "30", url, "echo $LOCK_TOKEN")
	require.Eventually(t, func() bool {
		_, record := p.get("/v1/locks/report")
		return strings.Contains(record, `"holder_count":1,"waiter_count":1`)
	}, patience, 20*time.Millisecond, p)
	_, err = io.WriteString(in, "go\n")
	require.NoError(t, err)
	later, err := after.ReadString('\n')
	require.NoError(t, err)
	assert.Greater(t, later, token, "of as many digits")
	_, _ = first.Wait(), second.Wait()
	assert.Equal(t, 7, first.ProcessState.ExitCode())
	assert.Equal(t, 0, second.ProcessState.ExitCode())
	_, record := p.get("/v1/locks/report")
	assert.Contains(t, record, `"holder_count":0,"waiter_count":0`)

	wrong, _, _ := underLock(t, "30", "http://"+p.addr+"/v1/report", "exit 7")
	_ = wrong.Wait()
	assert.Equal(t, 75, wrong.ProcessState.ExitCode(), "a 404 does not get better")
}

// TestPageScriptWithoutService kills the service: no renewal succeeds, and the job must end.
func TestPageScriptWithoutService(t *testing.T) {
	t.Parallel()
	p := start(t, "--store", "memory")
	cmd, _, out := underLock(t, "18", "http://"+p.addr+"/v1/locks/report", "echo held; sleep 60; echo survived")
	held, err := out.ReadString('\n')
	require.NoError(t, err)
	require.Equal(t, "held\n", held)
	p.signal(syscall.SIGKILL)
	rest, err := io.ReadAll(out) // ends when no process of the job is left
	require.NoError(t, err)
	assert.Empty(t, rest)
	_ = cmd.Wait()
	assert.Equal(t, 76, cmd.ProcessState.ExitCode())
}

// cutting is a store that grants no more than a TTL.
type cutting struct {
	*inmemory.Locker
	ttl time.Duration
}

func (c cutting) Acquire(ctx context.Context, req lock.Request) (lock.Grant, error) {
	req.TTL = min(req.TTL, c.ttl)
	return c.Locker.Acquire(ctx, req)
}

func (c cutting) Renew(ctx context.Context, g lock.Grant) (lock.Grant, error) {
	g.TTL = min(g.TTL, c.ttl)
	return c.Locker.Renew(ctx, g)
}

// TestPageScriptCountsTheGrant has a store grant less than the script asks for, and then the service end: the
// job must end before the grant does, not before what was asked for. What is too short for the script it
// refuses.
func TestPageScriptCountsTheGrant(t *testing.T) {
	t.Parallel()
	serve := func(ttl time.Duration) *httptest.Server {
		store := cutting{inmemory.New(), ttl}
		h := httplock.NewHandler(store)
		s := httptest.NewServer(h)
		t.Cleanup(func() { s.Close(); h.Close(); _ = store.Close() })
		return s
	}
	const granted, asked = 13500 * time.Millisecond, "120"
	s := serve(granted)
	cmd, _, out := underLock(t, asked, s.URL+"/v1/locks/report", "echo held; sleep 120; echo survived")
	held, err := out.ReadString('\n')
	require.NoError(t, err)
	require.Equal(t, "held\n", held)
	s.CloseClientConnections()
	s.Close()
	begun := time.Now()
	rest, err := io.ReadAll(out) // ends when no process of the job is left
	require.NoError(t, err)
	assert.Empty(t, rest)
	assert.Less(t, time.Since(begun), 60*time.Second, "of the 120 that were asked for two thirds were over at 79")
	_ = cmd.Wait()
	assert.Equal(t, 76, cmd.ProcessState.ExitCode())

	cmd, _, out = underLock(t, asked, serve(4666*time.Millisecond).URL+"/v1/locks/report", "echo ran")
	rest, err = io.ReadAll(out)
	require.NoError(t, err)
	assert.Empty(t, rest)
	_ = cmd.Wait()
	assert.Equal(t, 76, cmd.ProcessState.ExitCode())
}
