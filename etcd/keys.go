package etcd

import (
	"strconv"
	"strings"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/internal/storekit"
)

// The key of one acquisition is
//
//	prefix + encoded key + "/" + x or s + process + "." + number
//
// and an encoded key has no "/", so what concerns one lock is the range of all names that begin
// with prefix + encoded key + "/", and no other lock's is in it. Beside the acquisitions, and
// out of their range, there may be in it the tail, whose value is the name of the last who
// lined up, while that one waits, and tombstones.
const (
	sharedMark    = "s"
	exclusiveMark = "x"
	tailMark      = "l"
	tombMark      = "d"
)

// escaping leaves controls out, for the sake of whoever lists keys on a terminal.
var escaping = storekit.NewEscaping(func(c byte) bool { return c > ' ' && c != '/' && c != 0x7f })

// baseOf is what the names of all that concerns key begin with.
func (l *Locker) baseOf(key string) string { return l.prefix + escaping.Encode(key) + "/" }

// rivals is the range of the entries that stand in the way of one of that mode.
func rivals(base string, shared bool) (from, end string) {
	if shared {
		return base + exclusiveMark, rangeEnd(base + exclusiveMark)
	}
	return base + sharedMark, rangeEnd(base + exclusiveMark)
}

func tail(base string) string { return base + tailMark }

// tomb is the tombstone of an owner, or of one attempt of an owner who may try again. The latter
// has a dot in it, as no owner has.
func tomb(base, of string) string { return base + tombMark + of }

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
	if !ok || entry == "" || strings.Contains(entry, "/") { // that is under a longer prefix
		return "", false, false
	}
	shared = entry[:1] == sharedMark
	if !shared && entry[:1] != exclusiveMark {
		return "", false, false
	}
	key, ok = escaping.Decode(encoded)
	return key, shared, ok
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

// everyone reads the oldest entries of a lock, all if limit is 0. The server sorts the whole
// line for it.
func everyone(base string, limit int64) clientv3.Op {
	from, end := rivals(base, false)
	return clientv3.OpGet(from, clientv3.WithRange(end), clientv3.WithLimit(limit),
		clientv3.WithSort(clientv3.SortByCreateRevision, clientv3.SortAscend))
}

// names numbers the acquisitions of a Locker, whose mutex guards it. A number is used again once
// its key is known to be gone for good: etcd keeps each name that ever was until it is compacted,
// and looks at all of a lock's names at each acquire. With new names for all, that transaction took
// 0.6 ms at first, 1.5 ms after 10,000 names on the key, and 32 ms after 100,000.
type names struct {
	process string // part of all names, and of no other Locker's
	free    []int32
	next    int32
}

func (n *names) take(base string, shared bool) (name string, number int32) {
	if last := len(n.free) - 1; last >= 0 {
		number, n.free = n.free[last], n.free[:last]
	} else {
		number = n.next
		n.next++
	}
	return base + mark(shared) + n.process + "." + strconv.Itoa(int(number)), number
}
