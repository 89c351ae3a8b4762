package dynamo_test

import (
	"maps"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"
	"github.com/stretchr/testify/require"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/dynamo"
	"github.com/seed-215fdefa/lock/internal/storetest"
)

func digits(n string) *types.AttributeValueMemberN { return &types.AttributeValueMemberN{Value: n} }

// bulky makes req as large as a request can be: a control character takes six bytes as JSON.
func bulky(req lock.Request) lock.Request {
	req.Metadata = map[string]string{"k": strings.Repeat("\x01", lock.MaxMetadataLen-1)}
	return storetest.Shared(req)
}

// crowd fills the item of "k" with readers that end at expiry, like the one it has.
func (w world) crowd(t *testing.T, g lock.Grant, expiry time.Time) {
	t.Helper()
	it := w.items(t)[g.Key]
	one := maps.Clone(it["reader:"+g.Owner].(*types.AttributeValueMemberM).Value)
	one["expiry"] = digits(strconv.FormatInt(expiry.UnixMicro(), 10))
	weight, err := strconv.Atoi(one["weight"].(*types.AttributeValueMemberN).Value)
	require.NoError(t, err)
	owners := it["readers"].(*types.AttributeValueMemberSS)
	n := 0
	for ; (n+1)*weight <= 396<<10; n++ {
		owner := g.Owner[:len(g.Owner)-4] + strconv.Itoa(1000+n)
		it["reader:"+owner] = &types.AttributeValueMemberM{Value: one}
		owners.Value = append(owners.Value, owner)
	}
	it["weight"] = digits(strconv.Itoa(len(owners.Value) * weight))
	w.put(t, it)
}

// TestDeadReadersMakeRoom: they fill the item. A newcomer takes them away, as many as it
// needs, in writes that are no larger than an expression may be.
func TestDeadReadersMakeRoom(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	p := w.open(t)
	g := storetest.Acquire(t, p, storetest.Shared(storetest.Request("k")))
	w.crowd(t, g, time.Now().Add(-time.Hour))
	p.http.sent()
	storetest.Release(t, p, storetest.Acquire(t, p, bulky(storetest.Request("k"))))
	require.Greater(t, p.http.sent()["UpdateItem"], 3, "a refusal, two parts at least, and a grant")
	storetest.Holds(t, p, g)
	storetest.Renew(t, p, g)
}

// TestBuriedAlive: what is read as dead renews before it is taken away, and stays.
func TestBuriedAlive(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	p, other := w.open(t), w.open(t)
	g := storetest.Acquire(t, p, storetest.Shared(storetest.Request("k")))
	w.crowd(t, g, time.Now().Add(-time.Hour))
	late := g
	late.Owner = g.Owner[:len(g.Owner)-4] + "1000"
	p.http.first(nth(2), func() error { // the first is refused, since the item is full
		it := w.items(t)["k"]
		it["reader:"+late.Owner].(*types.AttributeValueMemberM).Value["expiry"] = it["reader:"+g.Owner].(*types.AttributeValueMemberM).Value["expiry"]
		w.put(t, it)
		return nil
	})
	storetest.Acquire(t, p, bulky(storetest.Request("k")))
	storetest.Renew(t, other, late)
}

// TestFull: living readers fill the item. A newcomer is told why it is refused, and no
// living one's renewal fails, nor a writer's intent or an operator's force.
func TestFull(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	p := w.open(t)
	var grants []lock.Grant
	ctx := storetest.Bounded(t)
	var err error
	for err == nil {
		var g lock.Grant
		if g, err = p.Acquire(ctx, bulky(storetest.Request("k"))); err == nil {
			grants = append(grants, g)
		}
	}
	require.ErrorIs(t, err, lock.ErrHeld)
	require.ErrorIs(t, err, dynamo.ErrFull)
	require.NotErrorIs(t, err, dynamo.ErrUnfit)
	require.Greater(t, len(grants), 12)
	waits := storetest.Waits(t, p, bulky(storetest.Request("k")))
	small, err := p.Acquire(ctx, storetest.Shared(storetest.Request("k")))
	for ; err == nil; small, err = p.Acquire(ctx, storetest.Shared(storetest.Request("k"))) {
		grants = append(grants, small)
	}
	require.ErrorIs(t, err, dynamo.ErrFull)
	rec := storetest.Inspect(t, p, "k")
	require.Equal(t, len(grants), rec.HolderCount)
	require.Len(t, rec.Holders, lock.MaxRecord)
	for _, g := range grants {
		g.TTL = lock.MaxTTL - 1
		storetest.Renew(t, p, g)
	}
	writer := storetest.Waits(t, p, storetest.Request("k"))
	writer.Cancel()
	writer.End(t)
	storetest.Release(t, p, lock.Grant{Key: "k", Owner: writer.Owner})
	require.NoError(t, p.ForceRelease(ctx, "k", grants[0].Owner))
	storetest.Release(t, p, waits.Granted(t))
}

