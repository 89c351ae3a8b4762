package dynamo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"reflect"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awsmiddleware "github.com/aws/aws-sdk-go-v2/aws/middleware"
	"github.com/aws/aws-sdk-go-v2/aws/retry"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"
	"github.com/aws/smithy-go"
	"github.com/aws/smithy-go/middleware"
	smithyhttp "github.com/aws/smithy-go/transport/http"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/internal/storekit"
)

const (
	// An attempt that has no answer by then is given up and sent again, on another
	// connection: a network that drops packets tells nobody.
	minAttempt = 500 * time.Millisecond
	maxAttempt = 5 * time.Second
)

// errNoTime is what a client's response without DynamoDB's time is.
var errNoTime = errors.New("lock: dynamo: a response has no Date header or no x-amzn-RequestId, so DynamoDB's time is unknown: " +
	"the client is a wrapper that drops the result's metadata, or no DynamoDB answers")

// once makes the SDK send a request once. It would repeat a write without a word, and
// Grant.Start and the outcome would be unknown: the Locker repeats requests itself.
func once(o *dynamodb.Options) { o.Retryer = aws.NopRetryer{} }

// attempt is one request and its reply.
type attempt struct {
	came time.Time
	date time.Time // zero: there was no reply
}

// send calls a method of the client once, for no longer than limit, and learns the time from the
// reply.
func send[In, Out any](ctx context.Context, l *Locker, limit time.Duration,
	method func(context.Context, *In, ...func(*dynamodb.Options)) (*Out, error), in *In,
) (*Out, attempt, error) {
	bounded, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	sent := time.Now()
	out, err := method(bounded, in, once)
	a := attempt{came: time.Now(), date: dateOf(out, err)}
	if !a.date.IsZero() {
		l.clock.learn(sent, a.came, a.date, a.came.Round(0).Sub(sent.Round(0))-a.came.Sub(sent))
	}
	switch {
	case err == nil && a.date.IsZero():
		return nil, a, errNoTime
	case err != nil && ctx.Err() == nil && bounded.Err() != nil:
		err = fmt.Errorf("lock: dynamo: no answer in %v: %w", limit, errUnanswered)
	}
	return out, a, err
}

var errUnanswered = errors.New("the request was given up")

// dateOf is when DynamoDB wrote a reply, by its own clock; zero if there was none. A reply without
// DynamoDB's id of the request is another's, as of a gateway, and so is its Date. All results have
// the field ResultMetadata, and no method for it.
func dateOf[Out any](out *Out, err error) (date time.Time) {
	var failed *awshttp.ResponseError
	switch {
	case errors.As(err, &failed):
		if failed.RequestID != "" && failed.Response != nil && failed.Response.Response != nil {
			date, _ = smithyhttp.ParseTime(failed.Response.Header.Get("Date"))
		}
	case err == nil && out != nil:
		meta, _ := reflect.ValueOf(out).Elem().FieldByName("ResultMetadata").Interface().(middleware.Metadata)
		if id, _ := awsmiddleware.GetRequestIDMetadata(meta); id != "" {
			date, _ = awsmiddleware.GetServerTime(meta)
		}
	}
	return date
}

// attemptLimit is how long attempt n, from 0, may take that concerns a lease of that TTL. It
// grows, since what is too slow once may be so again.
func attemptLimit(ttl time.Duration, n int) time.Duration {
	return min(max(ttl/2, minAttempt)<<min(n, 4), maxAttempt)
}

// repeat calls try until it succeeds or fails for good, as storekit.Repeat does.
func (l *Locker) repeat(ctx context.Context, try func(ctx context.Context, n int) error) error {
	_, err := storekit.Repeat(ctx, classify, func(ctx context.Context, n int) error {
		if l.closing.Err() != nil {
			return lock.ErrClosed
		}
		return try(ctx, n)
	})
	return l.explain(err)
}

// sleep returns early, with an error, when ctx or the Locker ends.
func (l *Locker) sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-l.closing.Done():
		return lock.ErrClosed
	}
}

var (
	retryables = retry.IsErrorRetryables(retry.DefaultRetryables)
	throttles  = retry.IsErrorThrottles(retry.DefaultThrottles)
)

// passing has the codes of errors that pass, beside throttling: DynamoDB has done nothing.
var passing = map[string]bool{
	// Another write has the item.
	"TransactionConflictException": true, "TransactionInProgressException": true, "ReplicatedWriteConflictException": true,
	// Credentials are renewed, maybe late, and new ones are not known everywhere at once.
	"ExpiredTokenException": true, "ExpiredToken": true, "UnrecognizedClientException": true, "InvalidClientTokenId": true,
	// This machine's wall clock is wrong, by which requests are signed. The SDK corrects it by the reply.
	"InvalidSignatureException": true, "SignatureDoesNotMatch": true,
	"RequestExpired": true, "RequestTimeTooSkewed": true, "RequestInTheFuture": true,
}

