package dynamo_test

import (
	"context"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"
	"github.com/stretchr/testify/require"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/dynamo"
	"github.com/seed-215fdefa/lock/internal/storetest"
	"github.com/seed-215fdefa/lock/internal/testserver"
)

// newWorld is a world whose table does not exist yet.
func newWorld(tb testing.TB) world {
	tb.Helper()
	server := testserver.SharedDynamo(tb)
	return world{server: server, table: tableName(), db: client(tb, server.Addr())}
}

func (w world) createWith(tb testing.TB, keys ...types.AttributeDefinition) {
	tb.Helper()
	in := &dynamodb.CreateTableInput{TableName: &w.table, BillingMode: types.BillingModePayPerRequest, AttributeDefinitions: keys}
	for i, k := range keys {
		in.KeySchema = append(in.KeySchema, types.KeySchemaElement{
			AttributeName: k.AttributeName, KeyType: []types.KeyType{types.KeyTypeHash, types.KeyTypeRange}[i],
		})
	}
	_, err := w.db.CreateTable(storetest.Bounded(tb), in)
	require.NoError(tb, err)
}

func key(name string, of types.ScalarAttributeType) types.AttributeDefinition {
	return types.AttributeDefinition{AttributeName: aws.String(name), AttributeType: of}
}

// TestMissingTable is told of with what to do, and heals when it is done.
func TestMissingTable(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	p := w.start(t)
	_, err := p.Acquire(storetest.Bounded(t), storetest.Request("k"))
	require.ErrorContains(t, err, w.table)
	require.ErrorContains(t, err, "CreateTable")
	var none *types.ResourceNotFoundException
	require.ErrorAs(t, err, &none)

	for range 2 { // the second finds the first's
		require.NoError(t, dynamo.CreateTable(storetest.Bounded(t), w.db, w.table))
	}
	storetest.Release(t, p, storetest.Acquire(t, p, storetest.Request("k")))
}

// TestUnfitTables are refused by New's calls, and by CreateTable when they are there.
func TestUnfitTables(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		keys []types.AttributeDefinition
		says string
	}{
		"another key": {[]types.AttributeDefinition{key("id", "S")}, `"id"`},
		"a number":    {[]types.AttributeDefinition{key("key", "N")}, `of type N`},
		"bytes":       {[]types.AttributeDefinition{key("key", "B")}, `of type B`},
		"a sort key":  {[]types.AttributeDefinition{key("key", "S"), key("at", "N")}, `sort key "at"`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			w.createWith(t, c.keys...)
			p := w.start(t)
			for method, call := range everyCall(p.Locker) {
				err := call(storetest.Bounded(t))
				require.ErrorIs(t, err, dynamo.ErrUnfit, method)
				switch method {
				case "Renew", "Renew Shared", "Release", "Release Shared", "undo", "ForceRelease": // DynamoDB refuses these
				default:
					require.ErrorContains(t, err, c.says, method)
				}
			}
			err := dynamo.CreateTable(storetest.Bounded(t), w.db, w.table)
			require.ErrorIs(t, err, dynamo.ErrUnfit)
			require.ErrorContains(t, err, c.says)
		})
	}
}

// TestTimeToLive: DynamoDB would delete locks; on an attribute that is none of theirs it
// does not.
func TestTimeToLive(t *testing.T) {
	t.Parallel()
	for attribute, fit := range map[string]bool{"expiry": false, "barrier": false, "ttl": true} {
		t.Run(attribute, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			create(t, w.db, w.table)
			enable := func(on bool) {
				_, err := w.db.UpdateTimeToLive(storetest.Bounded(t), &dynamodb.UpdateTimeToLiveInput{
					TableName:               &w.table,
					TimeToLiveSpecification: &types.TimeToLiveSpecification{AttributeName: &attribute, Enabled: &on},
				})
				require.NoError(t, err)
			}
			enable(true)
			p := w.start(t)
			_, err := p.Acquire(storetest.Bounded(t), storetest.Request("k"))
			made := dynamo.CreateTable(storetest.Bounded(t), w.db, w.table)
			if fit {
				require.NoError(t, err)
				require.NoError(t, made)
				return
			}
			for _, err := range []error{err, made} {
				require.ErrorIs(t, err, dynamo.ErrUnfit)
				require.ErrorContains(t, err, "TTL is enabled on attribute")
			}
			enable(false)
			storetest.Acquire(t, p, storetest.Request("k"))
		})
	}
}

// TestNoRightToDescribe: who may not look at the table uses it unchecked, and gets a clear
// error from DynamoDB's if it is unfit.
func TestNoRightToDescribe(t *testing.T) {
	t.Parallel()
	deny := func(operation string) (*http.Response, error) {
		if strings.HasPrefix(operation, "Describe") {
			return answer(400, "AccessDeniedException"), nil
		}
		return nil, nil
	}
	p := sharedWorld(t).start(t)
	p.http.set(deny, nil)
	for range 2 {
		storetest.Release(t, p, storetest.Acquire(t, p, storetest.Request("k")))
	}
	require.Equal(t, 1, p.http.sent()["DescribeTable"], "once")

	w := newWorld(t)
	w.createWith(t, key("id", "S"))
	unfit := w.start(t)
	unfit.http.set(deny, nil)
	_, err := unfit.Acquire(storetest.Bounded(t), storetest.Request("k"))
	require.ErrorIs(t, err, dynamo.ErrUnfit)
}

