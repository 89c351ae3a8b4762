package rediskit

import (
	"crypto/sha1" // the name that Redis gives a script, no secret
	"embed"
	"encoding/hex"
	"slices"
	"strings"
)

// Script is a Lua script and the name that Redis gives it.
type Script struct {
	Source, SHA string
	name        any // SHA
}

// NewScript names source.
func NewScript(source string) *Script {
	sum := sha1.Sum([]byte(source))
	sha := hex.EncodeToString(sum[:])
	return &Script{source, sha, sha}
}

// With is s with its KEYS and ARGV. There is at least one key.
func (s *Script) With(keys []string, args ...any) Eval {
	byName := make([]any, 0, 3+len(keys)+len(args))
	byName = append(byName, "evalsha", s.name, len(keys))
	for _, k := range keys {
		byName = append(byName, k)
	}
	return Eval{s, append(byName, args...)}
}

// Eval is a script with its keys and arguments.
type Eval struct {
	script *Script
	ByName []any // the command for a server that knows the script
}

// BySource is the command that teaches the server the script.
func (e Eval) BySource() []any {
	all := slices.Clone(e.ByName)
	all[0], all[1] = "eval", e.script.Source
	return all
}

// Key is the first of the keys.
func (e Eval) Key() string { return e.ByName[3].(string) }

// Raised reports whether err is of a command in the script, or the script's own: it may have executed
// others before. The server adds "script: SHA" to those, and to no others.
func (e Eval) Raised(err error) bool { return strings.Contains(err.Error(), e.script.SHA) }

// Sources are the Lua files of a package, in its folder lua.
type Sources struct{ embed.FS }

// Load returns the script of a file, in which a line "-- include part.lua" stands for
// another file.
func (f Sources) Load(name string) *Script {
	var source strings.Builder
	for line := range strings.Lines(f.File(name)) {
		if part, ok := strings.CutPrefix(strings.TrimSpace(line), "-- include "); ok {
			line = f.Load(strings.TrimSuffix(part, ".lua")).Source
		}
		source.WriteString(line)
	}
	return NewScript(source.String())
}

// File returns what is in lua/name.lua.
func (f Sources) File(name string) string {
	b, err := f.ReadFile("lua/" + name + ".lua")
	if err != nil {
		panic(err) // the file is embedded: this is a typing error in the package
	}
	return string(b)
}
