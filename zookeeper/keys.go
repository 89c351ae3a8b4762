package zookeeper

import (
	"cmp"
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/seed-215fdefa/lock/internal/storekit"
)

// escaping makes a key the name of a node, which ZooKeeper's rules for names (no slash, no dots
// alone, no controls) cannot forbid.
var escaping = storekit.NewEscaping(func(b byte) bool {
	return 'a' <= b && b <= 'z' || 'A' <= b && b <= 'Z' || '0' <= b && b <= '9' || b == '-' || b == '_' || b == ':'
})

// parent is the node of a lock, path that of a holder or waiter.
func (l *Locker) parent(key string) string     { return l.root + "/" + escaping.Encode(key) }
func (l *Locker) path(key, name string) string { return l.parent(key) + "/" + name }

// node is the name of a holder or waiter taken apart: x or s, or X or S of who does not wait, the
// owner, a dot, and the sequence number that the server has added.
type node struct {
	name   string
	owner  string
	shared bool
	try    bool // it leaves as soon as it knows that it is not first
	seq    int32
}

// prefix is what the name of a node begins with.
func prefix(owner string, shared, try bool) string {
	mode := "x"
	if shared {
		mode = "s"
	}
	if try {
		mode = strings.ToUpper(mode)
	}
	return mode + owner + "."
}

func parseNode(name string) (node, bool) {
	head, digits, ok := strings.Cut(name, ".")
	if !ok || len(head) < 2 || !strings.Contains("xsXS", head[:1]) || len(digits) < 10 {
		return node{}, false
	}
	seq, err := strconv.ParseInt(digits, 10, 32)
	return node{
		name: name, owner: head[1:], shared: head[0]|' ' == 's', try: head[0] < 'a', seq: int32(seq),
	}, err == nil
}

// spent reports whether n's container has no more sequence numbers: they are 31 bits wide. The server
// gives the last one to all nodes from then on, and negative ones to those that are created while that
// creation is under way. Neither tells who came first.
func (n node) spent() bool { return n.seq < 0 || n.seq == math.MaxInt32 }

// parseLine returns the nodes in line order, negative sequence numbers at the end. Names that are not
// ours are passed over.
func parseLine(names []string) []node {
	line := make([]node, 0, len(names))
	for _, name := range names {
		if n, ok := parseNode(name); ok {
			line = append(line, n)
		}
	}
	slices.SortFunc(line, func(a, b node) int { return cmp.Compare(uint32(a.seq), uint32(b.seq)) })
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

// split parts a line into those who hold the lock and those who wait for it.
func split(line []node) (holding, waiting []node) {
	n := holders(line)
	for _, w := range line[n:] {
		if !w.try {
			waiting = append(waiting, w)
		}
	}
	return line[:n], waiting
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

// firstTry returns the first of those before a node that are in its way, if all of these are tries.
func firstTry(before []node, shared bool) (first node) {
	for _, n := range before {
		switch {
		case shared && n.shared:
		case !n.try:
			return node{}
		case first.name == "":
			first = n
		}
	}
	return first
}
