package httplock

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/internal/service"
)

// duration is a time.Duration as JSON: a string of decimal seconds and "s", exact to the
// nanosecond, such as "12.5s". Requests may use any other form of time.ParseDuration.
type duration time.Duration

// MarshalJSON implements json.Marshaler.
func (d duration) MarshalJSON() ([]byte, error) {
	b := append(make([]byte, 0, 24), '"')
	if d < 0 {
		b = append(b, '-')
	}
	n := uint64(d)
	if d < 0 {
		n = -n
	}
	b = strconv.AppendUint(b, n/1e9, 10)
	if rest := n % 1e9; rest > 0 {
		b = append(b, '.')
		b = append(b, strings.TrimRight(fmt.Sprintf("%09d", rest), "0")...)
	}
	return append(b, 's', '"'), nil
}

// UnmarshalJSON implements json.Unmarshaler.
func (d *duration) UnmarshalJSON(b []byte) error {
	s, quoted := strings.CutPrefix(string(b), `"`)
	s, closed := strings.CutSuffix(s, `"`)
	v, err := time.ParseDuration(s)
	if !quoted || !closed || err != nil {
		return fmt.Errorf("duration %.40s: must be a string such as \"30s\", \"1.5s\" or \"250ms\", of at most %v", b, lock.MaxTTL)
	}
	*d = duration(v)
	return nil
}

// acquireBody asks for a grant.
type acquireBody struct {
	Owner     string            `json:"owner"`
	TTL       duration          `json:"ttl"`
	Shared    bool              `json:"shared,omitempty"`
	Wait      bool              `json:"wait,omitempty"`
	HeadStart duration          `json:"head_start,omitempty"`
	Metadata  map[string]string `json:"metadata,omitempty"`
	Under     []string          `json:"under,omitempty"`
}

func (b acquireBody) request(key string) lock.Request {
	return lock.Request{
		Key: key, Owner: b.Owner, TTL: time.Duration(b.TTL), Shared: b.Shared, Wait: b.Wait,
		HeadStart: time.Duration(b.HeadStart), Metadata: b.Metadata, Under: b.Under,
	}
}

func toAcquire(r lock.Request) acquireBody {
	return acquireBody{
		Owner: r.Owner, TTL: duration(r.TTL), Shared: r.Shared, Wait: r.Wait,
		HeadStart: duration(r.HeadStart), Metadata: r.Metadata, Under: r.Under,
	}
}

// grantBody asks for a renewal or a release, and tells of a grant.
type grantBody struct {
	Key    string     `json:"key,omitempty"` // in replies
	Owner  string     `json:"owner"`
	Token  lock.Token `json:"token,omitempty"`
	TTL    duration   `json:"ttl,omitempty"`
	Shared bool       `json:"shared,omitempty"`
	// Renew, in the reply to a poll, says that the grant is shorter than asked for, and must be
	// renewed before it is used.
	Renew bool `json:"renew,omitempty"`
}

func (b grantBody) grant(key string) lock.Grant {
	return lock.Grant{Key: key, Owner: b.Owner, Token: b.Token, TTL: time.Duration(b.TTL), Shared: b.Shared}
}

func toGrant(g lock.Grant) grantBody {
	return grantBody{Key: g.Key, Owner: g.Owner, Token: g.Token, TTL: duration(g.TTL), Shared: g.Shared}
}

// lineBody is the reply to one who stands in line.
type lineBody struct {
	New    bool        `json:"new,omitempty"`    // this replica did not know of the waiter
	Record *recordBody `json:"record,omitempty"` // of those in front, if it is new
}

func toLine(a service.Answer) lineBody {
	b := lineBody{New: a.New}
	if a.Record.Key != "" {
		b.Record = toRecord(a.Record)
	}
	return b
}

// acquireReply is any of the bodies that an acquire request is answered with.
type acquireReply struct {
	grantBody
	lineBody
}

func (b acquireReply) answer(key string) service.Answer {
	a := service.Answer{Grant: b.grant(key), Renew: b.Renew, New: b.New}
	if b.Record != nil {
		a.Record = b.Record.record()
	}
	return a
}

