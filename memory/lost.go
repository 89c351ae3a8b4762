package memory

import (
	"time"

	"github.com/seed-215fdefa/lock"
)

// notices are calls of Request.Lost that are due, collected under the mutex and made
// after it. A holder that releases between the two is told twice that it has lost: by
// its Release, and by a Lost that was under way.
type notices []notice

type notice struct {
	lost   func(lock.LostReason)
	reason lock.LostReason
}

// add notes that h is lost, unless nobody wants to know. Who has not claimed its grant
// does not miss it either: it lines up again, and its next grant may be lost once more.
func (n *notices) add(h *hold, why lock.LostReason) {
	if h.lost != nil && h.unclaimed == nil {
		*n = append(*n, notice{h.lost, why})
	}
}

func (n notices) tell() {
	for _, x := range n {
		x.lost(x.reason)
	}
}

// claim names a grant by what its holder knows of it.
type claim struct {
	key, owner string
	token      lock.Token
}

// mark remembers that a grant was forced, for as long as it would have lived.
type mark struct{ expires time.Duration }

// minQuota is how many marks are too few to be swept.
const minQuota = 64

// remember makes h's mark. Marks that nobody asks about, at twice as many as were left
// the last time, bring a look at all.
func (s *store) remember(e *entry, h *hold, now moment) {
	if len(s.forced) >= s.quota {
		for c, m := range s.forced {
			if now.at >= m.expires {
				delete(s.forced, c)
			}
		}
		s.quota = max(minQuota, 2*len(s.forced))
	}
	s.forced[claim{e.key, h.owner, h.token}] = mark{h.expires}
}

// lostError says why g is not live. e is g.Key's entry after a refresh, or nil.
func (s *store) lostError(e *entry, g lock.Grant, now moment) error {
	err := &lock.LostError{Token: g.Token}
	m, forced := s.forced[claim{g.Key, g.Owner, g.Token}]
	switch {
	case forced && now.at < m.expires:
		err.Reason = lock.ReasonForced
	case e != nil:
		err.Reason = lock.ReasonTaken
	case !g.Start.IsZero() && now.t.Sub(g.Start) >= g.TTL:
		err.Reason = lock.ReasonExpired
	}
	return err
}
