package main

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// TestTablesAreFresh keeps the tables up with the code: each old text is in its file
// exactly once, and each pattern means a test that exists.
func TestTablesAreFresh(t *testing.T) {
	root, err := moduleRoot()
	require.NoError(t, err)
	ms, err := load("tables", nil)
	require.NoError(t, err)
	require.NotEmpty(t, ms)
	names, inDir := make(map[string]bool), make(map[string][]string)
	for _, m := range ms {
		assert.False(t, names[m.name], "%s: there are two", m.name)
		names[m.name] = true
		_, err := m.apply(root)
		assert.NoError(t, err, "%s is stale: change its text, or remove it with what it broke", m.name)
		for _, ts := range m.tests {
			if inDir[ts.dir] == nil {
				inDir[ts.dir], err = testsIn(filepath.Join(root, ts.dir))
				require.NoError(t, err)
			}
			assert.NoError(t, ts.known(inDir[ts.dir]), "%s", m.name)
		}
	}
}

// TestKnown: each alternative of a pattern must mean a test.
func TestKnown(t *testing.T) {
	names, err := testsIn(".")
	require.NoError(t, err)
	for pattern, want := range map[string]bool{
		"TestKnown|TestBy":           true,
		"TestKnown/a|TestBy/(b|c)":   true,
		"Test(Known|Renamed)|TestBy": true,
		"TestKnown|TestRenamed":      false,
		"TestRenamed/a|TestBy":       false,
	} {
		assert.Equal(t, want, tests{".", pattern}.known(names) == nil, pattern)
	}
}

const table = `# a comment
test: TestAll

== one
file: a.go
breaks: Everything.
<<<
	x := 1
===
>>>

== two
file: b.go
breaks: More.
test: TestOne/Case
test: ./other TestTwo
survives: Nobody looks.
<<<
a

b
===
c
>>>
`

func TestParse(t *testing.T) {
	ms, err := parse("redis", table)
	require.NoError(t, err)
	require.Len(t, ms, 2)
	one, two := ms[0], ms[1]
	assert.Equal(t, "redis/one", one.name)
	assert.Equal(t, "\tx := 1", one.old)
	assert.Empty(t, one.new)
	assert.Equal(t, []tests{{"redis", "TestAll"}}, one.tests)
	assert.Equal(t, "a\n\nb", two.old)
	assert.Equal(t, "c", two.new)
	assert.Equal(t, "Nobody looks.", two.survives)
	assert.Equal(t, []tests{{"redis", "TestOne/Case"}, {"other", "TestTwo"}, {"redis", "TestAll"}}, two.tests)
}

func TestParseErrors(t *testing.T) {
	for text, want := range map[string]string{
		"== a\nfile: f\nbreaks: b\n<<<\nx\n===\ny\n>>>\n":          "a: no test:",
		"== a\nbreaks: b\ntest: T\n<<<\nx\n===\ny\n>>>\n":          "a: no file:",
		"== a\nfile: f\ntest: T\n<<<\nx\n===\ny\n>>>\n":            "a: no breaks:",
		"== a\nfile: f\nbreaks: b\ntest: T\n<<<\nx\n===\nx\n>>>\n": "a: the new text is the old one",
		"== a\nfile: f\nbreaks: b\ntest: T\n":                      "a: no old text",
		"== a\n<<<\nx\n>>>\n===\n":                                 "a: <<< without ===",
		"== a\n<<<\nx\n===\ny\n\n== b\n<<<\nx\n===\ny\n>>>\n":      "a: <<< without ===",
		"== a\nwhat: f\n": `line 2: "what: f": want file:`,
	} {
		_, err := parse("redis", text)
		assert.ErrorContains(t, err, want)
	}
}

func TestApply(t *testing.T) {
	root := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(root, "f"), []byte("a b a c"), 0o600))
	text, err := (&mutant{file: "f", old: "b", new: "d"}).apply(root)
	require.NoError(t, err)
	assert.Equal(t, "a d a c", string(text))
	_, err = (&mutant{file: "f", old: "a", new: "d"}).apply(root)
	assert.ErrorContains(t, err, "2 times")
	_, err = (&mutant{file: "f", old: "e", new: "d"}).apply(root)
	assert.ErrorContains(t, err, "0 times")
}

// TestSpoiledRun: a test that fails once, whatever the code is, does not catch a mutant.
func TestSpoiledRun(t *testing.T) {
	root := t.TempDir()
	for name, text := range map[string]string{
		"go.mod": "module spoiled\n",
		"f.go":   "package spoiled\n\nconst right = true\n",
		"f_test.go": `package spoiled

import (
	"os"
	"testing"
)

func TestRight(t *testing.T) {
	runs, err := os.OpenFile("runs", os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer runs.Close()
	_, _ = runs.WriteString(".")
	if i, _ := runs.Stat(); i.Size() == 2 || !right { // the first is that of the sound code
		t.Error("spoiled")
	}
}
`,
	} {
		require.NoError(t, os.WriteFile(filepath.Join(root, name), []byte(text), 0o600))
	}
	harmless := &mutant{file: "f.go", old: "const right", new: "const  right", tests: []tests{{".", "TestRight"}}}
	harmful := &mutant{file: "f.go", old: "true", new: "false", tests: harmless.tests}
	r := newRunner(root, t.TempDir(), time.Minute, 1, false)
	r.one(t.Context(), harmless, filepath.Join(r.work, "harmless"))
	r.one(t.Context(), harmful, filepath.Join(r.work, "harmful"))
	assert.Equal(t, survived, harmless.outcome, harmless.detail)
	assert.Equal(t, caught, harmful.outcome, harmful.detail)
}

// TestSummarize says when the tool fails.
func TestSummarize(t *testing.T) {
	of := func(n int, others ...outcome) []*mutant {
		var ms []*mutant
		for range n {
			ms = append(ms, &mutant{outcome: caught})
		}
		for _, o := range others {
			ms = append(ms, &mutant{outcome: o})
		}
		return ms
	}
	var out bytes.Buffer
	assert.True(t, summarize(&out, of(19, accepted)))
	assert.False(t, summarize(&out, of(18, accepted)), "94 %")
	assert.False(t, summarize(&out, of(99, survived)))
	assert.False(t, summarize(&out, of(99, stale)))
	assert.False(t, summarize(&out, of(99, skipped)))
}

func TestBy(t *testing.T) {
	out := []byte("--- FAIL: TestSuite (1s)\n    --- FAIL: TestSuite/A (1s)\n        --- FAIL: TestSuite/A/b (1s)\n")
	assert.Equal(t, "TestSuite/A/b", by(out, assert.AnError))
	assert.Equal(t, "out of time", by([]byte("panic: test timed out after 1s"), assert.AnError))
	assert.Equal(t, "panic: lost\\", by([]byte("x\npanic: lost\\\ny"), assert.AnError))
	assert.Equal(t, assert.AnError.Error(), by(nil, assert.AnError))
}
