package lock

import (
	"cmp"
	"context"
	"maps"
	"math"
	"slices"
)

// waitGraph is who waits for whom, as one List shows it. Its nodes are the waiters that hold
// something meanwhile: the others keep nobody waiting.
//
// Places in line add no edges to those between waiters and holders. Who waits exclusively
// waits for all holders. So does who is shared behind an exclusive one, which it must let pass.
// Whoever is ahead in line is but a detour to the same holders, and need not give up if they
// are in a cycle.
type waitGraph struct {
	fifo   bool
	tokens map[string]Token       // of all holders
	lines  map[string]Record      // of the keys that are waited for
	nodes  map[string]*waitNode   // by owner
	under  map[string][]*waitNode // who holds that owner's grant meanwhile
}

// waitNode is one waiter.
type waitNode struct {
	Waiter
	key  string
	last bool  // its place is behind all that are shown
	age  Token // of its newest grant: the higher, the younger
	to   []waitEdge
	from []*waitNode
	out  int  // how many of to are left, once those that are in no cycle have been taken out
	in   int  // likewise
	kept bool // its elders and itself have no cycle
	seen int  // by which search
}

// waitEdge leads from a waiter to one who must release something before.
type waitEdge struct {
	node *waitNode
	what DeadlockWait
}

// readWaits lists all keys. The callers' waits are added where their keys' records have no room
// for them.
func readWaits(ctx context.Context, a Admin, fifo bool, callers []DeadlockWait) (*waitGraph, error) {
	g := &waitGraph{
		fifo: fifo, tokens: make(map[string]Token), lines: make(map[string]Record),
		nodes: make(map[string]*waitNode), under: make(map[string][]*waitNode),
	}
	for r, err := range a.List(ctx, "") {
		if err != nil {
			return nil, err
		}
		g.read(r)
	}
	for _, w := range callers {
		g.readCaller(w.Key, w.Waiter)
	}
	for _, n := range g.nodes {
		g.link(n)
	}
	return g, nil
}

func (g *waitGraph) read(r Record) {
	for _, h := range r.Holders {
		g.tokens[h.Owner] = h.Token
	}
	if len(r.Waiters) == 0 {
		return
	}
	g.lines[r.Key] = r
	for _, w := range r.Waiters {
		g.node(r.Key, w)
	}
}

func (g *waitGraph) node(key string, w Waiter) *waitNode {
	n := &waitNode{Waiter: w, key: key}
	if len(w.Under) > 0 {
		g.nodes[w.Owner] = n
	}
	for _, owner := range w.Under {
		g.under[owner] = append(g.under[owner], n)
	}
	return n
}

// readCaller adds a waiter that stands behind those which the record of key shows. Nobody else
// sees the cycles through it, so it counts as the youngest of each.
func (g *waitGraph) readCaller(key string, w Waiter) {
	r := g.lines[key]
	if g.nodes[w.Owner] == nil && r.WaiterCount > len(r.Waiters) {
		g.node(key, w).last = true
	}
}

// link finds n's edges, and its age.
func (g *waitGraph) link(n *waitNode) {
	for _, owner := range n.Under {
		n.age = max(n.age, g.tokens[owner])
	}
	if n.last {
		n.age = math.MaxUint64
	}
	line := g.lines[n.key]
	behind := ""
	for _, w := range line.Waiters {
		if w.Owner == n.Owner || behind != "" || !g.fifo {
			break
		}
		if !w.Shared {
			behind = w.Owner
		}
	}
	for _, h := range line.Holders {
		what := DeadlockWait{Key: n.key, Waiter: n.Waiter, For: h.Owner}
		if n.Shared && h.Shared {
			if what.Behind = behind; behind == "" {
				continue
			}
		}
		for _, m := range g.under[h.Owner] {
			n.to, m.from = append(n.to, waitEdge{m, what}), append(m.from, n)
			n.out++
			m.in++
		}
	}
}

// suspects are the nodes that are in a cycle or between two, the oldest first: all see them in
// the same order.
func (g *waitGraph) suspects() []*waitNode {
	drop := slices.Collect(maps.Values(g.nodes))
	drop = slices.DeleteFunc(drop, func(n *waitNode) bool { return n.in > 0 && n.out > 0 })
	for len(drop) > 0 {
		n := drop[len(drop)-1]
		drop = drop[:len(drop)-1]
		if g.nodes[n.Owner] == nil {
			continue
		}
		delete(g.nodes, n.Owner)
		for _, e := range n.to {
			if e.node.in--; e.node.in == 0 {
				drop = append(drop, e.node)
			}
		}
		for _, m := range n.from {
			if m.out--; m.out == 0 {
				drop = append(drop, m)
			}
		}
	}
	return slices.SortedFunc(maps.Values(g.nodes), func(a, b *waitNode) int {
		return cmp.Or(cmp.Compare(a.age, b.age), cmp.Compare(a.Owner, b.Owner))
	})
}

// deadlocks takes one node after the other, the oldest first, and leaves out each that closes a
// cycle with those it has: that one is the victim. So no cycle is left without them, none of
// them is needless, and all who see the same cycles agree on whom they end.
func (g *waitGraph) deadlocks() (found []Deadlock) {
	for i, n := range g.suspects() {
		if cycle := n.path(n, i+1); cycle != nil {
			slices.Reverse(cycle)
			found = append(found, Deadlock{cycle})
		} else {
			n.kept = true
		}
	}
	return found
}

// path returns the waits that lead from n to target, the last one first, or nil.
func (n *waitNode) path(target *waitNode, search int) []DeadlockWait {
	n.seen = search
	for _, e := range n.to {
		if e.node == target {
			return []DeadlockWait{e.what}
		}
		if !e.node.kept || e.node.seen == search {
			continue
		}
		if p := e.node.path(target, search); p != nil {
			return append(p, e.what)
		}
	}
	return nil
}

// has reports whether all waits of d are there.
func (g *waitGraph) has(d Deadlock) bool {
	for i, w := range d.Cycle {
		n, next := g.nodes[w.Waiter.Owner], d.Cycle[(i+1)%len(d.Cycle)].Waiter.Owner
		if n == nil || !slices.ContainsFunc(n.to, func(e waitEdge) bool {
			return e.what.Key == w.Key && e.what.For == w.For && e.node.Owner == next
		}) {
			return false
		}
	}
	return true
}
