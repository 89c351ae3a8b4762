package rediskit

import (
	"bufio"
	"bytes"
	"net"
	"testing"

	goredis "github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/seed-215fdefa/lock/internal/storekit"
)

// answering is the address of a server that answers every EVALSHA with reply, and refuses all else.
func answering(t *testing.T, reply string) string {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { _ = listener.Close() })
	serve := func(c net.Conn) {
		defer func() { _ = c.Close() }()
		for lines := bufio.NewScanner(c); lines.Scan(); {
			switch word := lines.Bytes(); {
			case bytes.EqualFold(word, []byte("evalsha")):
				_, _ = c.Write([]byte("-" + reply + "\r\n"))
			case bytes.EqualFold(word, []byte("hello")), bytes.EqualFold(word, []byte("client")):
				_, _ = c.Write([]byte("-ERR unknown command\r\n"))
			}
		}
	}
	go func() {
		for {
			c, err := listener.Accept()
			if err != nil {
				return
			}
			go serve(c)
		}
	}()
	return listener.Addr().String()
}

// TestClassifyReplies: a code is a word. Others that begin alike say something else.
func TestClassifyReplies(t *testing.T) {
	t.Parallel()
	for reply, want := range map[string]storekit.Class{
		"ERR max number of clients reached":                       storekit.Busy,
		"ERR max number of clients + cluster connections reached": storekit.Busy,
		"BUSY Redis is busy running a script":                     storekit.Busy,
		"ASK 3999 127.0.0.1:6381":                                 storekit.Busy,
		"OOM command not allowed when used memory > 'maxmemory'.": storekit.Busy,
		"BUSYGROUP Consumer Group name already exists":            storekit.Final,
		"BUSYKEY Target key name already exists.":                 storekit.Final,
		"ASKED for something":                                     storekit.Final,
		"ERR max number of databases":                             storekit.Final,
	} {
		rdb := goredis.NewClient(&goredis.Options{Addr: answering(t, reply)})
		err := rdb.Process(t.Context(), NewCommand(t.Context(), NewScript("").With([]string{"k"}).ByName...))
		require.NoError(t, rdb.Close())
		require.ErrorContains(t, err, reply)
		require.Equal(t, want, Classify(err), reply)
	}
}
