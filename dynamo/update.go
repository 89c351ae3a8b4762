package dynamo

import (
	"context"
	"math/rand/v2"
	"strconv"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"

	"github.com/seed-215fdefa/lock"
)

// update is one conditional write of one item, which is atomic. Its parts are as in the
// expressions of UpdateItem.
type update struct {
	item                         map[string]types.AttributeValue // if not nil: the whole item, by PutItem
	conditions                   []string
	sets, removes, adds, deletes []string
	names                        map[string]string               // nil: none, as DynamoDB wants it
	values                       map[string]types.AttributeValue // likewise
	returns                      types.ReturnValue
	after                        map[string]types.AttributeValue // what returns asked for
}

func str(s string) types.AttributeValue { return &types.AttributeValueMemberS{Value: s} }

func num[N ~int64 | ~uint64](n N) types.AttributeValue {
	return &types.AttributeValueMemberN{Value: strconv.FormatUint(uint64(n), 10)}
}

// name stands for an attribute in an expression. Owners have characters that are not for
// names there, and one name is reserved.
func (u *update) name(attr string) string {
	if attr != attrKey && !strings.HasPrefix(attr, readerPrefix) {
		return attr
	}
	if u.names == nil {
		u.names = make(map[string]string, 1)
	}
	short := "#" + strconv.Itoa(len(u.names))
	u.names[short] = attr
	return short
}

// value stands for v in an expression.
func (u *update) value(v types.AttributeValue) string {
	if u.values == nil {
		u.values = make(map[string]types.AttributeValue, 8)
	}
	short := ":" + strconv.Itoa(len(u.values))
	u.values[short] = v
	return short
}

func (u *update) set(attr string, v types.AttributeValue) {
	u.sets = append(u.sets, u.name(attr)+" = "+u.value(v))
}

func (u *update) remove(attrs ...string) {
	for _, a := range attrs {
		u.removes = append(u.removes, u.name(a))
	}
}

// touch marks a write for a shared holder.
func (u *update) touch() { u.set(attrRev, str(strconv.FormatUint(rand.Uint64(), 36))) }

// removeReaders ends shared grants that were read, and their places in the set.
func (u *update) removeReaders(readers ...holder) {
	u.touch()
	weight := int64(0)
	for _, h := range readers {
		u.remove(readerPrefix + h.owner)
		u.deletes = append(u.deletes, h.owner)
		weight += h.weight
	}
	u.lighten(u.value(num(weight)))
}

// lighten takes weight, which is an operand, from that of the item.
func (u *update) lighten(weight string) {
	zero := u.value(num(int64(0)))
	u.sets = append(u.sets, attrWeight+" = if_not_exists("+attrWeight+", "+zero+") - "+weight)
}

// removeWriter ends the exclusive grant, as the item was read. Its token is the barrier
// then, unless a floor is.
func (u *update) removeWriter(it *item) {
	u.open(it, max(it.token, it.floor))
	u.removeHolderAttributes()
}

// removeHolderAttributes leaves nothing of the exclusive holder. Its Metadata would take room that the
// weights of readers do not count.
func (u *update) removeHolderAttributes() {
	u.remove(attrHolder, attrFloor, attrExpiry, attrInfo, attrLease)
}

// open sets the barrier of an item without an exclusive holder, and keeps the token apart
// from it.
func (u *update) open(it *item, barrier lock.Token) {
	u.set(attrOpen, num(barrier))
	u.set(attrToken, num(it.token))
}

// removeHolder ends a grant of it.
func (u *update) removeHolder(it *item, h holder) {
	if h.shared {
		u.removeReaders(h)
	} else {
		u.removeWriter(it)
	}
}

// only adds a condition.
func (u *update) only(condition string) { u.conditions = append(u.conditions, condition) }

// compare adds the condition that attr is to v as op says.
func (u *update) compare(attr, op string, v types.AttributeValue) {
	u.only(u.name(attr) + " " + op + " " + u.value(v))
}

