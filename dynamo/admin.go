package dynamo

import (
	"cmp"
	"context"
	"fmt"
	"iter"
	"maps"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"

	"github.com/seed-215fdefa/lock"
)

// Inspect implements [lock.Locker]. It is one consistent read. During the last second of a
// lease, and the second after, it cannot tell whether the lease is over. It then reads again
// later, so it never shows a holder that somebody else has already seen end. It shows no
// waiters.
func (l *Locker) Inspect(ctx context.Context, key string) (lock.Record, error) {
	if err := lock.CheckKey(key); err != nil {
		return lock.Record{}, err
	}
	if err := l.ready(ctx); err != nil {
		return lock.Record{}, err
	}
	it, m, err := l.look(ctx, key)
	if err != nil {
		return lock.Record{}, err
	}
	if left := it.unsure(m); left > 0 {
		if err := l.sleep(ctx, left); err != nil {
			return lock.Record{}, err
		}
		if it, m, err = l.look(ctx, key); err != nil {
			return lock.Record{}, err
		}
	}
	return it.record(key, m), nil
}

// look reads an item, and the clock.
func (l *Locker) look(ctx context.Context, key string) (it *item, m moment, err error) {
	err = l.repeat(ctx, func(ctx context.Context, _ int) (err error) {
		if it, err = l.read(ctx, key, true, maxAttempt); err == nil {
			m, err = l.now(ctx)
		}
		return err
	})
	return it, m, err
}

// ForceRelease implements [lock.Admin]. It is a read and a write. The holder learns of it at its
// next renewal.
func (l *Locker) ForceRelease(ctx context.Context, key, owner string) error {
	if err := l.check(ctx, lock.Grant{Key: key, Owner: owner}); err != nil {
		return err
	}
	doubt := false
	err := l.repeat(ctx, func(ctx context.Context, _ int) error {
		it, err := l.read(ctx, key, true, maxAttempt)
		for err == nil && it != nil {
			var m moment
			if m, err = l.now(ctx); err != nil {
				break
			}
			h := it.of(owner)
			switch {
			case h == nil && doubt:
				return nil // it may have been ended by a write whose reply was lost
			case h == nil || m.over(h.expiry):
				return &lock.LostError{}
			}
			u := new(update)
			u.as(it)
			u.set(attrForced, str(it.forcing(owner)))
			u.removeHolder(it, *h)
			_, it, err = l.write(ctx, key, u, maxAttempt)
			doubt = doubt || err != nil && !undone(err)
		}
		return err
	})
	if err == nil {
		l.lines.released(key)
	}
	return err
}

// List implements [lock.Admin]. It scans the table, at one read unit for each 4 KiB of all its
// items: it is for people, not for programs. If an item is not a lock, List yields an error for
// it after all locks.
func (l *Locker) List(ctx context.Context, prefix string) iter.Seq2[lock.Record, error] {
	return func(yield func(lock.Record, error) bool) {
		if err := l.ready(ctx); err != nil {
			yield(lock.Record{}, err)
			return
		}
		filter := "(attribute_exists(" + attrHolder + ") OR attribute_exists(" + attrReaders + "))"
		var foreign error
		for page, err := range l.scan(ctx, prefix, filter, nil) {
			if err != nil {
				yield(lock.Record{}, err)
				return
			}
			foreign = cmp.Or(foreign, page.foreign)
			for key, it := range page.items {
				rec := it.record(key, page.m)
				if len(rec.Holders) > 0 && !yield(rec, nil) {
					return
				}
			}
		}
		if foreign != nil {
			yield(lock.Record{}, foreign)
		}
	}
}

