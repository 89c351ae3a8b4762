package dynamo

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awsmiddleware "github.com/aws/aws-sdk-go-v2/aws/middleware"
	"github.com/aws/aws-sdk-go-v2/aws/retry"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"
	"github.com/aws/smithy-go"
	"github.com/aws/smithy-go/middleware"
	smithyhttp "github.com/aws/smithy-go/transport/http"

	"github.com/seed-215fdefa/lock"
)

const (
	// patience is how long one call goes on through throttling and errors of the network
	// or of DynamoDB, before it returns the last one.
	patience = 10 * time.Second

	// An attempt that has no answer by then is given up and sent again, on another
	// connection: a network that drops packets tells nobody.
	minAttempt = 500 * time.Millisecond
	maxAttempt = 5 * time.Second

	minRetryPause = 20 * time.Millisecond
	maxRetryPause = time.Second
)

// errNoTime is what a client's response without a Date is.
var errNoTime = errors.New("lock: dynamo: a response has no Date header, so DynamoDB's time is unknown: " +
	"the client is a wrapper that drops the result's metadata, or no DynamoDB answers")

// once makes the SDK send a request once. It would repeat a write without a word, and
// Grant.Start and the outcome would be unknown: the Locker repeats requests itself.
func once(o *dynamodb.Options) { o.Retryer = aws.NopRetryer{} }

// attempt is one request and its reply.
type attempt struct {
	came time.Time
	date time.Time // zero: there was no reply
}

// attempt sends f once, for no longer than limit, and learns the time from the reply.
func (l *Locker) attempt(ctx context.Context, limit time.Duration,
	f func(context.Context) (middleware.Metadata, error),
) (attempt, error) {
	bounded, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	sent := time.Now()
	meta, err := f(bounded)
	a := attempt{came: time.Now()}
	a.date = dateOf(meta, err)
	if !a.date.IsZero() {
		l.clock.learn(sent, a.came, a.date)
	}
	switch {
	case err == nil && a.date.IsZero():
		return a, errNoTime
	case err != nil && ctx.Err() == nil && bounded.Err() != nil:
		err = fmt.Errorf("lock: dynamo: no answer in %v: %w", limit, errUnanswered)
	}
	return a, err
}

var errUnanswered = errors.New("the request was given up")

// dateOf is when DynamoDB wrote a reply, by its own clock; zero if there was none.
func dateOf(meta middleware.Metadata, err error) time.Time {
	var failed *smithyhttp.ResponseError
	if errors.As(err, &failed) {
		if failed.Response == nil || failed.Response.Response == nil {
			return time.Time{}
		}
		date, _ := smithyhttp.ParseTime(failed.Response.Header.Get("Date"))
		return date
	}
	if err != nil {
		return time.Time{}
	}
	date, _ := awsmiddleware.GetServerTime(meta)
	return date
}

// attemptLimit is how long an attempt may take that concerns a lease of that TTL.
func attemptLimit(ttl time.Duration) time.Duration {
	return min(max(ttl/2, minAttempt), maxAttempt)
}

// repeat calls try until it succeeds or fails for good, with growing pauses. Throttling
// and errors of the network or of DynamoDB are no failure until patience or ctx ends.
func (l *Locker) repeat(ctx context.Context, try func(context.Context) error) error {
	begin := time.Now()
	for n := 0; ; n++ {
		err := try(ctx)
		if err == nil || errors.Is(err, lock.ErrHeld) || errors.Is(err, lock.ErrLost) {
			return err
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		pause := retryPause(n)
		if !transient(err) || n > 0 && skewed(err) || time.Since(begin)+pause > patience {
			return explain(err, l.table)
		}
		if err := l.sleep(ctx, pause); err != nil {
			return err
		}
	}
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
	case <-l.done:
		return lock.ErrClosed
	}
}

// retryPause has full jitter, see
// https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/.
func retryPause(n int) time.Duration {
	return 1 + rand.N(min(minRetryPause<<min(n, 10), maxRetryPause))
}

var (
	retryables = retry.IsErrorRetryables(retry.DefaultRetryables)
	throttles  = retry.IsErrorThrottles(retry.DefaultThrottles)
)

// transient tells whether asking again may help.
func transient(err error) bool {
	return errors.Is(err, errUnanswered) || throttled(err) || retryables.IsErrorRetryable(err) == aws.TrueTernary
}

// throttled tells of an error that the request certainly had no effect: there were too many,
// or a transaction has the item. After any other it may have had one, or may yet have it.
func throttled(err error) bool {
	var api smithy.APIError
	busy := errors.As(err, &api) && api.ErrorCode() == "TransactionConflictException"
	return busy || throttles.IsErrorThrottle(err) == aws.TrueTernary || skewed(err)
}

// skewed tells that this machine's wall clock is wrong, by which requests are signed. The
// SDK corrects it with the reply, so the request goes through the next time.
func skewed(err error) bool {
	var api smithy.APIError
	if !errors.As(err, &api) {
		return false
	}
	switch api.ErrorCode() {
	case "InvalidSignatureException", "SignatureDoesNotMatch", "RequestExpired", "RequestTimeTooSkewed", "RequestInTheFuture":
		return true
	}
	return false
}

// explain says what to do about errors that a user will meet.
func explain(err error, table string) error {
	var none *types.ResourceNotFoundException
	if errors.As(err, &none) {
		return fmt.Errorf("lock: dynamo: there is no table %q here, or it is not ready: CreateTable makes one: %w", table, err)
	}
	var api smithy.APIError
	if errors.As(err, &api) && api.ErrorCode() == "ValidationException" {
		return fmt.Errorf("%w: table %q refuses what a Locker writes: %w", ErrUnfit, table, err)
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
	for n := 0; ; n++ {
		if m, ok := l.clock.now(); ok {
			return m, nil
		}
		if n == 3 {
			return moment{}, errNoTime
		}
		if _, err := l.read(ctx, "time", false, maxAttempt); err != nil { // any item does
			return moment{}, err
		}
	}
}
