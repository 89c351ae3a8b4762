package dynamo

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/internal/storekit"
)

// The attributes of a lock's item. Times are µs since 1970, by DynamoDB's clock. An item
// that is written has as few as can be, since each costs time. None but the first has a
// name that is reserved, so that expressions need no placeholders.
const (
	attrKey = "key" // S: the prefix and the lock's key; the table's partition key

	// The highest token granted. It is left out where attrHolder tells it, and where it is
	// that of attrOpen.
	attrToken = "minted" // N

	// One of these two refuses what comes late: no grant may have a token up to this one.
	// There is attrOpen, and it is no less than attrToken, if and only if there is no
	// exclusive holder. Beside one there may be attrFloor, which makes its release look at
	// the item: see undo, and ask, for which it is 0.
	attrOpen  = "barrier" // N
	attrFloor = "floor"   // N

	// Of the exclusive holder. The first says that there is one.
	attrHolder = "holder" // S: token:owner
	attrExpiry = "expiry" // N: later with each renewal
	attrInfo   = "info"   // S: see info
	attrLease  = "lease"  // N: how long the last renewal lasts, in µs

	// Of shared holders. The set is there as long as there is one.
	attrReaders  = "readers" // SS: their owners
	readerPrefix = "reader:" // M: what follows is the owner; it has token, expiry, info, lease
	attrRev      = "rev"     // S: another random one with each write for a shared holder
	attrWeight   = "weight"  // N: of a reader, and of the item: of all its readers, see weigh

	attrIntent = "intent" // S: until when readers hold back for a writer, and whose, see intent
	attrForced = "forced" // S: whose grants were forced last, the last first, by spaces
)

// item is what the table knows of one lock.
type item struct {
	exists  bool
	attrs   map[string]types.AttributeValue // as they were read
	weight  int64                           // as attrWeight tells
	token   lock.Token
	open    lock.Token
	floor   lock.Token
	floored bool // there is attrFloor
	writer  *holder
	readers []holder
	intent  intent
	forced  []string
}

// holder is one grant, which may be over. Its token and its expiry together are what
// nothing else has been or will be.
type holder struct {
	owner  string
	shared bool
	token  lock.Token
	expiry int64
	stamp  types.AttributeValue // attrExpiry as it was read
	weight int64                // of a reader
	lease  time.Duration
	info   info
}

// info is what the holder wrote when it was granted the lock.
type info struct {
	Granted  int64             `json:"granted"`
	Lease    int64             `json:"lease"` // in µs
	Metadata map[string]string `json:"metadata,omitempty"`
}

func (i info) String() string {
	b, err := json.Marshal(i)
	if err != nil {
		panic("lock/dynamo: a map of strings has no JSON: " + err.Error())
	}
	return string(b)
}

// errForeign is the error for an item that this package did not write.
var errForeign = errors.New("lock: dynamo: an item of this table is not a lock: give locks a table of their own")

// parse reads an item; one that does not exist has no attributes.
func parse(key string, attrs map[string]types.AttributeValue) (*item, error) {
	p := parser{attrs: attrs}
	it := &item{
		exists: len(attrs) > 0, attrs: attrs, forced: strings.Fields(p.str(attrForced)), weight: p.num(attrWeight),
		token: p.token(attrToken), open: p.token(attrOpen),
		floor: p.token(attrFloor), floored: p.has(attrFloor),
	}
	it.intent = p.intent()
	switch {
	case p.has(attrHolder):
		w := p.writer()
		it.token, it.writer = w.token, &w
	case !p.has(attrToken):
		it.token = it.open
	}
	if it.exists && p.has(attrOpen) == p.has(attrHolder) {
		p.bad = attrOpen
	}
	for name, v := range attrs {
		owner, ok := strings.CutPrefix(name, readerPrefix)
		if !ok {
			continue
		}
		m, ok := v.(*types.AttributeValueMemberM)
		if !ok {
			p.bad = name
			break
		}
		of := parser{attrs: m.Value}
		r := of.holder()
		r.owner, r.shared = owner, true
		r.weight = max(r.weight, weigh(owner, of.str(attrInfo)))
		it.readers = append(it.readers, r)
		if of.bad != "" {
			p.bad = name + "." + of.bad
		}
	}
	if p.bad != "" {
		return nil, fmt.Errorf("%w: attribute %s of the item %q", errForeign, p.bad, key)
	}
	slices.SortFunc(it.readers, func(a, b holder) int { return strings.Compare(a.owner, b.owner) })
	return it, nil
}

// parser reads attributes, and remembers one that is not as it must be.
type parser struct {
	attrs map[string]types.AttributeValue
	bad   string
}

func (p *parser) has(name string) bool { return p.attrs[name] != nil }

