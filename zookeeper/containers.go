package zookeeper

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"

	"github.com/go-zookeeper/zk"
)

// parents remembers the keys whose containers are known to be there. ZooKeeper removes
// those that are empty: then it costs a round trip to be wrong. But it removes no more than
// 10,000 a minute, so a Locker deletes what it has created and not used for a generation.
type parents struct {
	mu       sync.Mutex // guards the rest
	size     int        // of a generation
	new, old map[string]bool
	due      []string // to be deleted
}

// maxParents is how many keys one of the two generations has.
const maxParents = 4096

// pruned is how many containers are deleted for each that is created: more than one, so that
// those that are due become fewer.
const pruned = 2

func (p *parents) has(key string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if _, ok := p.new[key]; ok {
		return true
	}
	ours, ok := p.old[key]
	if ok {
		delete(p.old, key)
		p.keep(key, ours)
	}
	return ok
}

// add remembers key, and whether this Locker has created its container.
func (p *parents) add(key string, ours bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.keep(key, ours)
}

func (p *parents) keep(key string, ours bool) {
	if len(p.new) >= p.size {
		for key, ours := range p.old {
			if ours {
				p.due = append(p.due, key)
			}
		}
		p.new, p.old = nil, p.new
	}
	if p.new == nil {
		p.new = make(map[string]bool)
	}
	p.new[key] = p.new[key] || ours
}

// take returns some of the containers that are to be deleted.
func (p *parents) take() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	n := max(0, len(p.due)-pruned)
	due := slices.Clone(p.due[n:])
	p.due = p.due[:n]
	return due
}

func (p *parents) forget(key string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.new, key)
	delete(p.old, key)
}

// ensure creates the container of key, and the root, where they are missing.
func (l *Locker) ensure(ctx context.Context, key string) error {
	if l.parents.has(key) {
		return nil
	}
	ours, err := call(ctx, func() (bool, error) { return l.container(l.parent(key)) })
	if err == nil {
		l.parents.add(key, ours)
		go l.prune()
	}
	return err
}

// container creates a container. It is ours if it was not there.
func (l *Locker) container(path string) (ours bool, err error) {
	_, err = l.conn.CreateContainer(path, nil, zk.FlagContainer, l.acl)
	if errors.Is(err, zk.ErrNoNode) {
		if err = createPath(l.conn, l.root, l.acl); err == nil {
			_, err = l.conn.CreateContainer(path, nil, zk.FlagContainer, l.acl)
		}
	}
	if errors.Is(err, zk.ErrNodeExists) {
		return false, nil
	}
	return err == nil, err
}

// prune deletes some containers of keys that were not used for long. The server refuses that
// of one that is not empty. What fails is left to the server, who deletes them by and by.
func (l *Locker) prune() {
	for _, key := range l.parents.take() {
		_ = l.conn.Delete(l.parent(key), -1)
	}
}

// createPath creates a node that stays, and those above it, where they are missing.
func createPath(conn *zk.Conn, path string, acl []zk.ACL) error {
	exists, _, err := conn.Exists(path)
	if err != nil || exists {
		return err
	}
	if above := path[:strings.LastIndexByte(path, '/')]; above != "" {
		if err := createPath(conn, above, acl); err != nil {
			return err
		}
	}
	_, err = conn.Create(path, nil, 0, acl)
	if errors.Is(err, zk.ErrNodeExists) {
		return nil
	}
	return err
}
