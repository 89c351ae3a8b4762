package testserver

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"testing"
)

var dynamoKind = &kind{
	name:    "dynamo",
	image:   "amazon/dynamodb-local:3.1.0",
	program: "java",
	install: "a Java runtime, version 17, and run `make servers` for DynamoDB Local",
	places:  []string{"/usr/lib/jvm/*/bin"},
	file:    filepath.Join(cacheDir(), dynamoFolder, "DynamoDBLocal.jar"),
	ready:   dynamoReady,
}

// Dynamo gives the test a DynamoDB Local of its own, which keeps its tables on disk, so
// that they outlive Kill and Start.
//
// If LOCK_TEST_DYNAMO_ADDR is set, that server is returned.
func Dynamo(tb testing.TB) *Server {
	tb.Helper()
	if s := dynamoFromEnv(tb); s != nil {
		return s
	}
	return launch(tb, dynamoKind, 1, func(ports []int) []string {
		return dynamoCommand(ports[0], quickStart, "-dbPath", ".")
	})
}

// SharedDynamo returns the one server that all tests of this process share, running and
// not frozen. A test uses a table of its own, or keys under a [Prefix]. [Main] ends it.
func SharedDynamo(tb testing.TB) *Server {
	tb.Helper()
	if s := dynamoFromEnv(tb); s != nil {
		return s
	}
	return launchShared(tb, dynamoKind, 1, func(ports []int) []string {
		return dynamoCommand(ports[0], "", "-inMemory")
	})
}

func dynamoFromEnv(tb testing.TB) *Server {
	tb.Helper()
	NeedServer(tb)
	addr := os.Getenv("LOCK_TEST_DYNAMO_ADDR")
	if addr == "" {
		return nil
	}
	if err := dynamoReady(context.Background(), addr); err != nil {
		tb.Fatalf("testserver: LOCK_TEST_DYNAMO_ADDR=%s: %v", addr, err)
	}
	return &Server{tb: tb, addr: addr}
}

// dynamoFolder is what servers.sh has unpacked, besides the image's own folder.
const dynamoFolder = "dynamodb-2.9.30"

// dynamoScript looks for DynamoDB Local in its first argument, then where the image has
// it. A Java runtime without it is no server: it ends at once, and says what is missing.
// The image's user may write to no working folder that Docker makes, but to its own.
const dynamoScript = `home=$1 jvm=$2; shift 2
[ -e "$home/DynamoDBLocal.jar" ] || home=/home/dynamodblocal
[ -e "$home/DynamoDBLocal.jar" ] || { echo "no DynamoDBLocal.jar: run 'make servers'"; exit 1; }
[ -w . ] || cd "$home"
exec java -Xms64m -Xmx512m -XX:+UseSerialGC $jvm -Djava.library.path="$home/DynamoDBLocal_lib" \
	-jar "$home/DynamoDBLocal.jar" -disableTelemetry -port "$@"`

// quickStart makes a JVM that lives for one test start sooner and run slower.
const quickStart = "-XX:TieredStopAtLevel=1"

func dynamoCommand(port int, jvm string, args ...string) []string {
	return append([]string{
		"sh", "-c", dynamoScript, "dynamo", filepath.Join(cacheDir(), dynamoFolder), jvm, strconv.Itoa(port),
	}, args...)
}

// dynamoReady takes any answer of HTTP for ready: a request without a signature is refused.
func dynamoReady(ctx context.Context, addr string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+addr+"/", nil)
	if err != nil {
		return err
	}
	transport := &http.Transport{DisableKeepAlives: true}
	resp, err := transport.RoundTrip(req)
	if err != nil {
		return err
	}
	_ = resp.Body.Close()
	if resp.StatusCode >= http.StatusInternalServerError {
		return fmt.Errorf("it answers %s", resp.Status)
	}
	return nil
}
