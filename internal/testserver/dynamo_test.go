package testserver

import (
	"context"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestDynamoKeepsItsTables ends a server of the test's own and starts it again on the same
// port.
func TestDynamoKeepsItsTables(t *testing.T) {
	t.Parallel()
	s := Dynamo(t)
	needControl(t, s)
	require.Contains(t, dynamoCall(t, s.Addr(), "CreateTable", `{"TableName": "kept",
		"AttributeDefinitions": [{"AttributeName": "k", "AttributeType": "S"}],
		"KeySchema": [{"AttributeName": "k", "KeyType": "HASH"}],
		"BillingMode": "PAY_PER_REQUEST"}`), `"TableName":"kept"`)
	for _, end := range []func(){s.Kill, s.Stop} {
		end()
		require.Error(t, dynamoReady(t.Context(), s.Addr()))
		s.Start()
		require.JSONEq(t, `{"TableNames": ["kept"]}`, dynamoCall(t, s.Addr(), "ListTables", "{}"))
	}
}

// TestSharedDynamo: one server for all, thawed for the next who asks.
func TestSharedDynamo(t *testing.T) {
	s := SharedDynamo(t)
	if s.Controlled() {
		s.Pause()
	}
	require.Equal(t, s.Addr(), SharedDynamo(t).Addr())
	require.NoError(t, dynamoReady(context.Background(), s.Addr()))
}

// dynamoCall returns the answer to an operation. DynamoDB Local wants a signature, and does
// not look at it.
func dynamoCall(t *testing.T, addr, operation, input string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), startTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+addr+"/", strings.NewReader(input))
	require.NoError(t, err)
	req.Header.Set("Content-Type", "application/x-amz-json-1.0")
	req.Header.Set("X-Amz-Target", "DynamoDB_20120810."+operation)
	req.Header.Set("Authorization", "AWS4-HMAC-SHA256 "+
		"Credential=local/20200101/local/dynamodb/aws4_request, SignedHeaders=host, Signature=0")
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Do(req)
	require.NoError(t, err)
	defer func() { _ = resp.Body.Close() }()
	output, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	return string(output)
}
