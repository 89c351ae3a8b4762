package memory_test

import (
	"context"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/memory"
)

// BenchmarkUncontended is Acquire and Release by goroutines with a key each.
func BenchmarkUncontended(b *testing.B) {
	for _, callers := range []int{1, 16, 128} {
		b.Run(fmt.Sprintf("callers=%d", callers), func(b *testing.B) {
			l := memory.New()
			b.ReportAllocs()
			b.SetParallelism(callers)
			var n atomic.Int64
			b.RunParallel(func(pb *testing.PB) {
				ctx := context.Background()
				req := lock.Request{Key: fmt.Sprint("key-", n.Add(1)), Owner: "abcdefghijklmnopqrstuv", TTL: 10 * time.Second}
				for pb.Next() {
					g, err := l.Acquire(ctx, req)
					if err != nil {
						b.Error(err)
						return
					}
					if err := l.Release(ctx, g); err != nil {
						b.Error(err)
						return
					}
				}
			})
		})
	}
}

// BenchmarkBesideHeld is Acquire and Release by one caller while many keys are held, of
// which each Acquire looks at two.
func BenchmarkBesideHeld(b *testing.B) {
	for _, held := range []int{1_000, 100_000} {
		b.Run(fmt.Sprintf("held=%d", held), func(b *testing.B) {
			l := memory.New()
			ctx := context.Background()
			req := lock.Request{Owner: "abcdefghijklmnopqrstuv", TTL: time.Hour}
			for i := range held {
				req.Key = fmt.Sprint("key-", i)
				if _, err := l.Acquire(ctx, req); err != nil {
					b.Fatal(err)
				}
			}
			req.Key = "k"
			for b.Loop() {
				g, err := l.Acquire(ctx, req)
				if err != nil {
					b.Fatal(err)
				}
				if err := l.Release(ctx, g); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkHandOver is one key that many callers wait for.
func BenchmarkHandOver(b *testing.B) {
	for _, callers := range []int{2, 16, 128} {
		b.Run(fmt.Sprintf("callers=%d", callers), func(b *testing.B) {
			l := memory.New()
			b.ReportAllocs()
			b.SetParallelism(callers)
			b.RunParallel(func(pb *testing.PB) {
				ctx := context.Background()
				req := request("k", waiting)
				for pb.Next() {
					g, err := l.Acquire(ctx, req)
					if err != nil {
						b.Error(err)
						return
					}
					if err := l.Release(ctx, g); err != nil {
						b.Error(err)
						return
					}
				}
			})
		})
	}
}
