package main

import (
	"errors"
	"runtime"
	"testing"
)

// What a message takes of memory is bounded by its limits, whatever it unpacks to.
func TestBombMemory(t *testing.T) {
	zeros := make([]byte, 20<<20)
	bomb := gzipped(t, gzipped(t, tarred(t, file{"a.zip", append([]byte("PK\x03\x04"), zeros...)})))
	zeros = nil
	f := filter(t)
	f.MaxExpanded, f.MaxRatio = 8<<20, 1<<30
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	_, err := look(t, f, "a.gz", bomb)
	runtime.ReadMemStats(&after)
	if !errors.Is(err, errLimit) {
		t.Errorf("got %v", err)
	}
	if used := after.TotalAlloc - before.TotalAlloc; used > 50<<20 {
		t.Errorf("%d MiB allocated for 8 MiB", used>>20)
	}
}