// forceBody asks for a ForceRelease.
type forceBody struct {
	Owner string `json:"owner"`
}

// serviceBody is what the service says of itself.
type serviceBody struct {
	Store         string        `json:"store"`
	Shared        bool          `json:"shared"`
	FIFO          bool          `json:"fifo"`
	Priority      bool          `json:"priority"`
	Push          bool          `json:"push"`
	MinTTL        duration      `json:"min_ttl"`
	ExpirySlack   duration      `json:"expiry_slack"`
	TokenSurvives lock.Survival `json:"token_survives"`
	HoldSurvives  lock.Survival `json:"hold_survives"`
}

func toService(c lock.Capabilities) serviceBody {
	return serviceBody{
		c.Store, c.Shared, c.FIFO, c.Priority, c.Push, duration(c.MinTTL), duration(c.ExpirySlack),
		c.TokenSurvives, c.HoldSurvives,
	}
}

func (b serviceBody) capabilities() lock.Capabilities {
	return lock.Capabilities{
		Store: b.Store, Shared: b.Shared, FIFO: b.FIFO, Priority: b.Priority, Push: b.Push,
		MinTTL: time.Duration(b.MinTTL), ExpirySlack: time.Duration(b.ExpirySlack),
		TokenSurvives: b.TokenSurvives, HoldSurvives: b.HoldSurvives,
	}
}

// recordBody is a lock.Record. What is not known is left out.
type recordBody struct {
	Key         string       `json:"key"`
	Token       lock.Token   `json:"token,omitempty"`
	Holders     []holderBody `json:"holders"`
	Waiters     []waiterBody `json:"waiters"`
	HolderCount int          `json:"holder_count"`
	WaiterCount int          `json:"waiter_count"`
}

type holderBody struct {
	Owner     string            `json:"owner"`
	Token     lock.Token        `json:"token,omitempty"`
	Shared    bool              `json:"shared,omitempty"`
	Held      *duration         `json:"held,omitempty"`
	ExpiresIn *duration         `json:"expires_in,omitempty"`
	Metadata  map[string]string `json:"metadata,omitempty"`
}

type waiterBody struct {
	Owner    string            `json:"owner"`
	Shared   bool              `json:"shared,omitempty"`
	Waited   duration          `json:"waited"`
	Metadata map[string]string `json:"metadata,omitempty"`
	Under    []string          `json:"under,omitempty"`
}

func toRecord(r lock.Record) *recordBody {
	b := &recordBody{
		Key: r.Key, Token: r.Token, HolderCount: r.HolderCount, WaiterCount: r.WaiterCount,
		Holders: make([]holderBody, 0, len(r.Holders)), Waiters: make([]waiterBody, 0, len(r.Waiters)),
	}
	for _, h := range r.Holders {
		b.Holders = append(b.Holders, holderBody{h.Owner, h.Token, h.Shared, known(h.Held), known(h.ExpiresIn), h.Metadata})
	}
	for _, w := range r.Waiters {
		b.Waiters = append(b.Waiters, waiterBody{w.Owner, w.Shared, duration(w.Waited), w.Metadata, w.Under})
	}
	return b
}

func (b *recordBody) record() lock.Record {
	r := lock.Record{Key: b.Key, Token: b.Token, HolderCount: b.HolderCount, WaiterCount: b.WaiterCount}
	for _, h := range b.Holders {
		r.Holders = append(r.Holders, lock.Holder{
			Owner: h.Owner, Token: h.Token, Shared: h.Shared, Metadata: h.Metadata,
			Held: h.Held.orUnknown(), ExpiresIn: h.ExpiresIn.orUnknown(),
		})
	}
	for _, w := range b.Waiters {
		r.Waiters = append(r.Waiters, lock.Waiter{
			Owner: w.Owner, Shared: w.Shared, Waited: time.Duration(w.Waited), Metadata: w.Metadata, Under: w.Under,
		})
	}
	return r
}

// known is nil for a negative d, which is not known.
func known(d time.Duration) *duration {
	if d < 0 {
		return nil
	}
	return (*duration)(&d)
}

func (d *duration) orUnknown() time.Duration {
	if d == nil {
		return -1
	}
	return time.Duration(*d)
}
