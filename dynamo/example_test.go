package dynamo_test

import (
	"context"
	"fmt"
	"testing"

	"github.com/aws/aws-sdk-go-v2/service/dynamodb"

	"github.com/seed-215fdefa/lock/dynamo"
	"github.com/seed-215fdefa/lock/internal/testserver"
)

// connect stands for dynamodb.NewFromConfig and for the program's own set-up: it returns a
// client, and makes a table if there is none.
func connect(table string) (client *dynamodb.Client, disconnect func()) {
	rt := newTransport()
	client = newClient(rt, testserver.SharedDynamo(inExample{}).Addr())
	if err := dynamo.CreateTable(context.Background(), client, table); err != nil {
		panic(err)
	}
	return client, rt.CloseIdleConnections
}

// inExample stands in for the testing.TB that an example does not have.
type inExample struct{ testing.TB }

func (inExample) Helper() {}

func (inExample) Fatalf(format string, args ...any) { panic(fmt.Sprintf(format, args...)) }
