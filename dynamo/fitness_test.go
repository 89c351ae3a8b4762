package dynamo

import (
	"context"
	"sync/atomic"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"
	"github.com/aws/smithy-go"
	"github.com/stretchr/testify/require"

	"github.com/seed-215fdefa/lock/internal/storetest"
	"github.com/seed-215fdefa/lock/internal/testserver"
)

// uncheckable is a client whose account has asked for too many descriptions, until it is calm.
type uncheckable struct {
	*dynamodb.Client
	calm atomic.Bool
}

func (u *uncheckable) DescribeTimeToLive(ctx context.Context, in *dynamodb.DescribeTimeToLiveInput, opts ...func(*dynamodb.Options)) (*dynamodb.DescribeTimeToLiveOutput, error) {
	if !u.calm.Load() {
		return nil, &smithy.GenericAPIError{Code: "ThrottlingException"}
	}
	return u.Client.DescribeTimeToLive(ctx, in, opts...)
}

// TestUnfitLater: a table is found to be unfit when it can be looked at, and fit when it has been
// mended. Who holds a lock meanwhile renews it and lets it go.
func TestUnfitLater(t *testing.T) {
	t.Parallel()
	u := &uncheckable{Client: localClient(t)}
	table := testserver.Prefix()[:13] + "-later"
	require.NoError(t, CreateTable(storetest.Bounded(t), u.Client, table))
	expire := func(on bool) {
		_, err := u.UpdateTimeToLive(storetest.Bounded(t), &dynamodb.UpdateTimeToLiveInput{
			TableName:               &table,
			TimeToLiveSpecification: &types.TimeToLiveSpecification{AttributeName: aws.String(attrExpiry), Enabled: &on},
		})
		require.NoError(t, err)
	}
	expire(true)
	l := New(u, table)
	defer func() { require.NoError(t, l.Close()) }()
	storetest.Release(t, l, storetest.Acquire(t, l, storetest.Request("k")))
	g := storetest.Acquire(t, l, storetest.Request("held"))
	u.calm.Store(true)
	storetest.Release(t, l, storetest.Acquire(t, l, storetest.Request("k")))
	l.fitness.mu.Lock()
	l.fitness.again = time.Now()
	l.fitness.mu.Unlock()
	var err error
	storetest.Eventually(t, "a look at the table", func() bool {
		_, err = l.Inspect(storetest.Bounded(t), "k")
		return err != nil
	})
	require.ErrorIs(t, err, ErrUnfit)
	storetest.Release(t, l, storetest.Renew(t, l, g))
	expire(false)
	storetest.Inspect(t, l, "k")
}
