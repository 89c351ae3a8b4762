package postgres

import (
	"time"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/internal/storekit"
)

// recordJSON is what the function record says of a key; times in µs.
type recordJSON struct {
	Key     string // in hex
	Token   lock.Token
	Held    int // by how many
	Holders []struct {
		O string
		T lock.Token
		S bool
		M string
		L int64 // left of the TTL
		H int64 // held, by the token, which is the time of the grant unless the clock was set back
	}
	Waiting int
	Waiters []struct {
		O string
		S bool
		M string
		W int64 // waited
	}
}

func (r recordJSON) record(key string) lock.Record {
	rec := lock.Record{Key: key, Token: r.Token, HolderCount: max(r.Held, len(r.Holders)), WaiterCount: max(r.Waiting, len(r.Waiters))}
	for _, h := range r.Holders {
		metadata, _, _ := storekit.DecodeNote(h.M) // else somebody else has written it
		rec.Holders = append(rec.Holders, lock.Holder{
			Owner: h.O, Token: h.T, Shared: h.S, Held: micros(h.H), ExpiresIn: micros(h.L), Metadata: metadata,
		})
	}
	for _, w := range r.Waiters {
		metadata, under, _ := storekit.DecodeNote(w.M)
		rec.Waiters = append(rec.Waiters, lock.Waiter{
			Owner: w.O, Shared: w.S, Waited: micros(w.W), Metadata: metadata, Under: under,
		})
	}
	return rec
}

// micros is never negative: a server's clock may be set back.
func micros(n int64) time.Duration { return time.Duration(max(n, 0)) * time.Microsecond }

// roundUp is d in whole microseconds, as the server counts.
func roundUp(d time.Duration) time.Duration {
	return (d + time.Microsecond - 1).Truncate(time.Microsecond)
}
