package dynamo_test

import (
	"context"
	"net/http"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"
	"github.com/stretchr/testify/require"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/dynamo"
	"github.com/seed-215fdefa/lock/internal/storetest"
)

type attrs = map[string]types.AttributeValue

func text(s string) types.AttributeValue { return &types.AttributeValueMemberS{Value: s} }
func number(n int) types.AttributeValue {
	return &types.AttributeValueMemberN{Value: strconv.Itoa(n)}
}

func balance(it attrs) string {
	n, _ := it["balance"].(*types.AttributeValueMemberN)
	if n == nil {
		return ""
	}
	return n.Value
}

// setBalance is a program's own write.
func (w world) setBalance(key string, n int) *dynamodb.UpdateItemInput {
	return &dynamodb.UpdateItemInput{
		TableName: &w.table, Key: w.primary(key), UpdateExpression: aws.String("SET balance = :b"),
		ExpressionAttributeValues: attrs{":b": number(n)},
	}
}

func staleness(t *testing.T, err error, token, newest lock.Token) {
	t.Helper()
	var stale *lock.StaleError
	require.ErrorAs(t, err, &stale)
	require.ErrorIs(t, err, lock.ErrStale)
	require.Equal(t, token, stale.Token)
	require.Equal(t, newest, stale.Newest)
}

// TestFenceFrozenHolder: a holder freezes between its read and its write, and loses the
// lock. Its successor reads and writes. The first one's real write is refused.
func TestFenceFrozenHolder(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	frozen, successor := w.open(t), w.open(t)
	ctx := storetest.Bounded(t)
	mine, theirs := dynamo.NewFence(frozen.db), dynamo.NewFence(successor.db)

	g := storetest.Acquire(t, frozen, storetest.Lasting(storetest.Request("account"), time.Second))
	_, err := mine.Update(ctx, g.Token, w.setBalance("item", 100))
	require.NoError(t, err)
	it, err := mine.Get(ctx, g.Token, w.table, w.primary("item"))
	require.NoError(t, err)
	require.Equal(t, "100", balance(it))

	thaw := frozen.net.Freeze()
	next := storetest.Await(t, successor, storetest.Request("account"))
	it, err = theirs.Get(ctx, next.Token, w.table, w.primary("item"))
	require.NoError(t, err)
	require.Equal(t, "100", balance(it))
	thaw()
	_, err = mine.Update(ctx, g.Token, w.setBalance("item", 99)) // the successor has but read
	staleness(t, err, g.Token, next.Token)
	_, err = theirs.Update(ctx, next.Token, w.setBalance("item", 90))
	require.NoError(t, err)

	_, err = mine.Update(ctx, g.Token, w.setBalance("item", 99))
	staleness(t, err, g.Token, next.Token)
	require.ErrorContains(t, err, "item")
	_, err = mine.Get(ctx, g.Token, w.table, w.primary("item"))
	staleness(t, err, g.Token, next.Token)
	put := w.primary("item")
	put["balance"] = number(99)
	_, err = mine.Put(ctx, g.Token, &dynamodb.PutItemInput{TableName: &w.table, Item: put})
	staleness(t, err, g.Token, next.Token)
	require.Equal(t, "90", balance(w.items(t)["item"]))
}

// TestFencePut: a put replaces everything in the item except its mark, and leaves the caller's map alone.
func TestFencePut(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	ctx, f := storetest.Bounded(t), dynamo.NewFence(w.db, dynamo.WithMark("guard"))
	for token := lock.Token(5); token < 7; token++ {
		put := w.primary("item")
		put["balance"] = number(int(token))
		in := &dynamodb.PutItemInput{TableName: &w.table, Item: put}
		_, err := f.Put(ctx, token, in)
		require.NoError(t, err)
		require.NotContains(t, put, "guard")
		require.Nil(t, in.ConditionExpression)
		_, err = f.Put(ctx, token, in)
		require.NoError(t, err, "the same token again")
	}
	_, err := f.Put(ctx, 5, &dynamodb.PutItemInput{TableName: &w.table, Item: w.primary("item")})
	staleness(t, err, 5, 6)
	require.Equal(t, number(6), w.items(t)["item"]["guard"])
	_, err = f.Put(ctx, 7, &dynamodb.PutItemInput{TableName: &w.table, Item: w.primary("item")})
	require.NoError(t, err, "empty, except for the key and the mark")
	require.Len(t, w.items(t)["item"], 2)
}

// TestFenceExpressions: whatever the program's own update and condition are like.
func TestFenceExpressions(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	ctx, f := storetest.Bounded(t), dynamo.NewFence(w.db)
	token := lock.Token(1)
	for _, expression := range []string{
		"", "SET a = :v", "set a = :v, b = :v", "REMOVE a", "REMOVE b SET a = :v", "ADD n :v", "ADD n :v\nSET a = :v",
		"SET #set = :v", "REMOVE #set", "SET c = if_not_exists(n, :v) REMOVE a", "  SET   a = :v ",
	} {
		in := &dynamodb.UpdateItemInput{TableName: &w.table, Key: w.primary("item"), ReturnValues: types.ReturnValueAllNew}
		if expression != "" {
			in.UpdateExpression = &expression
			in.ExpressionAttributeValues = attrs{":v": number(1)}
			in.ExpressionAttributeNames = map[string]string{"#set": "set"}
			if expression == "REMOVE a" || expression == "REMOVE #set" {
				in.ExpressionAttributeValues = nil
			}
			in.ConditionExpression = aws.String("attribute_not_exists(zz) OR attribute_not_exists(#set)")
		}
		token++
		out, err := f.Update(ctx, token, in)
		require.NoError(t, err, expression)
		require.Equal(t, number(int(token)), out.Attributes["fence"], expression)
		_, err = f.Update(ctx, token-1, in)
		staleness(t, err, token-1, token)
	}
}

