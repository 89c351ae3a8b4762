package redlock

import "github.com/seed-215fdefa/lock/internal/rediskit"

// keys are the KEYS of the scripts on a lock: lua/base.lua describes them. Nodes are single
// servers, so no two need to be neighbors, and a name is its lock's key behind a letter.
func (l *Locker) keys(key string) []string {
	return []string{l.prefix + "node", l.prefix + "s:" + key, l.prefix + "r:" + key, l.prefix + "i:" + key, l.prefix + "m:" + key}
}

func (l *Locker) question(s *rediskit.Script, key string, args ...any) question {
	keys := l.keys(key)
	return question{args: s.With(keys, args...).ByName, key: keys[1]}
}

func flag(b bool) string {
	if b {
		return "1"
	}
	return ""
}