// absent adds the condition that there is no attr.
func (u *update) absent(attr string) { u.only("attribute_not_exists(" + u.name(attr) + ")") }

// absentOrLess adds the condition that there is no attr, or that it is less than v.
func (u *update) absentOrLess(attr string, v types.AttributeValue) {
	n := u.name(attr)
	u.only("(attribute_not_exists(" + n + ") OR " + n + " < " + u.value(v) + ")")
}

// same adds the condition that attrs are what they were when the item was read.
func (u *update) same(it *item, attrs ...string) {
	for _, attr := range attrs {
		if v := it.attrs[attr]; v != nil {
			u.compare(attr, "=", v)
		} else {
			u.absent(attr)
		}
	}
}

// as adds the condition that holders and barrier are what they were when the item was read.
func (u *update) as(it *item) {
	switch {
	case !it.exists:
		u.absent(attrKey)
	case it.writer != nil:
		u.same(it, attrHolder, attrExpiry, attrFloor)
	default:
		u.same(it, attrOpen, attrRev)
	}
}

func (u *update) expression() string {
	if len(u.deletes) > 0 {
		u.deletes = []string{u.name(attrReaders) + " " + u.value(&types.AttributeValueMemberSS{Value: u.deletes})}
	}
	var b strings.Builder
	for _, part := range []struct {
		verb    string
		clauses []string
	}{{"SET ", u.sets}, {" REMOVE ", u.removes}, {" ADD ", u.adds}, {" DELETE ", u.deletes}} {
		if len(part.clauses) > 0 {
			b.WriteString(part.verb)
			b.WriteString(strings.Join(part.clauses, ", "))
		}
	}
	return b.String()
}

// write sends an update once. If its condition fails, it returns the item that made it
// fail, or one as of after that, and no error.
func (l *Locker) write(ctx context.Context, key string, u *update, limit time.Duration) (a attempt, old *item, err error) {
	condition := aws.String(strings.Join(u.conditions, " AND "))
	if u.item != nil {
		u.item[attrKey] = str(l.prefix + key)
		_, a, err = send(ctx, l, limit, l.api.PutItem, &dynamodb.PutItemInput{
			TableName: &l.table, Item: u.item, ConditionExpression: condition,
			ExpressionAttributeNames: u.names, ExpressionAttributeValues: u.values,
			ReturnValuesOnConditionCheckFailure: types.ReturnValuesOnConditionCheckFailureAllOld,
		})
	} else {
		var out *dynamodb.UpdateItemOutput
		out, a, err = send(ctx, l, limit, l.api.UpdateItem, &dynamodb.UpdateItemInput{
			TableName: &l.table, Key: l.primary(key),
			UpdateExpression: aws.String(u.expression()), ReturnValues: u.returns, ConditionExpression: condition,
			ExpressionAttributeNames: u.names, ExpressionAttributeValues: u.values,
			ReturnValuesOnConditionCheckFailure: types.ReturnValuesOnConditionCheckFailureAllOld,
		})
		if err == nil {
			u.after = out.Attributes
		}
	}
	attrs, ok := refused(err)
	switch {
	case !ok:
		return a, nil, err
	case len(attrs) == 0: // there is none, or what is in between does not pass it on
		old, err = l.read(ctx, key, true, limit)
	default:
		old, err = parse(key, attrs)
	}
	return a, old, err
}

// read reads an item. A read that is not consistent costs half as much, and may be of a
// moment ago.
func (l *Locker) read(ctx context.Context, key string, consistent bool, limit time.Duration) (*item, error) {
	out, _, err := send(ctx, l, limit, l.api.GetItem, &dynamodb.GetItemInput{
		TableName: &l.table, Key: l.primary(key), ConsistentRead: &consistent,
	})
	if err != nil {
		return nil, err
	}
	return parse(key, out.Item)
}

func (l *Locker) primary(key string) map[string]types.AttributeValue {
	return map[string]types.AttributeValue{attrKey: str(l.prefix + key)}
}
