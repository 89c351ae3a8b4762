package rediskit

import (
	"crypto/sha1" // the name that Redis gives a script, no secret
	"embed"
	"encoding/hex"
	"strings"
)

// Script is a Lua script and the name that Redis gives it.
type Script struct{ Source, SHA string }

// NewScript names source.
func NewScript(source string) *Script {
	sum := sha1.Sum([]byte(source))
	return &Script{source, hex.EncodeToString(sum[:])}
}

// Args is the command that runs s, by its name or by its source.
func (s *Script) Args(bySource bool, keys []string, args []any) []any {
	all := make([]any, 0, 3+len(keys)+len(args))
	if bySource {
		all = append(all, "eval", s.Source, len(keys))
	} else {
		all = append(all, "evalsha", s.SHA, len(keys))
	}
	for _, k := range keys {
		all = append(all, k)
	}
	return append(all, args...)
}

// Sources are the Lua files of a package, in its folder lua.
type Sources struct{ embed.FS }

// Load returns the script of a file, in which a line "-- include part.lua" stands for
// another file.
func (f Sources) Load(name string) *Script {
	var source strings.Builder
	for line := range strings.Lines(f.File(name)) {
		if part, ok := strings.CutPrefix(strings.TrimSpace(line), "-- include "); ok {
			line = f.File(strings.TrimSuffix(part, ".lua"))
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
