package dynamo_test

import (
	"context"
	"fmt"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/dynamo"
)

// A transfer between two items, under a lock whose mark is in a third.
func ExampleFence_Transact() {
	client, disconnect := connect("example-accounts")
	defer disconnect()
	ctx := context.Background()
	locker := dynamo.New(client, "example-accounts", dynamo.WithPrefix("lock:"))
	defer locker.Close()
	locks := lock.New(locker)
	defer locks.Close(ctx)
	fence := dynamo.NewFence(client)
	item := func(key string) map[string]types.AttributeValue {
		return map[string]types.AttributeValue{"key": &types.AttributeValueMemberS{Value: key}}
	}
	add := func(account, amount string) types.TransactWriteItem {
		return types.TransactWriteItem{Update: &types.Update{
			TableName: aws.String("example-accounts"), Key: item(account),
			UpdateExpression:          aws.String("ADD balance :n"),
			ExpressionAttributeValues: map[string]types.AttributeValue{":n": &types.AttributeValueMemberN{Value: amount}},
		}}
	}

	err := locks.Do(ctx, "transfers", func(ctx context.Context, l *lock.Lease) error {
		_, err := fence.Transact(ctx, l.Token(), "example-accounts", item("mark:transfers"),
			&dynamodb.TransactWriteItemsInput{TransactItems: []types.TransactWriteItem{add("ann", "-5"), add("bob", "5")}})
		return err
	})
	fmt.Println(err)
	// Output:
	// <nil>
}
