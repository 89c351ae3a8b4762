package dynamo

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"
	"github.com/aws/smithy-go"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/internal/storekit"
)

// A table's name, or its ARN for one of another account. The lengths are checked apart: counted
// repetitions would take milliseconds to compile in every program that imports the package.
var (
	tableName = regexp.MustCompile(`^[a-zA-Z0-9_.-]+$`)
	tableARN  = regexp.MustCompile(`^arn:[a-zA-Z0-9:/_.-]+$`)
)

func checkTable(table string) error {
	named := len(table) >= 3 && len(table) <= 255 && tableName.MatchString(table)
	if !named && (len(table) > 1004 || !tableARN.MatchString(table)) {
		return fmt.Errorf("%w: dynamo: table %q: must be a name of 3 to 255 of [a-zA-Z0-9_.-], or an ARN", lock.ErrInvalid, table)
	}
	return nil
}

// CreateTable makes a table for locks, billed on demand, and returns when it is ready. It
// returns nil if a fit table exists already, and [ErrUnfit] if an unfit one does. It waits for the
// end of one that is being deleted, and then makes its own. If you make the table by other means,
// give it the partition key "key", a string, and no sort key.
func CreateTable(ctx context.Context, client TableAPI, table string) error {
	if storekit.IsNil(client) {
		return fmt.Errorf("%w: dynamo: client is nil", lock.ErrInvalid)
	}
	if err := checkTable(table); err != nil {
		return err
	}
	if err := createTable(ctx, client, table); err != nil {
		return err
	}
	return awaitTable(ctx, client, table)
}

// createTable asks for the table, unless there is one of that name.
func createTable(ctx context.Context, client TableAPI, table string) error {
	_, err := client.CreateTable(ctx, &dynamodb.CreateTableInput{
		TableName:            &table,
		BillingMode:          types.BillingModePayPerRequest,
		AttributeDefinitions: []types.AttributeDefinition{{AttributeName: aws.String(attrKey), AttributeType: types.ScalarAttributeTypeS}},
		KeySchema:            []types.KeySchemaElement{{AttributeName: aws.String(attrKey), KeyType: types.KeyTypeHash}},
	})
	var exists *types.ResourceInUseException
	if errors.As(err, &exists) {
		return nil
	}
	return err
}

func awaitTable(ctx context.Context, client TableAPI, table string) error {
	for pause := 20 * time.Millisecond; ; pause = min(2*pause, time.Second) {
		out, err := client.DescribeTable(ctx, &dynamodb.DescribeTableInput{TableName: &table})
		var none *types.ResourceNotFoundException
		switch {
		case errors.As(err, &none): // it is told of late, or the one that was in use is deleted now
			if err := createTable(ctx, client, table); err != nil {
				return err
			}
		case err != nil:
			return err
		case out.Table.TableStatus == types.TableStatusActive:
			ttl, err := client.DescribeTimeToLive(ctx, &dynamodb.DescribeTimeToLiveInput{TableName: &table})
			if err != nil {
				return err
			}
			return errors.Join(checkSchema(table, out.Table), checkTimeToLive(table, ttl.TimeToLiveDescription))
		case !slices.Contains(passingStatuses, out.Table.TableStatus):
			return fmt.Errorf("lock: dynamo: table %q is there, but it cannot be used: its status is %s", table, out.Table.TableStatus)
		}
		if err := storekit.Sleep(ctx, pause); err != nil {
			return err
		}
	}
}

// passingStatuses are those of a table that will be ready, or gone.
var passingStatuses = []types.TableStatus{types.TableStatusCreating, types.TableStatusUpdating, types.TableStatusDeleting}

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

// recheckAfter is how long calls go on unchecked when the table could not be looked at.
const recheckAfter = time.Minute

// fitness is what a Locker knows of its table.
type fitness struct {
	sure  atomic.Bool // it is fit, or this program has no right to look at it
	mu    sync.Mutex  // guards the rest
	probe *probe      // under way; nil: none is
	again time.Time   // when to probe again; zero: no probe has failed, so calls wait for one
}

// probe is one look at the table, for all calls that wait for it.
type probe struct {
	over chan struct{}
	err  error // once it is over: of a table that cannot be used
}

// checkFitness returns why the table cannot be used. If that could not be found out for now, calls go on:
// DynamoDB throttles DescribeTimeToLive by the account, whatever else it can do.
func (l *Locker) checkFitness(ctx context.Context) error {
	f := &l.fitness
	f.mu.Lock()
	p, unchecked := f.probe, !f.again.IsZero()
	if p == nil && time.Now().After(f.again) {
		p = &probe{over: make(chan struct{})}
		f.probe = p
		go l.probe(p)
	}
	f.mu.Unlock()
	if unchecked {
		return nil
	}
	select {
	case <-p.over:
		return p.err
	case <-ctx.Done():
		return ctx.Err()
	case <-l.closing.Done():
		return lock.ErrClosed
	}
}

func (l *Locker) probe(p *probe) {
	err := l.describe(l.closing)
	f := &l.fitness
	f.mu.Lock()
	defer f.mu.Unlock()
	f.probe, f.again = nil, time.Time{}
	switch {
	case err == nil:
		f.sure.Store(true)
	case classify(err).Passing():
		f.again = time.Now().Add(recheckAfter)
	default:
		p.err = l.explain(err)
	}
	close(p.over)
}

// describe looks at the table. What the program has no right to see it does not check.
func (l *Locker) describe(ctx context.Context) error {
	table, _, err := send(ctx, l, maxAttempt, l.api.DescribeTable, &dynamodb.DescribeTableInput{TableName: &l.table})
	if err == nil {
		err = checkSchema(l.table, table.Table)
	}
	if err != nil && !denied(err) {
		return err
	}
	ttl, _, err := send(ctx, l, maxAttempt, l.api.DescribeTimeToLive, &dynamodb.DescribeTimeToLiveInput{TableName: &l.table})
	if err == nil {
		err = checkTimeToLive(l.table, ttl.TimeToLiveDescription)
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