// Prune deletes the items of keys that begin with prefix and that were released at least idle
// ago, at least 1 h. It returns how many it deleted. Without it, an item remains for each key
// that was ever locked. Prune keeps the item of a key whose last holder died, until somebody
// acquires and releases the key again. Tokens still rise afterwards, by DynamoDB's time. Prune
// scans the table like List, and costs a write for each item that it deletes.
func (l *Locker) Prune(ctx context.Context, prefix string, idle time.Duration) (deleted int, err error) {
	if idle < time.Hour {
		return 0, fmt.Errorf("%w: idle time %v: must be at least 1h", lock.ErrInvalid, idle)
	}
	if err := l.ready(ctx); err != nil {
		return 0, err
	}
	m, err := l.surelyNow(ctx)
	if err != nil {
		return 0, err
	}
	filter := attrOpen + " < :old AND attribute_not_exists(" + attrReaders + ")"
	values := map[string]types.AttributeValue{":old": num(max(m.lower-micros(idle), 0))}
	for page, err := range l.scan(ctx, prefix, filter, values) {
		if err != nil {
			return deleted, err
		}
		for key := range page.items {
			gone, err := l.remove(ctx, key, filter, values)
			if err != nil {
				return deleted, err
			}
			if gone {
				deleted++
			}
		}
	}
	return deleted, nil
}

// remove deletes an item unless it has been used since it was seen.
func (l *Locker) remove(ctx context.Context, key, condition string, values map[string]types.AttributeValue,
) (gone bool, err error) {
	err = l.repeat(ctx, func(ctx context.Context, _ int) error {
		_, _, err := send(ctx, l, maxAttempt, l.api.DeleteItem, &dynamodb.DeleteItemInput{
			TableName: &l.table, Key: l.primary(key), ConditionExpression: &condition, ExpressionAttributeValues: values,
		})
		gone = err == nil
		if _, used := refused(err); used {
			return nil
		}
		return err
	})
	return gone, err
}

// page is a part of a scan.
type page struct {
	items   map[string]*item
	foreign error // of an item that is no lock
	m       moment
}

// scan yields the items of keys that begin with prefix and pass the filter.
func (l *Locker) scan(ctx context.Context, prefix, filter string, values map[string]types.AttributeValue,
) iter.Seq2[page, error] {
	var names map[string]string
	values = maps.Clone(values)
	if begin := validPart(l.prefix + prefix); begin != "" {
		filter = "begins_with(#key, :prefix) AND " + filter
		names = map[string]string{"#key": attrKey}
		if values == nil {
			values = make(map[string]types.AttributeValue)
		}
		values[":prefix"] = str(begin)
	}
	in := &dynamodb.ScanInput{
		TableName: &l.table, ConsistentRead: aws.Bool(true), FilterExpression: &filter,
		ExpressionAttributeNames: names, ExpressionAttributeValues: values,
	}
	return func(yield func(page, error) bool) {
		for {
			p := page{items: make(map[string]*item)}
			err := l.repeat(ctx, func(ctx context.Context, _ int) error { return l.scanPage(ctx, in, prefix, &p) })
			if err == nil {
				p.m, err = l.surelyNow(ctx)
			}
			if !yield(p, err) || err != nil || in.ExclusiveStartKey == nil {
				return
			}
		}
	}
}

// validPart is s without an incomplete character at its end, which JSON cannot hold. What
// it lets through too much is sorted out here.
func validPart(s string) string {
	for !utf8.ValidString(s) {
		s = s[:len(s)-1]
	}
	return s
}

// scanPage reads one page, and makes in that of the next.
func (l *Locker) scanPage(ctx context.Context, in *dynamodb.ScanInput, prefix string, p *page) error {
	out, _, err := send(ctx, l, maxAttempt, l.api.Scan, in)
	if err != nil {
		return err
	}
	for _, attrs := range out.Items {
		name, _ := attrs[attrKey].(*types.AttributeValueMemberS)
		if name == nil || !strings.HasPrefix(name.Value, l.prefix+prefix) {
			continue
		}
		key := strings.TrimPrefix(name.Value, l.prefix)
		it, err := parse(key, attrs)
		if err != nil {
			p.foreign = err
			continue
		}
		p.items[key] = it
	}
	in.ExclusiveStartKey = out.LastEvaluatedKey
	return nil
}
