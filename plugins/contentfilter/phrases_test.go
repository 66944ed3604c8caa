package main

import (
	"fmt"
	"strings"
	"testing"

	"github.com/posternmail/postern/sdk/match"
)

// A phrase is found in itself, however it is written.
func FuzzPhrase(f *testing.F) {
	for _, s := range []string{"A  b\tc", "ﬁ", "İ", "ß", "\u00adx", "e\u0301", "Å\x00", "ｘ"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		folded := match.Fold(s)
		var p phrases
		if !p.add(s) {
			return
		}
		if got := p.find("x, " + folded + " ."); got != folded {
			t.Errorf("%q folds to %q, in which %q is found", s, folded, got)
		}
	})
}

// 1,600 phrases cost a message of 10 KB little.
func BenchmarkPhrases(b *testing.B) {
	var p phrases
	for i := range 1600 {
		p.add(fmt.Sprintf("%c%c phrase number %d", 'a'+i%26, 'a'+i/26%26, i))
	}
	text := match.Fold(strings.Repeat("The quick brown fox jumps over the lazy dog, and then some more words follow. ", 130))
	b.SetBytes(int64(len(text)))
	for b.Loop() {
		p.find(text)
	}
}