// TestThrottledCheck: DynamoDB answers all but DescribeTimeToLive. Nothing fails, and it is not asked
// again for a while.
func TestThrottledCheck(t *testing.T) {
	t.Parallel()
	p := sharedWorld(t).start(t)
	p.http.set(func(operation string) (*http.Response, error) {
		if operation == "DescribeTimeToLive" {
			return answer(400, "ThrottlingException"), nil
		}
		return nil, nil
	}, nil)
	storetest.Release(t, p, storetest.Renew(t, p, storetest.Acquire(t, p, storetest.Request("k"))))
	require.Equal(t, 1, p.http.sent()["DescribeTimeToLive"])
}

// TestHoldersNeedNoCheck: what is between knows no Describe, so a Locker grants nothing. Yet it keeps and
// ends what others have granted, and does not look at the table for that.
func TestHoldersNeedNoCheck(t *testing.T) {
	t.Parallel()
	both(t, func(t *testing.T, mode func(lock.Request) lock.Request) {
		w := sharedWorld(t)
		holder, p := w.open(t), w.start(t)
		g := storetest.Acquire(t, holder, mode(storetest.Request("k")))
		undone := storetest.Acquire(t, holder, mode(storetest.Request("undone")))
		forced := storetest.Acquire(t, holder, mode(storetest.Request("forced")))
		p.http.set(func(operation string) (*http.Response, error) {
			if strings.HasPrefix(operation, "Describe") {
				return answer(400, "UnknownOperationException"), nil
			}
			return nil, nil
		}, nil)
		storetest.Release(t, p, storetest.Renew(t, p, g))
		storetest.Release(t, p, lock.Grant{Key: "undone", Owner: undone.Owner})
		require.NoError(t, p.ForceRelease(storetest.Bounded(t), "forced", forced.Owner))
		require.Zero(t, p.http.sent()["DescribeTable"])
		for _, key := range []string{"k", "undone", "forced"} {
			require.Empty(t, storetest.Inspect(t, holder, key).Holders, key)
		}
		_, err := p.Acquire(storetest.Bounded(t), mode(storetest.Request("k")))
		require.ErrorContains(t, err, "UnknownOperationException")
	})
}

// TestOneCheck: the first calls of a Locker share the check of the table.
func TestOneCheck(t *testing.T) {
	t.Parallel()
	p := sharedWorld(t).start(t)
	const n = 20
	var begun, done sync.WaitGroup
	begun.Add(n)
	p.http.set(func(operation string) (*http.Response, error) {
		if strings.HasPrefix(operation, "Describe") {
			begun.Wait()
		}
		return nil, nil
	}, nil)
	for i := range n {
		done.Go(func() {
			begun.Done()
			storetest.Inspect(t, p, strconv.Itoa(i))
		})
	}
	done.Wait()
	sent := p.http.sent()
	require.Equal(t, 1, sent["DescribeTable"])
	require.Equal(t, 1, sent["DescribeTimeToLive"])
}

// dying is a client of a table with another status at first; what is deleted then is gone.
type dying struct {
	*dynamodb.Client
	status types.TableStatus
	asked  bool
}

func (d *dying) CreateTable(ctx context.Context, in *dynamodb.CreateTableInput, opts ...func(*dynamodb.Options)) (*dynamodb.CreateTableOutput, error) {
	if !d.asked {
		return nil, &types.ResourceInUseException{}
	}
	return d.Client.CreateTable(ctx, in, opts...)
}

func (d *dying) DescribeTable(ctx context.Context, in *dynamodb.DescribeTableInput, opts ...func(*dynamodb.Options)) (*dynamodb.DescribeTableOutput, error) {
	if !d.asked {
		d.asked = true
		return &dynamodb.DescribeTableOutput{Table: &types.TableDescription{TableStatus: d.status}}, nil
	}
	return d.Client.DescribeTable(ctx, in, opts...)
}

// TestCreateTableWhileDeleted: the table of that name is on its way out. CreateTable makes another.
func TestCreateTableWhileDeleted(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	require.NoError(t, dynamo.CreateTable(storetest.Bounded(t), &dying{Client: w.db, status: types.TableStatusDeleting}, w.table))
	p := w.start(t)
	storetest.Release(t, p, storetest.Acquire(t, p, storetest.Request("k")))
}

// TestTableOutOfUse is told of, and not waited for.
func TestTableOutOfUse(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for _, status := range []types.TableStatus{types.TableStatusInaccessibleEncryptionCredentials, types.TableStatusArchived} {
		err := dynamo.CreateTable(storetest.Bounded(t), &dying{Client: w.db, status: status}, w.table)
		require.ErrorContains(t, err, string(status))
	}
}

// TestCreateTableBadInput is refused before anything is sent, and ctx ends it.
func TestCreateTableBadInput(t *testing.T) {
	t.Parallel()
	require.ErrorIs(t, dynamo.CreateTable(context.Background(), nil, "locks"), lock.ErrInvalid)
	require.ErrorIs(t, dynamo.CreateTable(context.Background(), newClient(newTransport(), "127.0.0.1:1"), "?"), lock.ErrInvalid)
	w := newWorld(t)
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	require.ErrorIs(t, dynamo.CreateTable(ctx, w.db, w.table), context.Canceled)
}
