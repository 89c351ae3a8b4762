package dynamo_test

import (
	"context"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/dynamo"
	"github.com/seed-215fdefa/lock/internal/storetest"
)

// openHolder opens what a process of its own has, which is killed or stopped: args are the
// address, the table, and the prefix.
func openHolder(args []string) (lock.Locker, storetest.Resource, error) {
	db := newClient(newTransport(), args[0])
	return dynamo.New(db, args[1], dynamo.WithPrefix(args[2])), resource(db, args[1], args[2]), nil
}

func resource(db *dynamodb.Client, table, prefix string) storetest.Resource {
	fence, key := dynamo.NewFence(db), attrs{"key": text(prefix + "stock")}
	return storetest.Resource{
		Read: func(ctx context.Context, token lock.Token) (string, error) {
			it, err := fence.Get(ctx, token, table, key)
			if err != nil {
				return "", err
			}
			return it["value"].(*types.AttributeValueMemberS).Value, nil
		},
		Write: func(ctx context.Context, token lock.Token, value string) error {
			_, err := fence.Update(ctx, token, &dynamodb.UpdateItemInput{
				TableName: &table, Key: key, UpdateExpression: aws.String("SET #v = :v"),
				ExpressionAttributeNames:  map[string]string{"#v": "value"},
				ExpressionAttributeValues: attrs{":v": text(value)},
			})
			return err
		},
	}
}

// TestKilledHolder: a first try gets what a killed process held.
func TestKilledHolder(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	storetest.KilledHolder(t, w.open(t), 6*time.Second, w.server.Addr(), w.table, w.prefix)
}

// TestStoppedHolder: the write of a process that was stopped for longer than its lease.
func TestStoppedHolder(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	r := resource(w.db, w.table, w.prefix)
	storetest.StoppedHolder(t, w.open(t), r, 6*time.Second, w.server.Addr(), w.table, w.prefix)
}

// TestBrokenConnections: no call fails since a connection did.
func TestBrokenConnections(t *testing.T) {
	t.Parallel()
	p := sharedWorld(t).open(t)
	storetest.BrokenConnections(t, p, p.net.Break)
}
