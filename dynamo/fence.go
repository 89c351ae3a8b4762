package dynamo

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/internal/storekit"
)

// Fence guards items of DynamoDB: it refuses a step whose token is older than the newest seen
// for the item. A condition of the step's own write checks the token.
//
// A read-modify-write must read through the Fence too. Otherwise a holder that froze between its
// read and its write overwrites its successor's update. [Fence.Get] raises the mark, so once a
// successor has read, the predecessor's write is refused. A read is therefore a write of the
// item, and costs as much.
//
// The mark is a number in an attribute of the item: "fence", unless [WithMark] names another.
// The program must neither write nor delete it. So never delete an item that a Fence guards: put
// one with nothing but its key instead. Keep DynamoDB's TTL from deleting it, too. Tokens of
// shared leases do not order their holders.
//
// A Fence retries only after errors that mean that nothing was written, such as throttling. A
// late first request has the same token, so it would pass and overwrite what the holder has
// written since. After any other error the step may have been done, or may yet be.
//
// A Fence is safe for concurrent use and needs no closing.
type Fence struct {
	api  FenceAPI
	mark string
	err  error
}

// FenceOption sets up a [Fence].
type FenceOption func(*Fence) error

// WithMark names the attribute that has the mark. Default "fence".
func WithMark(attribute string) FenceOption {
	return func(f *Fence) error {
		f.mark = attribute
		if attribute == "" {
			return fmt.Errorf("%w: dynamo: the mark's name is empty", lock.ErrInvalid)
		}
		return nil
	}
}

// NewFence returns a Fence for items in any table. It does no I/O. Every call returns an error
// if client is nil or an option is bad.
func NewFence(client FenceAPI, opts ...FenceOption) *Fence {
	f := &Fence{api: client, mark: "fence"}
	if storekit.IsNil(client) {
		f.err = fmt.Errorf("%w: dynamo: client is nil", lock.ErrInvalid)
	}
	for _, o := range opts {
		switch {
		case f.err != nil:
		case o == nil:
			f.err = fmt.Errorf("%w: dynamo: option is nil", lock.ErrInvalid)
		default:
			f.err = o(f)
		}
	}
	return f
}

// Get reads an item and raises its mark, in one step. It returns a *lock.StaleError if token is
// stale. If there is no item, Get makes one with the key and the mark, so that no predecessor
// can make it later. The returned item has the mark.
func (f *Fence) Get(ctx context.Context, token lock.Token, table string, key map[string]types.AttributeValue,
) (map[string]types.AttributeValue, error) {
	out, err := f.Update(ctx, token, &dynamodb.UpdateItemInput{
		TableName: &table, Key: key, ReturnValues: types.ReturnValueAllNew,
	})
	if err != nil {
		return nil, err
	}
	return out.Attributes, nil
}

// Update is UpdateItem unless token is stale; then it returns a *lock.StaleError. If in's own
// condition fails, the error is DynamoDB's. in must use expressions; it is not changed.
func (f *Fence) Update(ctx context.Context, token lock.Token, in *dynamodb.UpdateItemInput) (*dynamodb.UpdateItemOutput, error) {
	if err := f.check(token); err != nil {
		return nil, err
	}
	if in == nil || in.AttributeUpdates != nil || in.Expected != nil {
		return nil, errExpressions
	}
	c := *in
	c.ExpressionAttributeNames, c.ExpressionAttributeValues = f.placeholders(token, c.ExpressionAttributeNames, c.ExpressionAttributeValues)
	c.UpdateExpression = aws.String(setMark(aws.ToString(c.UpdateExpression)))
	c.ConditionExpression = fenced(c.ConditionExpression)
	c.ReturnValuesOnConditionCheckFailure = types.ReturnValuesOnConditionCheckFailureAllOld
	var out *dynamodb.UpdateItemOutput
	err := again(ctx, func() (err error) {
		out, err = f.api.UpdateItem(ctx, &c, once)
		return f.stale(err, token, c.TableName, c.Key)
	})
	return out, err
}

// Put is PutItem with in's item and the mark. It checks token as [Fence.Update] does.
func (f *Fence) Put(ctx context.Context, token lock.Token, in *dynamodb.PutItemInput) (*dynamodb.PutItemOutput, error) {
	if err := f.check(token); err != nil {
		return nil, err
	}
	if in == nil || in.Expected != nil {
		return nil, errExpressions
	}
	c := *in
	c.Item = maps.Clone(c.Item)
	if c.Item == nil {
		c.Item = make(map[string]types.AttributeValue)
	}
	c.Item[f.mark] = num(token)
	c.ExpressionAttributeNames, c.ExpressionAttributeValues = f.placeholders(token, c.ExpressionAttributeNames, c.ExpressionAttributeValues)
	c.ConditionExpression = fenced(c.ConditionExpression)
	c.ReturnValuesOnConditionCheckFailure = types.ReturnValuesOnConditionCheckFailureAllOld
	var out *dynamodb.PutItemOutput
	err := again(ctx, func() (err error) {
		out, err = f.api.PutItem(ctx, &c, once)
		return f.stale(err, token, c.TableName, nil)
	})
	return out, err
}

