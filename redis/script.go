package redis

import (
	"embed"

	"github.com/seed-215fdefa/lock/internal/rediskit"
)

//go:embed lua/*.lua
var files embed.FS

var (
	sources = rediskit.Sources{FS: files}

	takeScript          = sources.Load("take")
	dropScript          = sources.Load("drop")
	acquireScript       = sources.Load("acquire")
	acquireSharedScript = sources.Load("acquire_shared")
	renewScript         = sources.Load("renew")
	renewSharedScript   = sources.Load("renew_shared")
	releaseScript       = sources.Load("release")
	releaseSharedScript = sources.Load("release_shared")
	undoScript          = sources.Load("undo")
	forceScript         = sources.Load("force")
	inspectScript       = sources.Load("inspect")
	publishScript       = sources.Load("publish")

	fenceGuard = sources.File("fence") // the beginning of every script of a Fence
)

type script = rediskit.Script
