package etcd

import (
	"strings"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/seed-215fdefa/lock"
)

// The key of one acquisition is
//
//	prefix + encoded key + "/" + x or s + process + "." + number
//
// and an encoded key has no "/", so the entries of one lock are the range of all names that
// begin with prefix + encoded key + "/", and no other lock's are in it.
const (
	exclusiveMark = "x"
	sharedMark    = "s"
)

const hexDigits = "0123456789ABCDEF"

// encode is injective, and keeps prefixes: encode(a) begins with encode(b) if, and only if, a
// begins with b.
func encode(key string) string {
	plain := true
	for i := range len(key) {
		plain = plain && isPlain(key[i])
	}
	if plain {
		return key
	}
	var b strings.Builder
	for i := range len(key) {
		if c := key[i]; isPlain(c) {
			b.WriteByte(c)
		} else {
			b.WriteByte('%')
			b.WriteByte(hexDigits[c>>4])
			b.WriteByte(hexDigits[c&15])
		}
	}
	return b.String()
}

// isPlain reports whether c stands for itself. Controls do not, for the sake of whoever
// lists keys on a terminal.
func isPlain(c byte) bool { return c > ' ' && c != '%' && c != '/' && c != 0x7f }

// decode is encode's inverse.
func decode(s string) (string, bool) {
	if !strings.Contains(s, "%") {
		return s, true
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		c := s[i]
		if c == '%' {
			if i+2 >= len(s) {
				return "", false
			}
			high, low := strings.IndexByte(hexDigits, s[i+1]), strings.IndexByte(hexDigits, s[i+2])
			if high < 0 || low < 0 {
				return "", false
			}
			c, i = byte(high<<4|low), i+2
		}
		b.WriteByte(c)
	}
	return b.String(), true
}

// base is what the names of all entries of key begin with.
func (l *Locker) base(key string) string { return l.prefix + encode(key) + "/" }

func mark(shared bool) string {
	if shared {
		return sharedMark
	}
	return exclusiveMark
}

// parseName takes the name of an entry under prefix apart.
func parseName(prefix, name string) (key string, shared, ok bool) {
	rest, ok := strings.CutPrefix(name, prefix)
	if !ok {
		return "", false, false
	}
	encoded, entry, ok := strings.Cut(rest, "/")
	if !ok || entry == "" {
		return "", false, false
	}
	shared = entry[:1] == sharedMark
	if !shared && entry[:1] != exclusiveMark {
		return "", false, false
	}
	key, ok = decode(encoded)
	return key, shared, ok && key != ""
}

// isOwner reports whether s can be an owner, of which contracts and names speak.
func isOwner(s string) bool {
	if s == "" || len(s) > lock.MaxOwnerLen {
		return false
	}
	for i := range len(s) {
		switch c := s[i]; {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', c == '-', c == '_':
		default:
			return false
		}
	}
	return true
}

// rangeEnd is the end of the range of all names that begin with prefix.
func rangeEnd(prefix string) string { return clientv3.GetPrefixRangeEnd(prefix) }

// firstOf reads the entry that holds key, or one of those that do.
func (l *Locker) firstOf(key string) clientv3.Op { return oldest(l.base(key), 1) }

// oldest reads the oldest entries of a line.
func oldest(base string, limit int64) clientv3.Op {
	return clientv3.OpGet(base, clientv3.WithRange(rangeEnd(base)), clientv3.WithLimit(limit),
		clientv3.WithSort(clientv3.SortByCreateRevision, clientv3.SortAscend))
}
