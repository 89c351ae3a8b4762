package dynamo_test

import (
	"context"
	"errors"
	"fmt"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/dynamo"
)

// A holder froze between its read and its write, and lost the lock meanwhile. Its successor
// has read, so its write is refused.
func ExampleNewFence() {
	client, disconnect := connect("example-stock")
	defer disconnect()
	ctx := context.Background()
	bolts := map[string]types.AttributeValue{"key": &types.AttributeValueMemberS{Value: "bolts"}}
	_, _ = client.DeleteItem(ctx, &dynamodb.DeleteItemInput{TableName: aws.String("example-stock"), Key: bolts})
	setStock := func(n string) *dynamodb.UpdateItemInput {
		return &dynamodb.UpdateItemInput{
			TableName: aws.String("example-stock"), Key: bolts,
			UpdateExpression:          aws.String("SET stock = :n"),
			ExpressionAttributeValues: map[string]types.AttributeValue{":n": &types.AttributeValueMemberN{Value: n}},
		}
	}
	fence := dynamo.NewFence(client)
	const frozen, successor lock.Token = 33, 34 // Lease.Token of one and of the other
	if _, err := fence.Update(ctx, frozen, setStock("10")); err != nil {
		fmt.Println(err)
	}

	item, err := fence.Get(ctx, successor, "example-stock", bolts)
	fmt.Println(item["stock"].(*types.AttributeValueMemberN).Value, err)
	_, err = fence.Update(ctx, frozen, setStock("9"))
	fmt.Println(errors.Is(err, lock.ErrStale), err)
	_, err = fence.Update(ctx, successor, setStock("8"))
	fmt.Println(err)
	// Output:
	// 10 <nil>
	// true lock: stale token 33 for "example-stock/key=bolts": 34 has been seen
	// <nil>
}