// TestFormerWriter: nothing of a writer with much Metadata stays in the item, where it would take the
// readers' room, however its grant ends.
func TestFormerWriter(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	p := w.open(t)
	writer := func(key string, ttl time.Duration) lock.Grant {
		req := bulky(storetest.Lasting(storetest.Request(key), ttl))
		req.Shared = false
		return storetest.Acquire(t, p, req)
	}
	left := func(key string) {
		for _, attr := range []string{"holder", "expiry", "info", "lease", "floor"} {
			require.NotContains(t, w.items(t)[key], attr, key)
		}
	}
	ctx := storetest.Bounded(t)

	dead := writer("taken over", time.Second)
	g := storetest.Renew(t, p, writer("undone", time.Minute))
	storetest.Release(t, p, lock.Grant{Key: g.Key, Owner: g.Owner})
	left(g.Key)

	g = storetest.Renew(t, p, writer("forced", time.Minute))
	require.NoError(t, p.ForceRelease(ctx, g.Key, g.Owner))
	left(g.Key)

	g = storetest.Renew(t, p, writer("released beside an undo", time.Minute))
	storetest.Release(t, p, lock.Grant{Key: g.Key, Owner: "another"})
	require.Contains(t, w.items(t)[g.Key], "floor")
	storetest.Release(t, p, g)
	left(g.Key)

	time.Sleep(time.Until(dead.Start.Add(dead.TTL + p.Capabilities().ExpirySlack)))
	storetest.Acquire(t, p, storetest.Shared(storetest.Request(dead.Key)))
	left(dead.Key)
}

// TestOutOfRange: whatever numbers an item has, its lock is seen, listed, and freed by force,
// and does not hide others.
func TestOutOfRange(t *testing.T) {
	t.Parallel()
	for name, n := range map[string]string{
		"max": "9223372036854775807", "below max": "9223372036853775808", "beyond": "1" + strings.Repeat("0", 37), "negative lease": "9000000000000000",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			both(t, func(t *testing.T, mode func(lock.Request) lock.Request) {
				w := sharedWorld(t)
				p := w.open(t)
				g := storetest.Acquire(t, p, mode(storetest.Request("k")))
				good := storetest.Acquire(t, p, storetest.Request("good"))
				it := w.items(t)["k"]
				of := it
				if g.Shared {
					of = it["reader:"+g.Owner].(*types.AttributeValueMemberM).Value
				}
				of["expiry"] = digits(n)
				of["info"] = text(`{"granted":-9223372036854775807,"lease":-9223372036854775807}`)
				it["intent"] = text("9223372036854775807:x")
				w.put(t, it)
				rec := storetest.Refused(t, p, storetest.Request("k"))
				require.Len(t, rec.Holders, 1)
				require.Greater(t, rec.Holders[0].ExpiresIn, lock.MaxTTL/2)
				require.GreaterOrEqual(t, rec.Holders[0].Held, time.Duration(0))
				seen := make(map[string]string)
				for rec, err := range p.List(storetest.Bounded(t), "") {
					require.NoError(t, err)
					seen[rec.Key] = rec.Holders[0].Owner
				}
				require.Equal(t, map[string]string{"k": g.Owner, "good": good.Owner}, seen)
				require.NoError(t, p.ForceRelease(storetest.Bounded(t), "k", g.Owner))
				storetest.Release(t, p, storetest.Acquire(t, p, mode(storetest.Request("k"))))
				storetest.Release(t, p, storetest.Acquire(t, p, storetest.Request("k")))
			})
		})
	}
}

// TestOutOfRangeEnds: a holder whose end is out of range is taken over from when it has not
// been renewed for all of its lease.
func TestOutOfRangeEnds(t *testing.T) {
	t.Parallel()
	both(t, func(t *testing.T, mode func(lock.Request) lock.Request) {
		w := sharedWorld(t)
		p := w.open(t)
		g := storetest.Acquire(t, p, mode(storetest.Lasting(storetest.Request("k"), time.Second)))
		it := w.items(t)["k"]
		if g.Shared {
			it["reader:"+g.Owner].(*types.AttributeValueMemberM).Value["expiry"] = digits("9223372036854775807")
		} else {
			it["expiry"] = digits("9223372036854775807")
		}
		w.put(t, it)
		storetest.Release(t, p, storetest.Await(t, p, storetest.Request("k")))
	})
}

// TestListTellsOfForeignItems after all that are locks.
func TestListTellsOfForeignItems(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	p := w.open(t)
	g := storetest.Acquire(t, p, storetest.Request("k"))
	it := w.primary("foreign")
	it["holder"] = text("somebody")
	w.put(t, it)
	var told error
	n := 0
	for rec, err := range p.List(storetest.Bounded(t), "") {
		require.NoError(t, told, "an error ends it")
		if told = err; err == nil {
			n++
			require.Equal(t, g.Owner, rec.Holders[0].Owner)
		}
	}
	require.Equal(t, 1, n)
	require.ErrorContains(t, told, "foreign")
}

// TestReaderDeleted: an operator has deleted a reader's attribute, but not its place in the set.
// The reader learns it, and a writer gets the lock.
func TestReaderDeleted(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	p := w.open(t)
	g := storetest.Acquire(t, p, storetest.Shared(storetest.Request("k")))
	it := w.items(t)["k"]
	delete(it, "reader:"+g.Owner)
	w.put(t, it)
	_, err := p.Renew(storetest.Bounded(t), g)
	require.Zero(t, storetest.Lost(t, err))
	storetest.Release(t, p, storetest.Acquire(t, p, storetest.Request("k")))
}
