package storetest

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/seed-215fdefa/lock"
)

// StoppedHolder stops a process (SIGSTOP) between its read and its write of a resource, for
// longer than its lease. Another gets the lock and reads. Then the first goes on with the
// write that it was about to send: it must be refused, although nothing has been written
// since its read. r is the same resource as that of HolderMain's open for args.
func StoppedHolder(t *testing.T, rival lock.Locker, r Resource, ttl time.Duration, args ...string) {
	t.Helper()
	const key = "stopped holder"
	ctx := Bounded(t)
	require.NoError(t, r.Write(ctx, 1, "ten"))
	h := startHolder(t, holderSpec{Key: key, TTL: ttl, Args: args, Fence: true})
	require.Equal(t, "ten", h.says(t, "read "))
	stop(t, h.cmd.Process)
	_, err := fmt.Fprintln(h.in, "go on") // it will find that when it runs again
	require.NoError(t, err)

	next := Await(t, rival, Request(key))
	require.Greater(t, next.Token, h.Token)
	v, err := r.Read(ctx, next.Token)
	require.NoError(t, err)
	require.Equal(t, "ten", v)

	resume(t, h.cmd.Process)
	require.Equal(t, fmt.Sprintf("stale: %v after %v", h.Token, next.Token), h.says(t, "write "))
	require.Equal(t, "true", h.says(t, "lost before the write: "))

	require.NoError(t, r.Write(ctx, next.Token, "nine"))
	v, err = r.Read(ctx, next.Token)
	require.NoError(t, err)
	require.Equal(t, "nine", v)
}

// readAndWrite is the stopped process. It does not heed its lease, as one that stops
// between its last look at the lease and its write does not.
func readAndWrite(r Resource, lease *lock.Lease) error {
	ctx, cancel := context.WithTimeout(context.Background(), Patience)
	defer cancel()
	fmt.Println("token", lease.Token())
	v, err := r.Read(ctx, lease.Token())
	if err != nil {
		return err
	}
	fmt.Println("read", v)
	if _, err := bufio.NewReader(os.Stdin).ReadString('\n'); err != nil {
		return err
	}
	lost := errors.Is(lease.Err(), lock.ErrLost) // at the first look, whether or not a timer has run
	ctx, cancel = context.WithTimeout(context.Background(), Patience)
	defer cancel()
	err = r.Write(ctx, lease.Token(), "nine, by who was stopped")
	var stale *lock.StaleError
	if errors.As(err, &stale) {
		fmt.Printf("write stale: %v after %v\n", stale.Token, stale.Newest)
	} else {
		fmt.Println("write", err)
	}
	fmt.Println("lost before the write:", lost)
	return err
}
