package dynamo

import (
	"context"
	"crypto/rand"
	"net/http"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/stretchr/testify/require"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/internal/storekit"
	"github.com/seed-215fdefa/lock/internal/storetest"
	"github.com/seed-215fdefa/lock/internal/testserver"
)

// TestBoundsMadeAnew: a lease is shorter than the time between the bounds of DynamoDB's clock, which
// were made anew since it was granted. It is not over for that.
func TestBoundsMadeAnew(t *testing.T) {
	t.Parallel()
	db := localClient(t)
	table := testserver.Prefix()[:13] + "-anew"
	require.NoError(t, CreateTable(storetest.Bounded(t), db, table))
	for call, do := range map[string]func(l *Locker, ctx context.Context, g lock.Grant) error{
		"Renew":   func(l *Locker, ctx context.Context, g lock.Grant) error { _, err := l.Renew(ctx, g); return err },
		"Release": (*Locker).Release,
	} {
		for _, shared := range []bool{false, true} {
			storetest.Eventually(t, "an answer within the TTL", func() bool { // not so on a busy machine
				l := New(db, table)
				defer func() { require.NoError(t, l.Close()) }()
				g := grantedAtTheTurn(t, l, shared)
				l.clock.mu.Lock()
				l.clock.wall = l.clock.wall.Add(-2 * hostSkew) // this machine's clock was set
				l.clock.mu.Unlock()
				err := do(l, storetest.Bounded(t), g)
				if storekit.Elapsed(g.Start) >= g.TTL {
					return false
				}
				require.NoError(t, err, "%s, shared %v", call, shared)
				return true
			})
		}
	}
}

// grantedAtTheTurn waits for the turn of a second, when the next bounds are farthest apart, and
// acquires by bounds that are close. DynamoDB Local's clock is this machine's.
func grantedAtTheTurn(t *testing.T, l *Locker, shared bool) lock.Grant {
	t.Helper()
	req := storetest.Lasting(storetest.Request(rand.Text()), 500*time.Millisecond)
	req.Shared = shared
	storetest.Inspect(t, l, req.Key)
	now := time.Now()
	time.Sleep(now.Truncate(time.Second).Add(time.Second).Sub(now))
	now = time.Now()
	l.clock.mu.Lock()
	l.clock.lower, l.clock.upper = bound{now, now.UnixMicro()}, bound{now, now.UnixMicro()}
	l.clock.mu.Unlock()
	return storetest.Acquire(t, l, req)
}

// localClient returns a client of the server that the tests share.
func localClient(t *testing.T) *dynamodb.Client {
	t.Helper()
	server := testserver.SharedDynamo(t)
	rt := new(http.Transport)
	t.Cleanup(rt.CloseIdleConnections)
	return dynamodb.New(dynamodb.Options{
		Region: "eu-central-1", BaseEndpoint: aws.String("http://" + server.Addr()),
		Credentials: credentials.NewStaticCredentialsProvider("test", "test", ""), HTTPClient: &http.Client{Transport: rt},
	})
}