// classify tells what an error of the client, or of this package, means.
func classify(err error) storekit.Class {
	var api smithy.APIError
	var dns *net.DNSError
	var dial *net.OpError
	switch {
	case errors.Is(err, lock.ErrHeld), errors.Is(err, lock.ErrLost), errors.Is(err, ErrUnfit):
		return storekit.Final
	case errors.Is(err, errUnanswered), errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return storekit.Unknown
	case errors.As(err, &api) && passing[api.ErrorCode()], contended(err), throttles.IsErrorThrottle(err) == aws.TrueTernary:
		return storekit.Busy
	case errors.As(err, &dns), errors.As(err, &dial) && dial.Op == "dial", unsigned(err):
		return storekit.Unsent
	case errors.As(err, &api) && api.ErrorCode() == "InternalServerError", torn(err), retryables.IsErrorRetryable(err) == aws.TrueTernary:
		return storekit.Unknown
	}
	return storekit.Final
}

// torn tells of a reply that broke off. The SDK takes its status for an answer.
func torn(err error) bool {
	var network *net.OpError
	return errors.As(err, &network) || errors.Is(err, io.ErrUnexpectedEOF)
}

// contended tells of a transaction that was canceled, and undone, since other writes had its
// items or there were too many, and for no other reason.
func contended(err error) bool {
	var canceled *types.TransactionCanceledException
	if !errors.As(err, &canceled) {
		return false
	}
	passes := false
	for _, r := range canceled.CancellationReasons {
		switch aws.ToString(r.Code) {
		case "", "None":
		case "TransactionConflict", "ThrottlingError", "ProvisionedThroughputExceeded":
			passes = true
		default:
			return false
		}
	}
	return passes
}

// undone tells of an error that the request certainly had no effect. After any other it may
// have had one, or may yet have it.
func undone(err error) bool {
	c := classify(err)
	return c == storekit.Busy || c == storekit.Unsent
}

// unsigned tells that the client had no credentials to sign a request with. The SDK has no type
// for that.
func unsigned(err error) bool {
	var op *smithy.OperationError
	if !errors.As(err, &op) {
		return false
	}
	text := op.Err.Error()
	return strings.HasPrefix(text, "get identity: ") || strings.Contains(text, "failed to retrieve credentials") ||
		strings.Contains(text, "failed to refresh cached credentials")
}

// explain says what to do about errors that a user will meet.
func (l *Locker) explain(err error) error {
	var none *types.ResourceNotFoundException
	var api smithy.APIError
	switch {
	case err == nil:
	case errors.As(err, &none):
		return fmt.Errorf("lock: dynamo: there is no table %q here, or it is not ready: CreateTable makes one: %w", l.table, err)
	case errors.As(err, &api) && api.ErrorCode() == "ValidationException":
		return fmt.Errorf("%w: table %q refuses what a Locker writes: %w", ErrUnfit, l.table, err)
	case errors.As(err, &api) && denied(err):
		return fmt.Errorf("lock: dynamo: a right is missing on table %q; locks need dynamodb:PutItem, UpdateItem and GetItem, "+
			"List needs Scan, and Prune DeleteItem too: %w", l.table, err)
	case unsigned(err), errors.As(err, &api) && strings.HasPrefix(api.ErrorCode(), "MissingAuthenticationToken"):
		return fmt.Errorf("lock: dynamo: the client has no AWS credentials: set them in the environment, the shared "+
			"configuration or a role, or give the client's Options.Credentials a provider: %w", err)
	}
	return err
}

// refused is the item that made a write's condition fail. It is not ok for another error.
// An item that does not exist is empty.
func refused(err error) (old map[string]types.AttributeValue, ok bool) {
	var failed *types.ConditionalCheckFailedException
	if !errors.As(err, &failed) {
		return nil, false
	}
	return failed.Item, true
}

// now looks at DynamoDB's clock, and asks for the time first if it has not been heard for
// too long.
func (l *Locker) now(ctx context.Context) (moment, error) {
	var err error
	for n := 0; ; n++ {
		if m, ok := l.clock.now(); ok {
			return m, nil
		}
		switch {
		case err != nil:
			return moment{}, err
		case n == 3:
			return moment{}, errNoTime
		}
		_, err = l.read(ctx, "time", false, maxAttempt) // any item does, and most errors
	}
}

// surelyNow is now for calls that do not repeat it themselves.
func (l *Locker) surelyNow(ctx context.Context) (m moment, err error) {
	err = l.repeat(ctx, func(ctx context.Context, _ int) (err error) {
		m, err = l.now(ctx)
		return err
	})
	return m, err
}
