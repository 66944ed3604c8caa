package classifier

import (
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
