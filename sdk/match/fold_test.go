package match

import (
	"strings"
	"testing"
)

// Folding a second time changes nothing, or a phrase would not be found in itself.
func FuzzFold(f *testing.F) {
	for _, s := range []string{"A  b\tc", "ﬁ", "İ", "ß", "\u00adx", "e\u0301", "Å\x00", "ｘ"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if once := Fold(s); strings.ContainsAny(once, "\r\n\t") || strings.Contains(once, "  ") {
			t.Errorf("%q folds to %q", s, once)
		}
	})
}

func BenchmarkFold(b *testing.B) {
	text := strings.Repeat("The quick brown fox jumps over the lazy dog, and then some more words follow.\r\n", 130)
	b.SetBytes(int64(len(text)))
	for b.Loop() {
		Fold(text)
	}
}
