package redis

import (
	"crypto/sha1" // the name that Redis gives a script, no secret
	"embed"
	"encoding/hex"
	"regexp"
)

//go:embed lua/*.lua
var sources embed.FS

// script is a Lua file of this package and the name that Redis gives it.
type script struct{ source, sha string }

var (
	takeScript          = load("take")
	dropScript          = load("drop")
	acquireScript       = load("acquire")
	acquireSharedScript = load("acquire_shared")
	renewScript         = load("renew")
	renewSharedScript   = load("renew_shared")
	releaseScript       = load("release")
	releaseSharedScript = load("release_shared")
	undoScript          = load("undo")
	forceScript         = load("force")
	inspectScript       = load("inspect")

	fenceGuard = file("fence") // the beginning of every script of a Fence
)

func load(name string) *script {
	return newScript(include.ReplaceAllStringFunc(file(name), func(line string) string {
		return file(include.FindStringSubmatch(line)[1])
	}))
}

// include is a line that stands for a part which several scripts share.
var include = regexp.MustCompile(`(?m)^ *-- include (\w+)\.lua\n`)

func newScript(source string) *script {
	sum := sha1.Sum([]byte(source))
	return &script{source, hex.EncodeToString(sum[:])}
}

func file(name string) string {
	b, err := sources.ReadFile("lua/" + name + ".lua")
	if err != nil {
		panic(err) // the file is embedded: this is a typing error in this package
	}
	return string(b)
}

// args is the command that runs s, by its name or by its source.
func (s *script) args(bySource bool, keys []string, args []any) []any {
	all := make([]any, 0, 3+len(keys)+len(args))
	if bySource {
		all = append(all, "eval", s.source, len(keys))
	} else {
		all = append(all, "evalsha", s.sha, len(keys))
	}
	for _, k := range keys {
		all = append(all, k)
	}
	return append(all, args...)
}