// TestFenceOwnCondition: the program's condition that fails is DynamoDB's error, not a stale
// token, and raises no mark.
func TestFenceOwnCondition(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	ctx, f := storetest.Bounded(t), dynamo.NewFence(w.db)
	in := w.setBalance("item", 1)
	in.ConditionExpression = aws.String("attribute_exists(balance) OR attribute_exists(nothing)")
	_, err := f.Update(ctx, 7, in)
	var failed *types.ConditionalCheckFailedException
	require.ErrorAs(t, err, &failed)
	require.NotErrorIs(t, err, lock.ErrStale)
	_, err = f.Update(ctx, 6, w.setBalance("item", 1))
	require.NoError(t, err)
	_, err = f.Update(ctx, 7, in)
	require.NoError(t, err)
	_, err = f.Update(ctx, 6, in)
	staleness(t, err, 6, 7)
}

// TestFenceTransact: the mark of one item guards writes to others; all or nothing.
func TestFenceTransact(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	ctx, f := storetest.Bounded(t), dynamo.NewFence(w.db)
	transfer := func(n int, condition *string) *dynamodb.TransactWriteItemsInput {
		in := &dynamodb.TransactWriteItemsInput{}
		for _, key := range []string{"from", "to"} {
			u := w.setBalance(key, n)
			in.TransactItems = append(in.TransactItems, types.TransactWriteItem{Update: &types.Update{
				TableName: u.TableName, Key: u.Key, UpdateExpression: u.UpdateExpression,
				ExpressionAttributeValues: u.ExpressionAttributeValues, ConditionExpression: condition,
			}})
		}
		return in
	}
	in := transfer(1, nil)
	_, err := f.Transact(ctx, 10, w.table, w.primary("mark"), in)
	require.NoError(t, err)
	require.Len(t, in.TransactItems, 2)
	require.Nil(t, in.ClientRequestToken)
	_, err = f.Transact(ctx, 9, w.table, w.primary("mark"), transfer(2, nil))
	staleness(t, err, 9, 10)
	_, err = f.Get(ctx, 11, w.table, w.primary("mark"))
	require.NoError(t, err)
	_, err = f.Transact(ctx, 10, w.table, w.primary("mark"), transfer(2, nil))
	staleness(t, err, 10, 11)
	_, err = f.Transact(ctx, 11, w.table, w.primary("mark"), transfer(2, aws.String("attribute_exists(nothing)")))
	var canceled *types.TransactionCanceledException
	require.ErrorAs(t, err, &canceled)
	require.NotErrorIs(t, err, lock.ErrStale)
	require.Equal(t, "1", balance(w.items(t)["from"]))
	require.Equal(t, "1", balance(w.items(t)["to"]))
}

// TestFenceSendsOnce: after an unknown outcome nothing is sent again; after throttling it is.
func TestFenceSendsOnce(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	p := w.open(t)
	f := dynamo.NewFence(p.db)
	p.http.loseReplies(1)
	p.http.sent()
	_, err := f.Update(storetest.Bounded(t), 1, w.setBalance("item", 1))
	require.Error(t, err)
	require.NotErrorIs(t, err, lock.ErrStale)
	require.Equal(t, map[string]int{"UpdateItem": 1}, p.http.sent())

	var left atomic.Int32
	left.Store(2)
	p.http.set(func(string) (*http.Response, error) {
		if left.Add(-1) >= 0 {
			return answer(400, "ThrottlingException"), nil
		}
		return nil, nil
	}, nil)
	_, err = f.Update(storetest.Bounded(t), 1, w.setBalance("item", 2))
	require.NoError(t, err)
	require.Equal(t, map[string]int{"UpdateItem": 3}, p.http.sent())
}

// TestFenceBadInput is refused before anything is sent.
func TestFenceBadInput(t *testing.T) {
	t.Parallel()
	var none *dynamodb.Client
	nowhere := newClient(newTransport(), "127.0.0.1:1")
	ctx := context.Background()
	calls := func(f *dynamo.Fence, token lock.Token) []error {
		_, get := f.Get(ctx, token, "table", attrs{"key": text("k")})
		_, update := f.Update(ctx, token, &dynamodb.UpdateItemInput{})
		_, put := f.Put(ctx, token, &dynamodb.PutItemInput{})
		_, transact := f.Transact(ctx, token, "table", nil, &dynamodb.TransactWriteItemsInput{})
		return []error{get, update, put, transact}
	}
	for _, f := range []*dynamo.Fence{
		dynamo.NewFence(nil), dynamo.NewFence(none), dynamo.NewFence(nowhere, nil), dynamo.NewFence(nowhere, dynamo.WithMark("")),
	} {
		for _, err := range calls(f, 1) {
			require.ErrorIs(t, err, lock.ErrInvalid)
		}
	}
	f := dynamo.NewFence(nowhere)
	for _, token := range []lock.Token{0, lock.MaxToken + 1} {
		for _, err := range calls(f, token) {
			require.ErrorIs(t, err, lock.ErrInvalid)
		}
	}
	_, update := f.Update(ctx, 1, nil)
	_, old := f.Update(ctx, 1, &dynamodb.UpdateItemInput{AttributeUpdates: map[string]types.AttributeValueUpdate{"a": {}}})
	_, put := f.Put(ctx, 1, nil)
	_, expected := f.Put(ctx, 1, &dynamodb.PutItemInput{Expected: map[string]types.ExpectedAttributeValue{"a": {}}})
	_, transact := f.Transact(ctx, 1, "table", nil, nil)
	for _, err := range []error{update, old, put, expected, transact} {
		require.ErrorIs(t, err, lock.ErrInvalid)
	}
}
