package zookeeper

import (
	"slices"
	"time"

	"github.com/seed-215fdefa/lock"
)

// Encode and Decode are the names of keys.
var (
	Encode = escaping.Encode
	Decode = escaping.Decode
)

// Line returns the owners of nodes in line order, and how many of them hold the lock.
func Line(names ...string) (owners []string, holding int) {
	line := parseLine(names)
	for _, n := range line {
		owners = append(owners, n.owner)
	}
	return owners, holders(line)
}

// Ahead returns the node that the one called name waits for, "" if it is first.
func Ahead(name string, names ...string) (front string, present bool) {
	line := parseLine(names)
	i := slices.IndexFunc(line, func(n node) bool { return n.name == name })
	if i < 0 {
		return "", false
	}
	n, _, present := ahead(line, line[i])
	return n.name, present
}

// FirstTry returns the first of the nodes in the way of one behind them, if all of these are tries, and else "".
func FirstTry(shared bool, names ...string) string { return firstTry(parseLine(names), shared).name }

// Claims is how much l keeps of its claims.
func (l *Locker) Claims() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.claims) + l.bytes + len(l.places) + len(l.behind) + len(l.heads)
}

// Watches is how many nodes l watches.
func (l *Locker) Watches() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.watched)
}

// Armed is how many watches of containers l keeps.
func (l *Locker) Armed() int {
	l.armed.mu.Lock()
	defer l.armed.mu.Unlock()
	return len(l.armed.watches)
}

// Writes is how many transactions l has under way, one at most, and how many writes wait for the
// next.
func (l *Locker) Writes() (flights, queued int) {
	l.lane.mu.Lock()
	defer l.lane.mu.Unlock()
	if l.lane.busy {
		flights = 1
	}
	return flights, len(l.lane.queue)
}

// Patience is how long a call is repeated while there is no server.
const Patience = lock.Patience

// SetGranted has d believe that a handshake has granted that timeout to all sessions.
func (d *Dialer) SetGranted(timeout time.Duration) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for i := range d.sessions {
		d.sessions[i].timeout = timeout
	}
}

// SetGeneration sets after how many keys of others a container is one that was not used for long.
func (l *Locker) SetGeneration(n int) { l.parents.size = n }

// Behind is how many places somebody of l waits behind.
func (l *Locker) Behind() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.behind)
}
