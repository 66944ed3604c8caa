package main

import (
	"fmt"
	"strings"
	"testing"
)

func FuzzVisible(f *testing.F) {
	for _, s := range []string{"a<b>c", "<!-- x -->y", "<style>p{}", "&lt;&#0;", "<<a <b", "<a href='>'>x", "</", "<plaintext>x", "\x00<"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		var b strings.Builder
		writeVisible(&b, s)
		if b.Len() > 3*len(s)+3 { // an entity is longer than what it stands for; a NUL becomes three octets
			t.Errorf("%q became %q", s, b.String())
		}
	})
}

// Folding a second time changes nothing, or a phrase would not be found in itself.
func FuzzFold(f *testing.F) {
	for _, s := range []string{"A  b\tc", "ﬁ", "İ", "ß", "\u00adx", "e\u0301", "Å\x00", "ｘ"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		folded := fold(s)
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
	text := fold(strings.Repeat("The quick brown fox jumps over the lazy dog, and then some more words follow. ", 130))
	b.SetBytes(int64(len(text)))
	for b.Loop() {
		p.find(text)
	}
}

func BenchmarkFold(b *testing.B) {
	text := strings.Repeat("The quick brown fox jumps over the lazy dog, and then some more words follow.\r\n", 130)
	b.SetBytes(int64(len(text)))
	for b.Loop() {
		fold(text)
	}
}