func (p *parser) str(name string) string {
	switch v := p.attrs[name].(type) {
	case nil:
		return ""
	case *types.AttributeValueMemberS:
		return v.Value
	}
	p.bad = name
	return ""
}

func (p *parser) num(name string) int64 {
	switch v := p.attrs[name].(type) {
	case nil:
		return 0
	case *types.AttributeValueMemberN:
		return p.digits(name, v.Value)
	}
	p.bad = name
	return 0
}

// maxNum leaves room to calculate.
const maxNum = 1<<62 - 1

// digits reads s, which is in attribute name. A number that is out of range, by whatever it
// was written, counts as the nearest that is not, so that the lock can still be seen and freed.
func (p *parser) digits(name, s string) int64 {
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil {
		f, err := strconv.ParseFloat(s, 64)
		switch {
		case err != nil && !errors.Is(err, strconv.ErrRange):
			p.bad = name
		case f > 0:
			n = int64(min(f, maxNum/2)) // as a float maxNum is above itself
		}
	}
	return min(max(n, 0), maxNum)
}

func (p *parser) token(name string) lock.Token { return p.limited(name, p.num(name)) }

// limited leaves room for the tokens that come after it.
func (p *parser) limited(name string, n int64) lock.Token {
	if n > int64(lock.MaxToken-1<<20) {
		p.bad = name
	}
	return lock.Token(n)
}

func (p *parser) writer() holder {
	w := p.holder()
	token, owner, _ := strings.Cut(p.str(attrHolder), ":")
	w.token, w.owner = p.limited(attrHolder, p.digits(attrHolder, token)), owner
	if owner == "" {
		p.bad = attrHolder
	}
	return w
}

// holder reads what writers and readers have alike.
func (p *parser) holder() holder {
	h := holder{token: p.token(attrToken), expiry: p.num(attrExpiry), stamp: p.attrs[attrExpiry], weight: p.num(attrWeight)}
	if json.Unmarshal([]byte(p.str(attrInfo)), &h.info) != nil {
		p.bad = attrInfo
	}
	h.info.Granted = max(h.info.Granted, 0)
	lease := h.info.Lease
	if p.has(attrLease) {
		lease = p.num(attrLease)
	}
	h.lease = lock.MaxTTL // of what says nothing that can be
	if 0 < lease && lease < micros(lock.MaxTTL) {
		h.lease = time.Duration(lease) * time.Microsecond
	}
	return h
}

func (p *parser) intent() intent {
	s := p.str(attrIntent)
	if s == "" {
		return intent{}
	}
	until, owner, _ := strings.Cut(s, ":")
	n, err := strconv.ParseInt(until, 10, 64)
	if err != nil {
		p.bad = attrIntent
	}
	return intent{n, owner}
}

// holders are all of them, live or not.
func (it *item) holders() []holder {
	if it.writer != nil {
		return append([]holder{*it.writer}, it.readers...)
	}
	return it.readers
}

// of is owner's grant, or nil.
func (it *item) of(owner string) *holder {
	if it.writer != nil && it.writer.owner == owner {
		return it.writer
	}
	for i := range it.readers {
		if it.readers[i].owner == owner {
			return &it.readers[i]
		}
	}
	return nil
}

// maxForced is how many owners attrForced has room for, beside a full item: see maxWeight.
const maxForced = 16

// forcing is attrForced with one owner more.
func (it *item) forcing(owner string) string {
	return strings.Join(append([]string{owner}, it.forced[:min(len(it.forced), maxForced-1)]...), " ")
}

// identity is what is in attrHolder.
func identity(token lock.Token, owner string) types.AttributeValue {
	return str(token.String() + ":" + owner)
}

// barrier is the highest token that no grant may have any more.
func (it *item) barrier() lock.Token { return max(it.token, it.open, it.floor) }

// record is what is left of the item without those holders that are over, bounded.
func (it *item) record(key string, m moment) lock.Record {
	rec := lock.Record{Key: key, Token: it.token}
	for _, h := range it.holders() {
		if m.over(h.expiry) {
			continue
		}
		rec.Holders = append(rec.Holders, lock.Holder{
			Owner: h.owner, Token: h.token, Shared: h.shared, Metadata: h.info.Metadata,
			Held:      time.Duration(max(m.lower-h.info.Granted, 0)) * time.Microsecond,
			ExpiresIn: m.left(h.expiry),
		})
	}
	storekit.Bound(&rec)
	return rec
}

// unsure is how long it takes until it is certain of all holders whether their leases, as
// they are now, are over. 0: it is so now.
func (it *item) unsure(m moment) (wait time.Duration) {
	for _, h := range it.holders() {
		if h.expiry <= m.upper {
			wait = max(wait, m.left(h.expiry))
		}
	}
	return wait
}
