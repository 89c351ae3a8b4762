package redis

import (
	"fmt"
	"strings"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/internal/storekit"
)

// keyset names the keys of one lock. They share the hash tag {encoded key}, so that a
// Cluster keeps them on one node.
type keyset struct{ base string }

func (l *Locker) keys(key string) keyset {
	return keyset{l.prefix + "{" + escaping.Encode(key) + "}"}
}

// escaping makes a key fit for a hash tag, which ends at the first "}".
var escaping = storekit.NewEscaping(func(b byte) bool { return b != '{' && b != '}' })

func (k keyset) record() string  { return k.base }
func (k keyset) counter() string { return k.base + ":t" }

// all is the KEYS of the scripts that include base.lua, which describes them.
func (k keyset) all() []string {
	return []string{
		k.record(), k.counter(), k.base + ":r", k.base + ":i", k.base + ":q", k.base + ":w", k.base + ":x", k.base + ":u",
	}
}

// lockOf takes a Redis key apart: it returns the lock's key if name is one of the keys
// that exist while a lock is held or waited for.
func (l *Locker) lockOf(name string) (key string, ok bool) {
	rest, ok := strings.CutPrefix(name, l.prefix+"{")
	if !ok {
		return "", false
	}
	encoded, suffix, ok := strings.Cut(rest, "}")
	if !ok || (suffix != "" && suffix != ":q") {
		return "", false
	}
	return escaping.Decode(encoded)
}

func checkPrefix(prefix string) error {
	if strings.ContainsAny(prefix, "{}") {
		return fmt.Errorf("%w: redis: key prefix %q: must not contain braces, which decide the Cluster slot", lock.ErrInvalid, prefix)
	}
	return nil
}
