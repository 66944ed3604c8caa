package mime

import (
	"encoding/binary"
	"io"
	"strings"
	"unicode/utf16"
)

// isUTF7 knows the names of UTF-7, which the tables of charsets leave out since no new text should be in it. Some readers of
// mail still show it.
func isUTF7(charset string) bool {
	return strings.EqualFold(charset, "utf-7") || strings.EqualFold(charset, "unicode-1-1-utf-7")
}

func utf7Reader(r io.Reader) (io.Reader, error) {
	b, err := io.ReadAll(r)
	return strings.NewReader(fromUTF7(string(b))), err
}

// fromUTF7 reads UTF-7 (RFC 2152); what is none stays.
func fromUTF7(s string) string {
	var b strings.Builder
	for len(s) > 0 {
		plain, rest, shifted := strings.Cut(s, "+")
		b.WriteString(plain)
		if !shifted {
			break
		}
		n := strings.IndexFunc(rest, func(r rune) bool { return r >= 0x80 || !isBase64(byte(r)) })
		if n < 0 {
			n = len(rest)
		}
		if n == 0 {
			b.WriteByte('+')
		}
		b.WriteString(utf16Text(rest[:n]))
		s = strings.TrimPrefix(rest[n:], "-")
	}
	return b.String()
}

// utf16Text of octets in base64.
func utf16Text(base64Text string) string {
	octets := []byte(looseWordText('b', base64Text))
	units := make([]uint16, 0, len(octets)/2)
	for ; len(octets) >= 2; octets = octets[2:] {
		units = append(units, binary.BigEndian.Uint16(octets))
	}
	return string(utf16.Decode(units))
}
