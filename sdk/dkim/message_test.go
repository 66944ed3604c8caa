package dkim

import (
	"slices"
	"strings"
	"testing"
)

func TestSplitFields(t *testing.T) {
	got := splitFields([]byte(" begins with a fold\r\nA: 1\r\n two\r\n\tthree\r\nB:\r\n\r\n"))
	if want := []string{" begins with a fold", "A: 1\r\n two\r\n\tthree", "B:"}; !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
}

// A field of very many folds must not cost its length for each of them.
func TestManyFolds(t *testing.T) {
	header := []byte("A: b\r\n" + strings.Repeat(" c\r\n", 60_000))
	result := testing.Benchmark(func(b *testing.B) {
		for b.Loop() {
			splitFields(header)
		}
	})
	if n := result.AllocedBytesPerOp(); n > int64(20*len(header)) {
		t.Errorf("%d octets are allocated for a header of %d", n, len(header))
	}
}
