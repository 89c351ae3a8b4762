package redlock

import (
	"cmp"
	"encoding/json"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/seed-215fdefa/lock"
)

// encodeMetadata is JSON, or "" for none.
func encodeMetadata(m map[string]string) string {
	if len(m) == 0 {
		return ""
	}
	b, err := json.Marshal(m)
	if err != nil {
		panic("lock/redlock: a map of strings has no JSON: " + err.Error())
	}
	return string(b)
}

// view is what one node says of a lock.
type view struct {
	micros  int64 // its clock
	holders []lock.Holder
}

// parseView reads what lua/seen.lua returns. It is not ok for any other reply.
func parseView(reply any) (v view, ok bool) {
	r, _ := reply.([]any)
	if len(r) < 3 || r[0] != "held" && r[0] != "seen" {
		return v, false
	}
	v.micros, _ = strconv.ParseInt(text(r[1]), 10, 64)
	switch rest := text(r[2]); {
	case rest == "+" && len(r) == 5:
		owners, infos := texts(r[3]), texts(r[4])
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

// add adds a holder that is live, with what is granted µs:metadata.
func (v *view) add(owner, expiry, token, info string, shared bool) {
	end, err := strconv.ParseInt(expiry, 10, 64)
	left := time.Duration(end)*time.Millisecond - time.Duration(v.micros/1000)*time.Millisecond
	if err != nil || left < 0 {
		return
	}
	t, _ := strconv.ParseUint(token, 10, 53)
	granted, metadata, _ := strings.Cut(info, ":")
	h := lock.Holder{Owner: owner, Token: lock.Token(t), Shared: shared, Held: -1, ExpiresIn: left}
	if since, err := strconv.ParseInt(granted, 10, 64); err == nil && since > 0 {
		h.Held = time.Duration(max(v.micros-since, 0)) * time.Microsecond
	}
	if metadata != "" {
		_ = json.Unmarshal([]byte(metadata), &h.Metadata) // else it has none to show
	}
	v.holders = append(v.holders, h)
}

// holding is one holder as several nodes see it.
type holding struct {
	lock.Holder
	nodes int
	left  []time.Duration // on each of them
}

// tally puts the nodes' views together: those with the most nodes first.
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
			t.Token = max(t.Token, h.Token)
			t.Held = max(t.Held, h.Held)
			if t.Metadata == nil {
				t.Metadata = h.Metadata
			}
		}
	}
	all := make([]holding, 0, len(byOwner))
	for _, t := range byOwner {
		// It is over when it is over on so many that those left are no quorum.
		slices.SortFunc(t.left, func(a, b time.Duration) int { return cmp.Compare(b, a) })
		t.ExpiresIn = t.left[min(len(t.left), quorum)-1]
		all = append(all, *t)
	}
	slices.SortFunc(all, func(a, b holding) int {
		return cmp.Or(cmp.Compare(b.nodes, a.nodes), cmp.Compare(a.Owner, b.Owner))
	})
	return all
}

// record has those holders that are there on at least so many nodes.
func record(key string, all []holding, nodes int) lock.Record {
	r := lock.Record{Key: key}
	for _, h := range all {
		if h.nodes >= nodes {
			r.Holders = append(r.Holders, h.Holder)
			r.Token = max(r.Token, h.Token)
		}
	}
	return r
}

func text(v any) string {
	s, _ := v.(string)
	return s
}

func texts(v any) []string {
	list, _ := v.([]any)
	all := make([]string, len(list))
	for i, e := range list {
		all[i] = text(e)
	}
	return all
}
