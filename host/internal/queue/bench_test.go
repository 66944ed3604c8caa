package queue_test

import (
	"fmt"
	"runtime"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/posternmail/postern/host/internal/envelope"
	"github.com/posternmail/postern/host/internal/queue"
	"github.com/posternmail/postern/host/internal/queue/storetest"
)

// cpu is what the process has used so far, in user and system mode.
func cpu() time.Duration {
	var u syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkCommit stores messages: commits/s, and CPU of the whole process per commit.
func BenchmarkCommit(b *testing.B) { benchmark(b, false) }

// BenchmarkMessage takes messages from commit to done: three synced changes, and two loads.
func BenchmarkMessage(b *testing.B) { benchmark(b, true) }

func benchmark(b *testing.B, whole bool) {
	for _, size := range []int{4 << 10, 50 << 10} {
		for _, senders := range []int{1, 32} {
			b.Run(fmt.Sprintf("%dKB/%d", size>>10, senders), func(b *testing.B) {
				store, err := queue.OpenStore(b.TempDir(), queue.StoreOptions{})
				if err != nil {
					b.Fatal(err)
				}
				defer store.Close()
				body := storetest.Octets(1, size)
				var n atomic.Int64
				b.SetParallelism((senders + runtime.GOMAXPROCS(0) - 1) / runtime.GOMAXPROCS(0))
				if senders == 1 {
					defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
					b.SetParallelism(1)
				}
				b.ResetTimer()
				used := cpu()
				b.RunParallel(func(pb *testing.PB) {
					for pb.Next() {
						if err := oneMessage(store, fmt.Sprintf("%016d.1", n.Add(1)), body, whole); err != nil {
							b.Error(err)
						}
					}
				})
				b.ReportMetric(float64((cpu()-used).Microseconds())/float64(b.N), "cpu-us/op")
				b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "per-s")
			})
		}
	}
}

func oneMessage(store queue.Store, id string, octets []byte, whole bool) error {
	body := envelope.MemoryBody(octets)
	item := storetest.Item(id, []byte("From: a@a.example\r\nTo: b@b.example\r\nSubject: benchmark\r\n"), body)
	item.Mail.OriginalHeader, item.Mail.OriginalBody = item.Mail.Header, body
	if err := store.Commit(item); err != nil || !whole {
		return err
	}
	item, err := store.Load(id)
	if err != nil {
		return err
	}
	copied := *item
	copied.ID = id + "-1"
	if err := store.Replace(item, &copied); err != nil {
		return err
	}
	if item, err = store.Load(copied.ID); err != nil {
		return err
	}
	item.State = queue.Done
	return store.Record(item)
}

// BenchmarkMillion starts a queue of a million items: seconds, and bytes of memory per item.
func BenchmarkMillion(b *testing.B) {
	const items = 1_000_000
	dir := b.TempDir()
	fill(b, dir, items)
	b.ResetTimer()
	for range b.N {
		runtime.GC()
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		store, err := queue.OpenStore(dir, queue.StoreOptions{})
		if err != nil {
			b.Fatal(err)
		}
		q, err := queue.New(store, queue.Options{Config: edge})
		if err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		runtime.GC()
		runtime.ReadMemStats(&after)
		b.ReportMetric(float64(after.HeapAlloc-before.HeapAlloc)/items, "B/item")
		started := time.Now()
		hops := q.Summary()
		b.ReportMetric(float64(time.Since(started).Milliseconds()), "summary-ms")
		if hops[0].Counts["ready"]+hops[0].Counts["waiting"] == 0 || len(hops) != 100 {
			b.Fatalf("%d hops", len(hops))
		}
		if err := q.Close(); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
}

// fill stores items that were deferred, to 100 next hops.
func fill(b *testing.B, dir string, items int) {
	store, err := queue.OpenStore(dir, queue.StoreOptions{CacheBytes: 1})
	if err != nil {
		b.Fatal(err)
	}
	body := envelope.MemoryBody(storetest.Octets(1, 200))
	for i := 0; i < items; i += 1000 {
		var batch []*queue.Item
		for j := i; j < i+1000; j++ {
			item := storetest.Item(fmt.Sprintf("%016d.1-%016d", j, j), []byte("Subject: x\r\n"), body)
			item.Message, item.Routed, item.Hop = fmt.Sprintf("%016d.1", j), true, fmt.Sprintf("internet/%d.example", j%100)
			item.Mail.Sender.Address.Local = fmt.Sprint("sender", j)
			item.Attempts, item.LastError = 3, "451 4.4.1 connection refused"
			item.Next = time.Now().Add(time.Hour + time.Duration(j)*time.Millisecond)
			item.Expires = item.Next.Add(24 * time.Hour)
			batch = append(batch, item)
		}
		if err := store.Commit(batch...); err != nil {
			b.Fatal(err)
		}
	}
	if err := store.Close(); err != nil {
		b.Fatal(err)
	}
}
