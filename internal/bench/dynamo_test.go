package bench

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"
	"github.com/stretchr/testify/require"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/dynamo"
	"github.com/seed-215fdefa/lock/internal/testserver"
)

// counter counts the requests of a client, by their operation.
type counter struct {
	*http.Transport
	sent chan string
}

func (c counter) RoundTrip(req *http.Request) (*http.Response, error) {
	select {
	case c.sent <- req.Header.Get("X-Amz-Target"):
	default:
	}
	return c.Transport.RoundTrip(req)
}

func connectDynamo(t *testing.T) (*dynamodb.Client, *lock.Client, counter) {
	t.Helper()
	rt := counter{&http.Transport{MaxIdleConnsPerHost: 600}, make(chan string, 100)}
	db := dynamodb.New(dynamodb.Options{
		Region: "eu-central-1", BaseEndpoint: aws.String("http://" + testserver.SharedDynamo(t).Addr()),
		Credentials: credentials.NewStaticCredentialsProvider("test", "test", ""),
		HTTPClient:  &http.Client{Transport: rt},
	})
	require.NoError(t, dynamo.CreateTable(context.Background(), db, "bench"))
	l := dynamo.New(db, "bench")
	c := lock.New(l)
	t.Cleanup(func() {
		require.NoError(t, c.Close(context.Background()))
		require.NoError(t, l.Close())
		rt.CloseIdleConnections()
	})
	require.NoError(t, c.Err())
	return db, c, rt
}

// TestDynamoUncontended compares Do with a conditional put, of an owner and an expiry, and
// a conditional delete or update that takes them away; each caller on a key of its own.
func TestDynamoUncontended(t *testing.T) {
	s := scales()
	db, c, _ := connectDynamo(t)
	ctx := context.Background()
	ours := func(caller, _ int) {
		err := c.Do(ctx, "ours:"+strconv.Itoa(caller), func(context.Context, *lock.Lease) error { return nil })
		if err != nil {
			panic(err)
		}
	}
	put := func(key, owner string) {
		_, err := db.PutItem(ctx, &dynamodb.PutItemInput{
			TableName: aws.String("bench"),
			Item: map[string]types.AttributeValue{
				"key": &types.AttributeValueMemberS{Value: key}, "holder": &types.AttributeValueMemberS{Value: owner},
				"until": &types.AttributeValueMemberN{Value: "1800000000"},
			},
			ConditionExpression: aws.String("attribute_not_exists(holder)"),
		})
		if err != nil {
			panic(err)
		}
	}
	primary := func(key string) map[string]types.AttributeValue {
		return map[string]types.AttributeValue{"key": &types.AttributeValueMemberS{Value: key}}
	}
	mine := func(owner string) map[string]types.AttributeValue {
		return map[string]types.AttributeValue{":o": &types.AttributeValueMemberS{Value: owner}}
	}
	withDelete := func(caller, n int) {
		key, owner := "delete:"+strconv.Itoa(caller), strconv.Itoa(n)
		put(key, owner)
		if _, err := db.DeleteItem(ctx, &dynamodb.DeleteItemInput{
			TableName: aws.String("bench"), Key: primary(key),
			ConditionExpression: aws.String("holder = :o"), ExpressionAttributeValues: mine(owner),
		}); err != nil {
			panic(err)
		}
	}
	withUpdate := func(caller, n int) {
		key, owner := "update:"+strconv.Itoa(caller), strconv.Itoa(n)
		put(key, owner)
		if _, err := db.UpdateItem(ctx, &dynamodb.UpdateItemInput{
			TableName: aws.String("bench"), Key: primary(key), UpdateExpression: aws.String("REMOVE holder"),
			ConditionExpression: aws.String("holder = :o"), ExpressionAttributeValues: mine(owner),
		}); err != nil {
			panic(err)
		}
	}
	out := table{
		title: "DynamoDB Local, uncontended: acquire and release per second",
		head:  []string{"callers", "bare", "`Do`", "bare", "ratio"},
	}
	for _, bare := range []struct {
		name string
		f    func(caller, n int)
	}{{"put + delete", withDelete}, {"put + update", withUpdate}} {
		for _, callers := range []int{1, 64} {
			a, b, ratio := pairs(s, callers, ours, bare.f)
			out.add(strconv.Itoa(callers), bare.name, fmt.Sprintf("%.0f", a), fmt.Sprintf("%.0f", b), fmt.Sprintf("%.2f", ratio))
		}
	}
	out.print()
}

// TestDynamoRequests counts what an acquire and a release send: one write each.
func TestDynamoRequests(t *testing.T) {
	_, c, rt := connectDynamo(t)
	ctx := context.Background()
	do := func() {
		require.NoError(t, c.Do(ctx, "counted", func(context.Context, *lock.Lease) error { return nil }))
	}
	do()
	for len(rt.sent) > 0 {
		<-rt.sent
	}
	const pairs = 10
	for range pairs {
		do()
	}
	require.Len(t, rt.sent, 2*pairs)
	for range 2 * pairs {
		require.Contains(t, []string{"DynamoDB_20120810.PutItem", "DynamoDB_20120810.UpdateItem"}, <-rt.sent)
	}
}

// TestDynamoContended lets 64 callers fight for one key: within one Locker, and in eight.
func TestDynamoContended(t *testing.T) {
	s := scales()
	db, c, _ := connectDynamo(t)
	ctx := context.Background()
	out := table{
		title: "DynamoDB Local, 64 callers on one key",
		head:  []string{"Lockers", "hand-overs per second", "least to most served"},
	}
	const callers = 64
	clients := []*lock.Client{c}
	for range 7 {
		l := dynamo.New(db, "bench")
		more := lock.New(l)
		clients = append(clients, more)
		defer func() {
			require.NoError(t, more.Close(ctx))
			require.NoError(t, l.Close())
		}()
	}
	for _, n := range []int{1, 8} {
		served := make([]int, callers)
		handovers := rate(callers, s.contended, func(caller, _ int) {
			l, err := clients[caller%n].Lock(ctx, "one")
			if err != nil {
				panic(err)
			}
			served[caller]++
			if err := l.Release(ctx); err != nil {
				panic(err)
			}
		})
		out.add(strconv.Itoa(n), fmt.Sprintf("%.0f", handovers), fmt.Sprintf("%d, %d", slices.Min(served), slices.Max(served)))
	}
	out.print()
}
