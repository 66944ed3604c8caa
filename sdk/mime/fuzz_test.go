package mime

import (
	"strings"
	"testing"
	"unicode/utf8"
)

// FuzzHeader: whatever stands in the fields of a part, they are read to their end, and no name holds what would end a line.
func FuzzHeader(f *testing.F) {
	f.Add("multipart/mixed; boundary=\"b\"; name*0*=utf-8''%41; name*1=b", "attachment; filename=\"=?utf-8?b?YS5leGU=?=\"", "=?utf-8?q?a?= <a@b>, (c (d)) e: f;")
	f.Add("text/plain; name*99999999999999999999=x; name*1*=''%zz", "x; filename=a; filename=\"b\\\"", "=?x?b?=?= =?utf-8*en?Q?=ZZ?=")
	f.Add("/;;name=\"\x00", "filename*=utf-7''+AGEAYg-", "=?utf-7?q?+2D3=5FdZ?= =?iso-2022-jp?b?GyRC?=")
	f.Fuzz(func(t *testing.T, contentType, disposition, from string) {
		block := "Content-Type: " + contentType + "\r\nContent-Disposition: " + disposition + "\r\nFrom: " + from + "\r\n"
		h := ParseHeader([]byte(block))
		list, _ := h.Addresses("From")
		if len(list) > len(from) {
			t.Errorf("%d addresses in %d octets", len(list), len(from))
		}
		h.Decoded("From")
		AddressLike(from)
		if words := DecodeWords(from); len(words) > 8*len(from)+16 {
			t.Errorf("%d octets of encoded words become %d", len(from), len(words))
		}
		tree, err := Parse(t.Context(), []byte(block), strings.NewReader("x"), Limits{Depth: 5, Parts: 10})
		if err != nil {
			return
		}
		for p := range tree.All() {
			for _, name := range p.Names() {
				if utf8.ValidString(block) && !utf8.ValidString(name) {
					t.Errorf("%q is no text", name)
				}
			}
			p.Types()
		}
	})
}
