package redis

import (
	"context"
	"time"

	goredis "github.com/redis/go-redis/v9"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/internal/storekit"
)

// Preload makes a server know all scripts, so that a test which breaks the first request
// of a kind breaks that, and not the way in which the server learns it.
func Preload(ctx context.Context, rdb goredis.UniversalClient) error {
	for _, s := range []*script{
		takeScript, dropScript, acquireScript, acquireSharedScript, renewScript, renewSharedScript, releaseScript,
		releaseSharedScript, undoScript, forceScript, inspectScript,
	} {
		if err := rdb.ScriptLoad(ctx, s.Source).Err(); err != nil {
			return err
		}
	}
	return nil
}

// Doubt makes l take owner for one whose first request may still be on its way.
func (l *Locker) Doubt(owner string) { l.doubts.Add(owner) }

// HandOver tells who waits as owner of a hand-over with that token.
func (l *Locker) HandOver(owner string, token lock.Token, start time.Time) {
	l.registry.Deliver(owner, storekit.Handover{Token: token, Start: start})
}

// Hasten has l know its server to answer fast, until it does not.
func (l *Locker) Hasten() { l.servers.single.Hasten() }

// UndoSHA is the name of the script that undoes.
var UndoSHA = undoScript.SHA

// Lanes is how many nodes of a Cluster l has a lane to when it has looked for those of keys.
func (l *Locker) Lanes(keys []string) int {
	l.servers.known.Store(true)
	for _, key := range keys {
		l.servers.laneOf(key)
	}
	return len(l.servers.byNode)
}