// Transact is TransactWriteItems on other items, guarded by the mark of the item that table and
// key name. It does everything and raises the mark, or, if token is stale, does nothing and
// returns a *lock.StaleError. in must not contain that item. If in has no ClientRequestToken,
// Transact adds one, so that DynamoDB executes a repeated request only once.
func (f *Fence) Transact(ctx context.Context, token lock.Token, table string, key map[string]types.AttributeValue,
	in *dynamodb.TransactWriteItemsInput,
) (*dynamodb.TransactWriteItemsOutput, error) {
	if err := f.check(token); err != nil {
		return nil, err
	}
	if in == nil {
		return nil, errExpressions
	}
	c := *in
	names, values := f.placeholders(token, nil, nil)
	c.TransactItems = append(slices.Clone(c.TransactItems), types.TransactWriteItem{Update: &types.Update{
		TableName: &table, Key: key,
		UpdateExpression: aws.String(setMark("")), ConditionExpression: fenced(nil),
		ExpressionAttributeNames: names, ExpressionAttributeValues: values,
		ReturnValuesOnConditionCheckFailure: types.ReturnValuesOnConditionCheckFailureAllOld,
	}})
	if c.ClientRequestToken == nil {
		c.ClientRequestToken = aws.String(rand.Text())
	}
	var out *dynamodb.TransactWriteItemsOutput
	err := again(ctx, func() (err error) {
		out, err = f.api.TransactWriteItems(ctx, &c, once)
		return f.stale(err, token, &table, key)
	})
	return out, err
}

var errExpressions = fmt.Errorf("%w: dynamo: a fenced step needs an input that uses expressions, "+
	"not the older AttributeUpdates and Expected", lock.ErrInvalid)

func (f *Fence) check(token lock.Token) error {
	if f.err != nil {
		return f.err
	}
	if token == 0 || token > lock.MaxToken {
		return fmt.Errorf("%w: token %d: must be from 1 to %d", lock.ErrInvalid, token, lock.MaxToken)
	}
	return nil
}

// Names that the expressions of programs do not have.
const (
	markName  = "#lockFenceMark"
	markValue = ":lockFenceToken"
)

func (f *Fence) placeholders(token lock.Token, names map[string]string, values map[string]types.AttributeValue,
) (map[string]string, map[string]types.AttributeValue) {
	names, values = maps.Clone(names), maps.Clone(values)
	if names == nil {
		names = make(map[string]string, 1)
	}
	if values == nil {
		values = make(map[string]types.AttributeValue, 1)
	}
	names[markName], values[markValue] = f.mark, num(token)
	return names, values
}

// fenced adds the fence to a condition.
func fenced(condition *string) *string {
	fence := "(attribute_not_exists(" + markName + ") OR " + markName + " <= " + markValue + ")"
	if own := strings.TrimSpace(aws.ToString(condition)); own != "" {
		fence = "(" + own + ") AND " + fence
	}
	return &fence
}

// setVerb finds the SET clause of an update. It is a reserved word, so no name is like it.
var setVerb = regexp.MustCompile(`(?i)(^|[^#:.\w])SET\s+`)

// setMark adds the mark to an update, of which each verb may occur only once.
func setMark(expression string) string {
	clause := markName + " = " + markValue
	at := setVerb.FindStringIndex(expression)
	if at == nil {
		return strings.TrimSpace("SET " + clause + " " + expression)
	}
	return expression[:at[1]] + clause + ", " + expression[at[1]:]
}

// stale makes a *lock.StaleError of the error of a condition that failed by the mark.
func (f *Fence) stale(err error, token lock.Token, table *string, key map[string]types.AttributeValue) error {
	var olds []map[string]types.AttributeValue
	var canceled *types.TransactionCanceledException
	if old, ok := refused(err); ok {
		olds = append(olds, old)
	} else if errors.As(err, &canceled) {
		if n := len(canceled.CancellationReasons); n > 0 { // the mark is the last
			olds = append(olds, canceled.CancellationReasons[n-1].Item)
		}
	}
	for _, old := range olds {
		if n, ok := old[f.mark].(*types.AttributeValueMemberN); ok {
			if newest, err := strconv.ParseUint(n.Value, 10, 64); err == nil && lock.Token(newest) > token {
				return &lock.StaleError{Key: describe(aws.ToString(table), key), Token: token, Newest: lock.Token(newest)}
			}
		}
	}
	return err
}

// describe names an item by its key, as far as that is of strings and numbers. Of an item
// that is put, the key is not known.
func describe(table string, key map[string]types.AttributeValue) string {
	var parts []string
	for name, v := range key {
		switch v := v.(type) {
		case *types.AttributeValueMemberS:
			parts = append(parts, name+"="+v.Value)
		case *types.AttributeValueMemberN:
			parts = append(parts, name+"="+v.Value)
		}
	}
	slices.Sort(parts)
	return strings.TrimSuffix(table+"/"+strings.Join(parts, ","), "/")
}

// again calls f, and again as storekit.Repeat does after errors that say that nothing was done.
func again(ctx context.Context, f func() error) error {
	_, err := storekit.Repeat(ctx, func(err error) storekit.Class {
		if undone(err) {
			return classify(err)
		}
		return storekit.Final // a fence may be asked for what must not be done twice
	}, func(context.Context, int) error { return f() })
	return err
}
