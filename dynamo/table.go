package dynamo

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"sync/atomic"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"
	"github.com/aws/smithy-go"
	"github.com/aws/smithy-go/middleware"

	"github.com/seed-215fdefa/lock"
)

// tablePattern has names and ARNs, for a table of another account.
var tablePattern = regexp.MustCompile(`^([a-zA-Z0-9_.-]{3,255}|arn:[a-zA-Z0-9:/_.-]{1,1000})$`)

func checkTable(table string) error {
	if !tablePattern.MatchString(table) {
		return fmt.Errorf("%w: dynamo: table %q: must be a name of 3 to 255 of [a-zA-Z0-9_.-], or an ARN", lock.ErrInvalid, table)
	}
	return nil
}

// CreateTable makes a table for locks, on-demand billed, and returns when it is ready. If
// it is there already, and fit, that is no error; otherwise the error is [ErrUnfit]. A
// table made elsewhere needs the partition key "key", a string, and no sort key.
func CreateTable(ctx context.Context, client TableAPI, table string) error {
	if missing(client) {
		return fmt.Errorf("%w: dynamo: client is nil", lock.ErrInvalid)
	}
	if err := checkTable(table); err != nil {
		return err
	}
	_, err := client.CreateTable(ctx, &dynamodb.CreateTableInput{
		TableName:            &table,
		BillingMode:          types.BillingModePayPerRequest,
		AttributeDefinitions: []types.AttributeDefinition{{AttributeName: aws.String(attrKey), AttributeType: types.ScalarAttributeTypeS}},
		KeySchema:            []types.KeySchemaElement{{AttributeName: aws.String(attrKey), KeyType: types.KeyTypeHash}},
	})
	var exists *types.ResourceInUseException
	if err != nil && !errors.As(err, &exists) {
		return err
	}
	return awaitTable(ctx, client, table)
}

func awaitTable(ctx context.Context, client TableAPI, table string) error {
	for pause := 20 * time.Millisecond; ; pause = min(2*pause, time.Second) {
		out, err := client.DescribeTable(ctx, &dynamodb.DescribeTableInput{TableName: &table})
		var none *types.ResourceNotFoundException
		switch {
		case err == nil && out.Table.TableStatus == types.TableStatusActive:
			ttl, err := client.DescribeTimeToLive(ctx, &dynamodb.DescribeTimeToLiveInput{TableName: &table})
			if err != nil {
				return err
			}
			return errors.Join(checkSchema(table, out.Table), checkTimeToLive(table, ttl.TimeToLiveDescription))
		case err != nil && !errors.As(err, &none): // it is told of late
			return err
		}
		t := time.NewTimer(pause)
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return ctx.Err()
		}
	}
}

// checkSchema tells why a table's key is not that of locks.
func checkSchema(table string, t *types.TableDescription) error {
	typeOf := make(map[string]types.ScalarAttributeType)
	for _, a := range t.AttributeDefinitions {
		typeOf[aws.ToString(a.AttributeName)] = a.AttributeType
	}
	for _, k := range t.KeySchema {
		name := aws.ToString(k.AttributeName)
		switch {
		case k.KeyType == types.KeyTypeRange:
			return fmt.Errorf("%w: table %q has the sort key %q: it must have none", ErrUnfit, table, name)
		case name != attrKey || typeOf[name] != types.ScalarAttributeTypeS:
			return fmt.Errorf("%w: the partition key of table %q is %q of type %s: it must be %q of type S, as CreateTable makes it",
				ErrUnfit, table, name, typeOf[name], attrKey)
		}
	}
	return nil
}

// checkTimeToLive tells whether DynamoDB would delete locks.
func checkTimeToLive(table string, d *types.TimeToLiveDescription) error {
	if d == nil || d.TimeToLiveStatus != types.TimeToLiveStatusEnabled && d.TimeToLiveStatus != types.TimeToLiveStatusEnabling {
		return nil
	}
	switch name := aws.ToString(d.AttributeName); name {
	case attrExpiry, attrToken, attrOpen, attrFloor, attrLease:
		return fmt.Errorf("%w: DynamoDB's TTL is enabled on attribute %q of table %q: it would delete locks with their tokens; disable it",
			ErrUnfit, name, table)
	}
	return nil
}

// fitness is the check of the table, which each Locker makes once. It tells the time, too.
type fitness struct {
	done atomic.Bool
	turn chan struct{} // has room for the one who checks
}

func newFitness() fitness { return fitness{turn: make(chan struct{}, 1)} }

func (f *fitness) check(ctx context.Context, l *Locker) error {
	if f.done.Load() {
		return nil
	}
	select {
	case f.turn <- struct{}{}:
		defer func() { <-f.turn }()
	case <-ctx.Done():
		return ctx.Err()
	case <-l.closing.Done():
		return lock.ErrClosed
	}
	if f.done.Load() {
		return nil
	}
	if err := l.repeat(ctx, l.describe); err != nil {
		return err
	}
	f.done.Store(true)
	return nil
}

// describe looks at the table. What the program has no right to see it does not check.
func (l *Locker) describe(ctx context.Context, _ int) error {
	var table *types.TableDescription
	_, err := l.attempt(ctx, maxAttempt, func(ctx context.Context) (middleware.Metadata, error) {
		out, err := l.api.DescribeTable(ctx, &dynamodb.DescribeTableInput{TableName: &l.table}, once)
		if err != nil {
			return middleware.Metadata{}, err
		}
		table = out.Table
		return out.ResultMetadata, nil
	})
	if err == nil {
		err = checkSchema(l.table, table)
	}
	if err != nil && !denied(err) {
		return err
	}
	var ttl *types.TimeToLiveDescription
	_, err = l.attempt(ctx, maxAttempt, func(ctx context.Context) (middleware.Metadata, error) {
		out, err := l.api.DescribeTimeToLive(ctx, &dynamodb.DescribeTimeToLiveInput{TableName: &l.table}, once)
		if err != nil {
			return middleware.Metadata{}, err
		}
		ttl = out.TimeToLiveDescription
		return out.ResultMetadata, nil
	})
	if err == nil {
		err = checkTimeToLive(l.table, ttl)
	}
	if denied(err) {
		return nil
	}
	return err
}

func denied(err error) bool {
	var api smithy.APIError
	return errors.As(err, &api) && api.ErrorCode() == "AccessDeniedException"
}
