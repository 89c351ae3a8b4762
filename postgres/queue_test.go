package postgres_test

import (
	"context"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/jackc/pgx/v5/pgproto3"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/internal/storetest"
	"github.com/seed-215fdefa/lock/postgres"
)

// slowServer is a connection of a server that lines everybody up, and takes its time.
func slowServer(conn net.Conn, pause time.Duration) {
	defer func() { _ = conn.Close() }()
	b := pgproto3.NewBackend(conn, conn)
	start, _ := b.ReceiveStartupMessage()
	if _, ok := start.(*pgproto3.StartupMessage); !ok {
		return // a CancelRequest
	}
	b.Send(&pgproto3.AuthenticationOk{})
	b.Send(&pgproto3.ParameterStatus{Name: "standard_conforming_strings", Value: "on"})
	b.Send(&pgproto3.ParameterStatus{Name: "client_encoding", Value: "UTF8"})
	for {
		b.Send(&pgproto3.ReadyForQuery{TxStatus: 'I'})
		if b.Flush() != nil {
			return
		}
		m, _ := b.Receive()
		q, ok := m.(*pgproto3.Query)
		if !ok {
			return
		}
		if !strings.Contains(q.String, "acquire") {
			b.Send(&pgproto3.EmptyQueryResponse{}) // a ping
			continue
		}
		time.Sleep(pause)
		b.Send(&pgproto3.RowDescription{Fields: []pgproto3.FieldDescription{{Name: []byte("acquire"), DataTypeOID: 25, DataTypeSize: -1}}})
		b.Send(&pgproto3.DataRow{Values: [][]byte{[]byte(`{"recheck": 60000000, "ahead": 1, "record": {}}`)}})
		b.Send(&pgproto3.CommandComplete{CommandTag: []byte("SELECT 1")})
	}
}

// TestQueueOfNewcomers: many of one process line up on a server that takes its time, so the last are
// due after Patience. It answers, so nobody takes it for silent.
func TestQueueOfNewcomers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		config, err := pgxpool.ParseConfig("postgres://127.0.0.1:1/none?sslmode=disable&pool_max_conns=1&default_query_exec_mode=simple_protocol")
		require.NoError(t, err)
		config.ConnConfig.DialFunc = func(context.Context, string, string) (net.Conn, error) {
			client, server := net.Pipe()
			go slowServer(server, lock.Patience/7-time.Second) // no multiple: some are cut off
			return client, nil
		}
		p, err := pgxpool.NewWithConfig(t.Context(), config)
		require.NoError(t, err)
		defer p.Close()
		l := postgres.New(p, postgres.WithPolling(time.Second))
		defer func() { require.NoError(t, l.Close()) }()
		const crowd = 30
		errs := make(chan error, crowd)
		for range crowd {
			go func() {
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				req := storetest.Request("k")
				req.Wait, req.Waiting = true, func(lock.Record) { cancel() }
				_, err := l.Acquire(ctx, req)
				errs <- err
			}()
		}
		for range crowd {
			require.ErrorIs(t, <-errs, context.Canceled)
		}
	})
}
