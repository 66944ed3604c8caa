package classifier

import (
	"strings"
	"testing"
)

func FuzzPage(f *testing.F) {
	for _, s := range []string{
		"a<b>c", "<!-- x -->y", "<style>p{}", "&lt;&#0;", "<<a <b", "<a href='>'>x", "</", "<plaintext>x", "\x00<", "<a href=x>y<a href=z>",
		"<form action=x><a href=//y>http://z</a>", "<p style='display : none' onclick=x width=0>",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		p := readPage(s)
		if len(p.text) > 3*len(s)+3 { // an entity is longer than what it stands for; a NUL becomes three octets
			t.Errorf("%q became %q", s, p.text)
		}
		if len(p.links) > maxLinks || len(p.elements) > maxElements {
			t.Errorf("%d links, %d elements", len(p.links), len(p.elements))
		}
	})
}

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
