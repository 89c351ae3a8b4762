package redlock

import (
	"embed"
	"fmt"

	"github.com/seed-215fdefa/lock/internal/rediskit"
)

//go:embed lua/*.lua
var files embed.FS

// scripts are those of one Locker.
type scripts struct {
	join, activate *rediskit.Script // sent with their source

	// The rest is sent by name only, so that a server which was restarted refuses it until
	// join has been there.
	lock, confirm, adopt, renew, rejoin, release, force, inspect *rediskit.Script
}

// newScripts loads them for one prefix and database. Servers keep scripts for all of theirs
// together, but each prefix has a node key of its own: so has each its own scripts, else
// those that one Locker loads would speak for the node key of another.
func newScripts(prefix string, db int) *scripts {
	src := rediskit.Sources{FS: files}
	own := func(name string) *rediskit.Script {
		return rediskit.NewScript(fmt.Sprintf("-- %x %d\n", prefix, db) + src.Load(name).Source)
	}
	return &scripts{
		join: src.Load("join"), activate: src.Load("activate"),
		lock: own("lock"), confirm: own("confirm"), adopt: own("adopt"), renew: own("renew"),
		rejoin: own("rejoin"), release: own("release"), force: own("force"), inspect: own("inspect"),
	}
}

// byName are the scripts that a server must know.
func (s *scripts) byName() []*rediskit.Script {
	return []*rediskit.Script{s.lock, s.confirm, s.adopt, s.renew, s.rejoin, s.release, s.force, s.inspect}
}
