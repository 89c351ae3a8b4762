package redlock

import (
	"cmp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/internal/rediskit"
	"github.com/seed-215fdefa/lock/internal/storekit"
)

// view is what one node says of a lock.
type view struct {
	micros  int64 // its clock
	holders []lock.Holder
	readers int // how many live; holders may have only some of them
}

// parseView reads what lua/seen.lua returns. It is not ok for any other reply.
func parseView(reply any) (v view, ok bool) {
	r, _ := reply.([]any)
	if len(r) < 3 || r[0] != "held" {
		return v, false
	}
	v.micros, _ = strconv.ParseInt(rediskit.Text(r[1]), 10, 64)
	switch rest := rediskit.Text(r[2]); {
	case rest == "+" && len(r) == 6:
		live, _ := r[5].(int64)
		v.readers = int(live)
		owners, infos := rediskit.Texts(r[3]), rediskit.Texts(r[4])
		for i := range min(len(owners), len(infos)) {
			expiry, info, _ := strings.Cut(infos[i], ":")
			token, info, _ := strings.Cut(info, ":")
			v.add(owners[i], expiry, token, info, true)
		}
	case rest != "":
		if p := strings.SplitN(rest, ":", 4); len(p) == 4 {
			v.add(p[2], p[0], p[1], p[3], false)
		}
	}
	return v, true
}

// add adds a holder that is live, with what is vote:metadata; see lua/base.lua.
func (v *view) add(owner, expiry, token, info string, shared bool) {
	end, err := strconv.ParseInt(expiry, 10, 64)
	left := time.Duration(end)*time.Millisecond - time.Duration(v.micros/1000)*time.Millisecond
	if err != nil || left < 0 {
		return
	}
	t, _ := strconv.ParseUint(token, 10, 53)
	granted, metadata, _ := strings.Cut(info, ":")
	granted, _, _ = strings.Cut(granted, "-") // from who cast the vote
	h := lock.Holder{Owner: owner, Token: lock.Token(t), Shared: shared, Held: -1, ExpiresIn: left}
	if since, err := strconv.ParseInt(granted, 10, 64); err == nil && since > 0 {
		h.Held = time.Duration(max(v.micros-since, 0)) * time.Microsecond
	}
	h.Metadata, _ = storekit.DecodeMetadata(metadata) // else it has none to show
	v.holders = append(v.holders, h)
}

// holding is one holder as several nodes see it.
type holding struct {
	lock.Holder
	nodes    int
	recorded int             // nodes that have recorded Token
	left     []time.Duration // on each of the nodes
	tokens   []lock.Token    // likewise; 0 is that of a vote without one
}

// outcome is what the views of a lock come to.
type outcome struct {
	views   []view
	holders []holding // those with the most nodes first
	least   int       // how many of the views a quorum has at least
}

// outcome puts the nodes' views together.
func (b *ballot) outcome() outcome {
	var o outcome
	for _, a := range b.answers {
		if v, ok := parseView(a.reply); ok {
			o.views = append(o.views, v)
		}
	}
	o.least = max(1, b.quorum-(len(b.nodes)-len(o.views)))
	o.holders = tally(o.views, b.quorum)
	return o
}

func tally(views []view, quorum int) []holding {
	byOwner := make(map[string]*holding)
	for _, v := range views {
		for _, h := range v.holders {
			t := byOwner[h.Owner]
			if t == nil {
				t = &holding{Holder: h}
				byOwner[h.Owner] = t
			}
			t.nodes++
			t.left = append(t.left, h.ExpiresIn)
			t.tokens = append(t.tokens, h.Token)
			t.Held = max(t.Held, h.Held)
			if t.Metadata == nil {
				t.Metadata = h.Metadata
			}
		}
	}
	all := make([]holding, 0, len(byOwner))
	for _, t := range byOwner {
		t.conclude(quorum)
		all = append(all, *t)
	}
	slices.SortFunc(all, func(a, b holding) int {
		return cmp.Or(cmp.Compare(b.nodes, a.nodes), cmp.Compare(b.Token, a.Token), cmp.Compare(a.Owner, b.Owner))
	})
	return all
}

// conclude finds what a quorum says. A grant is over when it is over on so many nodes that
// those left are no quorum. Its token is the one that the most nodes have recorded: others are
// of tries that came to nothing.
func (h *holding) conclude(quorum int) {
	slices.SortFunc(h.left, func(a, b time.Duration) int { return cmp.Compare(b, a) })
	h.ExpiresIn = h.left[min(len(h.left), quorum)-1]
	slices.Sort(h.tokens)
	h.Token = 0
	alike := 0
	for i, token := range h.tokens {
		if i > 0 && token != h.tokens[i-1] {
			alike = 0
		}
		if alike++; token > 0 && alike >= h.recorded {
			h.Token, h.recorded = token, alike
		}
	}
}

// record has those holders that are there on at least so many nodes. One whose token no quorum
// can have recorded has none yet, and is no holder so far. Where more than one may have the
// lock, since nodes do not answer, the one with the most nodes is shown.
func (o outcome) record(key string, nodes int) lock.Record {
	r := lock.Record{Key: key}
	for _, h := range o.holders {
		if h.nodes < nodes || h.recorded < o.least || len(r.Holders) > 0 && (!h.Shared || !r.Holders[0].Shared) {
			continue
		}
		r.Holders = append(r.Holders, h.Holder)
		r.Token = max(r.Token, h.Token)
	}
	if len(r.Holders) > 0 && r.Holders[0].Shared {
		for _, v := range o.views {
			if v.readers > len(v.holders) { // it shows only some
				r.HolderCount = max(r.HolderCount, v.readers)
			}
		}
	}
	storekit.Bound(&r)
	return r
}
