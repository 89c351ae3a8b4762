package testserver

import (
	"context"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestDynamo kills a server of the test's own and starts it again on the same port.
func TestDynamo(t *testing.T) {
	t.Parallel()
	s := Dynamo(t)
	require.NoError(t, dynamoReady(context.Background(), s.Addr()))
	s.Kill()
	require.Error(t, dynamoReady(context.Background(), s.Addr()))
	s.Start()
	require.NoError(t, dynamoReady(context.Background(), s.Addr()))
	s.Stop()
	require.Error(t, dynamoReady(context.Background(), s.Addr()))
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
