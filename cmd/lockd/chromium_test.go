package main

import (
	"bufio"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/seed-215fdefa/lock/internal/storetest"
)

// browser is a tab of a headless Chromium, which is told what to do through a pipe.
type browser struct {
	t          *testing.T
	in, out    *os.File
	messages   *bufio.Reader
	id         int
	session    string
	complaints []string // of the console
}

// message is one of the DevTools protocol, or what of one this test reads.
type message struct {
	ID      int             `json:"id,omitempty"`
	Session string          `json:"sessionId,omitempty"`
	Method  string          `json:"method,omitempty"`
	Params  any             `json:"params,omitempty"`
	Result  json.RawMessage `json:"result,omitempty"`
	Error   json.RawMessage `json:"error,omitempty"`
}

// startChromium starts a browser, or skips the test if there is none.
func startChromium(t *testing.T) *browser {
	t.Helper()
	program, err := exec.LookPath("chromium")
	if err != nil {
		t.Skip("there is no chromium: apt-get install chromium")
	}
	theirIn, in, err := os.Pipe()
	require.NoError(t, err)
	out, theirOut, err := os.Pipe()
	require.NoError(t, err)
	cmd := exec.Command(program, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-proxy-server",
		"--hide-scrollbars", "--remote-debugging-pipe", "--user-data-dir="+t.TempDir())
	cmd.ExtraFiles = []*os.File{theirIn, theirOut}
	require.NoError(t, cmd.Start())
	require.NoError(t, theirIn.Close())
	require.NoError(t, theirOut.Close())
	b := &browser{t: t, in: in, out: out, messages: bufio.NewReader(out)}
	t.Cleanup(func() {
		_ = in.Close() // which ends it
		if _ = cmd.Wait(); t.Failed() {
			t.Log(b.complaints)
		}
		_ = out.Close()
	})
	var target struct{ TargetID, SessionID string }
	b.call("Target.createTarget", map[string]any{"url": "about:blank"}, &target)
	b.call("Target.attachToTarget", map[string]any{"targetId": target.TargetID, "flatten": true}, &target)
	b.session = target.SessionID
	b.call("Runtime.enable", nil, nil)
	b.call("Log.enable", nil, nil)
	return b
}

// call asks the browser, and decodes its answer into result.
func (b *browser) call(method string, params map[string]any, result any) {
	b.t.Helper()
	require.Empty(b.t, b.ask(method, params, result), method)
}

// ask is call, and returns what the browser says has failed.
func (b *browser) ask(method string, params map[string]any, result any) string {
	b.t.Helper()
	b.id++
	request, err := json.Marshal(message{ID: b.id, Session: b.session, Method: method, Params: params})
	require.NoError(b.t, err)
	_, err = b.in.Write(append(request, 0))
	require.NoError(b.t, err)
	require.NoError(b.t, b.out.SetReadDeadline(time.Now().Add(patience)))
	for {
		text, err := b.messages.ReadBytes(0)
		require.NoError(b.t, err, method)
		var m message
		require.NoError(b.t, json.Unmarshal(text[:len(text)-1], &m))
		switch {
		case m.Method == "Log.entryAdded", m.Method == "Runtime.exceptionThrown", m.Method == "Runtime.consoleAPICalled":
			b.complaints = append(b.complaints, string(text))
		case m.ID == b.id:
			if result != nil && m.Result != nil {
				require.NoError(b.t, json.Unmarshal(m.Result, result))
			}
			return string(m.Error)
		}
	}
}

// until waits for an expression to be true.
func (b *browser) until(condition string) {
	b.t.Helper()
	var answer struct{ Result struct{ Value bool } }
	for wrong := "navigated"; strings.Contains(wrong, "navigated"); { // then in the next page
		wrong = b.ask("Runtime.evaluate", map[string]any{
			"expression":   "new Promise(r => { const f = () => (" + condition + ") ? r(true) : setTimeout(f, 20); f() })",
			"awaitPromise": true, "returnByValue": true,
		}, &answer)
	}
	require.True(b.t, answer.Result.Value, condition)
}

// visit opens a page.
func (b *browser) visit(url string) {
	b.t.Helper()
	b.call("Page.navigate", map[string]any{"url": url}, nil)
	b.until(fmt.Sprintf("location.href === %q && document.readyState === 'complete'", url))
}

