package dynamo

import (
	"context"
	"errors"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"
)

// DynamoDB takes items of up to 400 KiB, and counts names, values, and some bytes for each.
// All readers of a key share one. Each has a weight, which is no less than what it can ever
// take of the item, renewals included; the item has the sum, and a reader is let in only if
// that stays below maxWeight. So no newcomer makes another's renewal fail. The rest of the item
// has what is left: its key of up to 1.5 KiB, its tokens, an intent.
const (
	maxWeight   = 400<<10 - 4<<10
	readerBytes = 256 // of a reader, but its owner and its info: names, numbers, overheads
)

func weigh(owner, info string) int64 { return int64(readerBytes + 2*len(owner) + len(info)) }

// ErrFull says that a key's shared holders and their Metadata leave no room for another one in
// its item. An error that wraps it is lock.ErrHeld too.
var ErrFull = errors.New("lock: dynamo: the item of this key is full: " +
	"no room beside its living shared holders for another one with its metadata, in the 400 KiB that DynamoDB allows; " +
	"fewer holders or less metadata will help")

// maxBuried is how many dead readers one write takes away. An expression may have 4 KiB and
// 300 operators.
const maxBuried = 50

// weight is that of this acquisition as a reader.
func (a *acquisition) weight() int64 {
	return weigh(a.req.Owner, info{maxNum, maxNum, a.req.Metadata}.String())
}

// load is the weight of all readers.
func (it *item) load() (sum int64) {
	for _, h := range it.readers {
		sum += h.weight
	}
	return sum
}

// load is the weight of all readers but this owner, who is replaced.
func (a *acquisition) load(it *item) int64 {
	if h := it.of(a.req.Owner); h != nil && h.shared {
		return it.load() - h.weight
	}
	return it.load()
}

// dead are those readers that are over.
func (it *item) dead(over func(holder) bool) (dead []holder) {
	for _, h := range it.readers {
		if over(h) {
			dead = append(dead, h)
		}
	}
	return dead
}

// fits tells whether a new reader has room.
func (a *acquisition) fits(it *item) bool { return !a.req.Shared || a.load(it)+a.weight() <= maxWeight }

// makeRoom takes dead readers away and returns what is left. If there are none, the living
// fill the item, and the error says so.
func (a *acquisition) makeRoom(ctx context.Context, it *item, m moment, limit time.Duration) (*item, error) {
	dead := it.dead(func(h holder) bool { return a.over(h, m) })
	if len(dead) == 0 {
		return nil, a.refused(it, m, ErrFull)
	}
	return a.l.bury(ctx, a.req.Key, dead, limit)
}

// bury takes away some readers whose leases are over, on condition that they have not been
// renewed, and returns the item as it is then.
func (l *Locker) bury(ctx context.Context, key string, dead []holder, limit time.Duration) (*item, error) {
	dead = dead[:min(len(dead), maxBuried)]
	u := new(update)
	u.returns = types.ReturnValueAllNew
	for _, h := range dead {
		u.only(u.name(readerPrefix+h.owner) + "." + attrExpiry + " = " + u.value(h.stamp))
	}
	u.removeReaders(dead...)
	_, it, err := l.write(ctx, key, u, limit)
	if err == nil && it == nil {
		it, err = parse(key, u.after)
	}
	return it, err
}
