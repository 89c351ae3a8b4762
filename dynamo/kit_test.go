package dynamo_test

import (
	"net"
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"
	"github.com/stretchr/testify/require"

	"github.com/seed-215fdefa/lock/dynamo"
	"github.com/seed-215fdefa/lock/internal/testserver"
	"github.com/seed-215fdefa/lock/locktest/faultproxy"
)

func newTransport() *http.Transport {
	return &http.Transport{
		DialContext:         (&net.Dialer{Timeout: 5 * time.Second}).DialContext,
		MaxIdleConnsPerHost: 100,
	}
}

// newClient returns a client as a program has it, with the SDK's own retries.
func newClient(rt http.RoundTripper, addr string) *dynamodb.Client {
	return dynamodb.New(dynamodb.Options{
		Region:       "eu-central-1",
		BaseEndpoint: aws.String("http://" + addr),
		Credentials:  credentials.NewStaticCredentialsProvider("test", "test", ""),
		HTTPClient:   &http.Client{Transport: rt},
	})
}

// client returns a plain client of the server at addr, whose connections end with the test.
func client(tb testing.TB, addr string) *dynamodb.Client {
	rt := newTransport()
	tb.Cleanup(rt.CloseIdleConnections)
	return newClient(rt, addr)
}

// world is a server, a table, a prefix, and what a test opens on them.
type world struct {
	server *testserver.Server
	table  string
	prefix string
	db     *dynamodb.Client
	oneWay time.Duration // from a process to the server
}

var shared struct {
	once  sync.Once
	table string
}

// sharedTable makes the table that the tests share.
func sharedTable(tb testing.TB) (*testserver.Server, string) {
	tb.Helper()
	server := testserver.SharedDynamo(tb)
	shared.once.Do(func() {
		shared.table = tableName()
		create(tb, client(tb, server.Addr()), shared.table)
	})
	return server, shared.table
}

func tableName() string { return testserver.Prefix()[:13] + "-locks" }

func create(tb testing.TB, db *dynamodb.Client, table string) {
	tb.Helper()
	ctx, cancel := background()
	defer cancel()
	require.NoError(tb, dynamo.CreateTable(ctx, db, table))
}

// sharedWorld is a clean keyspace of the server that the tests share.
func sharedWorld(tb testing.TB) world {
	tb.Helper()
	server, table := sharedTable(tb)
	return world{server: server, table: table, prefix: testserver.Prefix(), db: client(tb, server.Addr())}
}

// ownWorld is a server of the test's own, to break.
func ownWorld(tb testing.TB) world {
	tb.Helper()
	server := testserver.Dynamo(tb)
	w := world{server: server, table: "locks", prefix: testserver.Prefix(), db: client(tb, server.Addr())}
	create(tb, w.db, w.table)
	return w
}

// process is one Locker, and its way to the server.
type process struct {
	*dynamo.Locker
	world world
	net   *faultproxy.Proxy
	http  *hooks
	db    *dynamodb.Client
}

// open starts one more process. It has looked at its table already, so that a test which
// breaks its first request breaks that of the lock.
func (w world) open(tb testing.TB, opts ...dynamo.Option) *process {
	tb.Helper()
	p := w.start(tb, opts...)
	ctx, cancel := background()
	defer cancel()
	_, err := p.Inspect(ctx, "warm up")
	require.NoError(tb, err)
	return p
}

// start is open for a process that has not asked the server yet.
func (w world) start(tb testing.TB, opts ...dynamo.Option) *process {
	tb.Helper()
	p := &process{world: w, net: faultproxy.New(tb, w.server.Addr())}
	p.net.Delay(faultproxy.All(), w.oneWay)
	rt := newTransport()
	p.http = &hooks{next: rt}
	p.db = newClient(p.http, p.net.Addr())
	p.Locker = dynamo.New(p.db, w.table, append([]dynamo.Option{dynamo.WithPrefix(w.prefix)}, opts...)...)
	tb.Cleanup(func() {
		_ = p.Close()
		rt.CloseIdleConnections()
	})
	return p
}

// items returns all items of the world, by the lock's key.
func (w world) items(tb testing.TB) map[string]map[string]types.AttributeValue {
	tb.Helper()
	ctx, cancel := background()
	defer cancel()
	all := make(map[string]map[string]types.AttributeValue)
	pages := dynamodb.NewScanPaginator(w.db, &dynamodb.ScanInput{
		TableName: &w.table, ConsistentRead: aws.Bool(true), FilterExpression: aws.String("begins_with(#k, :p)"),
		ExpressionAttributeNames:  map[string]string{"#k": "key"},
		ExpressionAttributeValues: map[string]types.AttributeValue{":p": &types.AttributeValueMemberS{Value: w.prefix}},
	})
	for pages.HasMorePages() {
		page, err := pages.NextPage(ctx)
		require.NoError(tb, err)
		for _, it := range page.Items {
			all[it["key"].(*types.AttributeValueMemberS).Value[len(w.prefix):]] = it
		}
	}
	return all
}

// deleteAll makes the table forget the world's locks.
func (w world) deleteAll(tb testing.TB) {
	tb.Helper()
	ctx, cancel := background()
	defer cancel()
	for key := range w.items(tb) {
		_, err := w.db.DeleteItem(ctx, &dynamodb.DeleteItemInput{TableName: &w.table, Key: w.primary(key)})
		require.NoError(tb, err)
	}
}

func (w world) primary(key string) map[string]types.AttributeValue {
	return map[string]types.AttributeValue{"key": &types.AttributeValueMemberS{Value: w.prefix + key}}
}
