package rediskit

import (
	"context"
	"strings"
	"time"

	goredis "github.com/redis/go-redis/v9"
)

// Text reads a reply that is a string, "" if it is none.
func Text(v any) string {
	s, _ := v.(string)
	return s
}

// Texts reads a reply that is a list of strings.
func Texts(v any) []string {
	list, _ := v.([]any)
	all := make([]string, len(list))
	for i, e := range list {
		all[i] = Text(e)
	}
	return all
}

// Milliseconds rounds up.
func Milliseconds(d time.Duration) int64 {
	return int64((d + time.Millisecond - 1) / time.Millisecond)
}

// Scan calls f with the names of all keys that begin with prefix, in steps that do not hold up the
// server. A step may have none, and a name may come twice.
func Scan(ctx context.Context, rdb goredis.Cmdable, prefix string, f func(names []string) error) error {
	for cursor := uint64(0); ; {
		names, next, err := rdb.Scan(ctx, cursor, glob.Replace(prefix)+"*", 512).Result()
		if err == nil {
			err = f(names)
		}
		if cursor = next; cursor == 0 || err != nil {
			return err
		}
	}
}

var glob = strings.NewReplacer(`\`, `\\`, "*", `\*`, "?", `\?`, "[", `\[`, "]", `\]`)
