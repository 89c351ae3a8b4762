package redis

import (
	"fmt"
	"strings"

	"github.com/seed-215fdefa/lock"
)

// keyset names the keys of one lock. They share the hash tag {encoded key}, so that a
// Cluster keeps them on one node.
type keyset struct{ base string }

func (l *Locker) keys(key string) keyset {
	return keyset{l.prefix + "{" + encode(key) + "}"}
}

func (k keyset) record() string  { return k.base }
func (k keyset) counter() string { return k.base + ":t" }

// all is the KEYS of the scripts that include base.lua, which describes them.
func (k keyset) all() []string {
	return []string{
		k.record(), k.counter(), k.base + ":r", k.base + ":i", k.base + ":q", k.base + ":w", k.base + ":u",
	}
}

// encode makes a key fit for a hash tag, which ends at the first "}": braces, and the
// escape itself, become %XX. It is injective, and never empty for a key that is not.
func encode(key string) string {
	if !strings.ContainsAny(key, "%{}") {
		return key
	}
	return escaper.Replace(key)
}

var escaper = strings.NewReplacer("%", "%25", "{", "%7B", "}", "%7D")

// decode is the inverse of encode. It refuses what encode never makes.
func decode(s string) (string, bool) {
	if strings.ContainsAny(s, "{}") {
		return "", false
	}
	key := unescaper.Replace(s)
	return key, key != "" && encode(key) == s
}

var unescaper = strings.NewReplacer("%25", "%", "%7B", "{", "%7D", "}")

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
	return decode(encoded)
}

// pattern is a glob that matches the keys of all locks whose key begins with prefix, and
// maybe others.
func (l *Locker) pattern(prefix string) string {
	return globEscaper.Replace(l.prefix+"{"+encode(prefix)) + "*"
}

var globEscaper = strings.NewReplacer(`\`, `\\`, "*", `\*`, "?", `\?`, "[", `\[`, "]", `\]`)

func checkPrefix(prefix string) error {
	if strings.ContainsAny(prefix, "{}") {
		return fmt.Errorf("%w: key prefix %q: must not contain braces, which decide the Cluster slot", lock.ErrInvalid, prefix)
	}
	return nil
}