// picture writes a screenshot of the page, if SCREENSHOTS names a folder for it.
func (b *browser) picture(name string) {
	b.t.Helper()
	dir := os.Getenv("SCREENSHOTS")
	if dir == "" {
		return
	}
	for _, theme := range []string{"light", "dark"} {
		b.call("Emulation.setEmulatedMedia", map[string]any{"features": []any{map[string]string{"name": "prefers-color-scheme", "value": theme}}}, nil)
		var shot struct{ Data string }
		b.call("Page.captureScreenshot", map[string]any{"format": "png"}, &shot)
		png, err := base64.StdEncoding.DecodeString(shot.Data)
		require.NoError(b.t, err)
		require.NoError(b.t, os.WriteFile(filepath.Join(dir, name+"-"+theme+".png"), png, 0o600))
	}
}

// TestPageInChromium has a browser run the page: it becomes live, shows what happens later, keeps
// the focus, can be used by the keyboard, and is refused nothing by its own policy.
func TestPageInChromium(t *testing.T) {
	t.Parallel()
	b := startChromium(t)
	b.call("Emulation.setDeviceMetricsOverride", map[string]any{"width": 1200, "height": 800, "deviceScaleFactor": 1, "mobile": false}, nil)
	s := browse(t, "memory:", "")
	b.visit(s.URL + "/")
	b.until("document.getElementById('status').textContent === 'Live'")
	b.picture("empty")
	first := storetest.Acquire(t, s.store, storetest.Request("first"+hostile))
	b.until("document.querySelector('tbody th a')?.textContent.startsWith('first\"><script>')")
	b.until("document.querySelector('tbody th a').focus() ?? true")
	storetest.Acquire(t, s.store, storetest.Request("later"))
	b.until("document.querySelectorAll('tbody th').length === 2")
	b.until("document.activeElement === document.querySelector('tbody th a')")
	b.key("Enter")
	b.until("document.querySelector('h1')?.textContent.startsWith('Lock first') && document.readyState === 'complete'")
	b.until("document.querySelector('a[href^=\"/force\"]').focus() ?? true")
	b.key("Enter")
	b.until("document.querySelector('.danger') && document.readyState === 'complete'")
	b.until("document.querySelector('.danger').focus() ?? true")
	b.key("Enter")
	b.until("document.querySelector('h1')?.textContent.startsWith('Lock first') && document.body.textContent.includes('Nobody holds it.')")
	b.picture("history")
	_, err := s.store.Renew(t.Context(), first)
	storetest.Lost(t, err)

	s = browse(t, "memory:", write(t, "tokens", tokensFile()))
	b.call("Page.navigate", map[string]any{"url": strings.Replace(s.URL, "http://", "http://whoever:"+opsToken+"@", 1)}, nil)
	b.until("document.getElementById('status')?.textContent === 'Live' && document.body.textContent.includes('You are ops')")
	storetest.Acquire(t, s.store, storetest.Request("with-a-token"))
	b.until("document.querySelector('tbody th a')?.textContent === 'with-a-token'")

	if os.Getenv("SCREENSHOTS") != "" {
		many := browse(t, "memory:", "")
		busy(t, many, 500)
		for name, path := range map[string]string{
			"busy": "/", "lock": "/lock?key=app1%3Ajob%2F050", "force": "/force?key=app1%3Ajob%2F050&owner=holder-050", "error": "/lock",
		} {
			b.visit(many.URL + path)
			b.picture(name)
			b.call("Emulation.setDeviceMetricsOverride", map[string]any{"width": 400, "height": 800, "deviceScaleFactor": 1, "mobile": true}, nil)
			b.picture(name + "-narrow")
			b.call("Emulation.setDeviceMetricsOverride", map[string]any{"width": 1200, "height": 800, "deviceScaleFactor": 1, "mobile": false}, nil)
		}
	}
	for _, n := range []int{2, 3, 5} {
		s = browse(t, "memory:", "")
		deadlocked(t, s, n)
		b.visit(s.URL + "/")
		b.until(fmt.Sprintf("document.querySelectorAll('.arrow').length === %d", n))
		b.picture(fmt.Sprint("deadlock", n))
	}
	for _, c := range b.complaints {
		assert.True(t, strings.Contains(c, "/lock") && strings.Contains(c, "status of 400"), c) // that of a picture
	}
}

// key presses a key.
func (b *browser) key(name string) {
	b.t.Helper()
	for _, kind := range []string{"keyDown", "keyUp"} {
		b.call("Input.dispatchKeyEvent", map[string]any{"type": kind, "key": name, "code": name, "text": "\r", "windowsVirtualKeyCode": 13}, nil)
	}
}
