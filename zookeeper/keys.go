package zookeeper

import (
	"cmp"
	"slices"
	"strconv"
	"strings"
)

// encode makes a key the name of a node. Bytes other than letters, digits and a few signs
// become %XX, which ZooKeeper's rules for names (no slash, no dots alone, no controls)
// cannot forbid. It is injective.
func encode(key string) string {
	plain := 0
	for plain < len(key) && isPlain(key[plain]) {
		plain++
	}
	if plain == len(key) {
		return key
	}
	const digits = "0123456789ABCDEF"
	b := append(make([]byte, 0, 3*len(key)), key[:plain]...)
	for i := plain; i < len(key); i++ {
		if k := key[i]; isPlain(k) {
			b = append(b, k)
		} else {
			b = append(b, '%', digits[k>>4], digits[k&15])
		}
	}
	return string(b)
}

func isPlain(b byte) bool {
	return 'a' <= b && b <= 'z' || 'A' <= b && b <= 'Z' || '0' <= b && b <= '9' || b == '-' || b == '_' || b == ':'
}

// decode is the inverse of encode. It refuses what encode never makes.
func decode(name string) (key string, ok bool) {
	var b strings.Builder
	for i := 0; i < len(name); i++ {
		if name[i] != '%' {
			b.WriteByte(name[i])
			continue
		}
		if i+3 > len(name) {
			return "", false
		}
		v, err := strconv.ParseUint(name[i+1:i+3], 16, 8)
		if err != nil {
			return "", false
		}
		b.WriteByte(byte(v))
		i += 2
	}
	key = b.String()
	return key, key != "" && encode(key) == name
}

// parent is the node of a lock, path that of a holder or waiter.
func (l *Locker) parent(key string) string     { return l.root + "/" + encode(key) }
func (l *Locker) path(key, name string) string { return l.parent(key) + "/" + name }

// node is the name of a holder or waiter taken apart: x or s, the owner, a dot, and the
// sequence number that the server has added.
type node struct {
	name   string
	owner  string
	shared bool
	seq    int32
}

// prefix is what the name of a node begins with.
func prefix(owner string, shared bool) string {
	if shared {
		return "s" + owner + "."
	}
	return "x" + owner + "."
}

func parseNode(name string) (node, bool) {
	head, digits, ok := strings.Cut(name, ".")
	if !ok || len(head) < 2 || head[0] != 'x' && head[0] != 's' || len(digits) < 10 {
		return node{}, false
	}
	seq, err := strconv.ParseInt(digits, 10, 32)
	return node{name: name, owner: head[1:], shared: head[0] == 's', seq: int32(seq)}, err == nil
}

// parseLine returns the nodes in line order. Names that are not ours are passed over.
//
// Sequence numbers are 32 bits wide and wrap around to negative ones. No line is half as
// long as that, so the sign of the difference tells which of two came first.
func parseLine(names []string) []node {
	line := make([]node, 0, len(names))
	for _, name := range names {
		if n, ok := parseNode(name); ok {
			line = append(line, n)
		}
	}
	slices.SortFunc(line, func(a, b node) int { return cmp.Compare(a.seq-b.seq, 0) })
	return line
}

// holders is how many at the front of the line hold the lock: one exclusive, or all shared
// ones up to the first exclusive.
func holders(line []node) int {
	n := 0
	for n < len(line) && line[n].shared {
		n++
	}
	if n == 0 && len(line) > 0 {
		return 1
	}
	return n
}

// ahead returns whom in line me has to wait for: the last one in front, for a shared node
// the last exclusive one. first says that it may hold the lock, present that it is in line.
func ahead(line []node, me node) (front node, first, present bool) {
	i := slices.IndexFunc(line, func(n node) bool { return n.name == me.name })
	if i < 0 {
		return node{}, false, false
	}
	for i--; i >= 0; i-- {
		if !me.shared || !line[i].shared {
			return line[i], false, true
		}
	}
	return node{}, true, true
}
