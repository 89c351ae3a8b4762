package etcd

import (
	"strconv"
	"sync"

	"github.com/seed-215fdefa/lock"
)

// slots gives the acquisitions of a Locker the names of their keys. A name is used again once
// its key is known to be gone: etcd keeps each name that ever was until it is compacted, and
// looks at all of a lock's names at each acquire, so names of their own for all acquisitions
// would make a busy lock slow.
type slots struct {
	process string // part of all names, and of no other Locker's

	mu     sync.Mutex                  // guards the rest
	taken  map[string]map[int]struct{} // numbers, by base and mode
	owners map[string]*slot            // those that may have a key
}

// slot is the name of one acquisition's key.
type slot struct {
	name, base string
	group      string // base and mode
	number     int
	key, owner string
	doubtful   bool // a late request may yet create the key: the name is swept before it is used again
}

// take returns a slot for owner.
func (s *slots) take(base string, req lock.Request) *slot {
	group := base + mark(req.Shared)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.taken == nil {
		s.taken, s.owners = make(map[string]map[int]struct{}), make(map[string]*slot)
	}
	numbers := s.taken[group]
	if numbers == nil {
		numbers = make(map[int]struct{}, 1)
		s.taken[group] = numbers
	}
	n := 0
	for _, used := numbers[n]; used; _, used = numbers[n] {
		n++
	}
	numbers[n] = struct{}{}
	x := &slot{
		name: group + s.process + "." + strconv.Itoa(n), base: base, group: group, number: n,
		key: req.Key, owner: req.Owner,
	}
	s.owners[req.Owner] = x
	return x
}

// of returns the slot of an owner who may have key, or nil.
func (s *slots) of(key, owner string) *slot {
	s.mu.Lock()
	defer s.mu.Unlock()
	if x := s.owners[owner]; x != nil && x.key == key {
		return x
	}
	return nil
}

// doubt remembers that a late request may create the key.
func (s *slots) doubt(x *slot) {
	s.mu.Lock()
	defer s.mu.Unlock()
	x.doubtful = true
}

// free takes a slot back whose key is gone, and reports whether it may come back.
func (s *slots) free(x *slot) (doubtful bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.owners[x.owner] != x {
		return false
	}
	delete(s.owners, x.owner)
	if !x.doubtful {
		s.giveBack(x)
	}
	return x.doubtful
}

// swept takes a name back that was doubtful.
func (s *slots) swept(x *slot) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.giveBack(x)
}

func (s *slots) giveBack(x *slot) {
	delete(s.taken[x.group], x.number)
	if len(s.taken[x.group]) == 0 {
		delete(s.taken, x.group)
	}
}
