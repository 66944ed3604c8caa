package mime

import (
	"bufio"
	"cmp"
	"encoding/base64"
	"fmt"
	"io"
	"mime/quotedprintable"
	"strings"

	"golang.org/x/text/encoding/htmlindex"
)

// Decoded reads the content with its transfer encoding undone. Octets that are no base64 are passed over, as
// readers of mail do.
func (p *Part) Decoded() io.Reader {
	switch p.Encoding {
	case "base64":
		return base64.NewDecoder(base64.StdEncoding, &base64Cleaner{r: bufio.NewReaderSize(p.Raw(), 16<<10)})
	case "quoted-printable":
		return quotedprintable.NewReader(p.Raw())
	}
	return p.Raw()
}

// DecodedText reads at most limit octets of decoded content as UTF-8, by the part's charset; an unknown charset
// is read as ISO 8859-1. It reports whether there was more. Content that does not decode ends the text there.
func (p *Part) DecodedText(limit int64) (text string, more bool, err error) {
	var r io.Reader = p.Decoded()
	charset := strings.ToLower(strings.TrimSpace(p.Params["charset"]))
	switch charset {
	case "", "utf-8", "us-ascii", "utf8", "ascii":
	case "utf-7", "unicode-1-1-utf-7":
		r, err = utf7Reader(io.LimitReader(r, limit+1))
	default:
		enc, lookupErr := htmlindex.Get(charset)
		if lookupErr != nil {
			enc, _ = htmlindex.Get("windows-1252")
		}
		r = enc.NewDecoder().Reader(r)
	}
	b, failed := io.ReadAll(io.LimitReader(r, limit+1))
	if int64(len(b)) > limit {
		b, more = b[:limit], true
	}
	if failed = cmp.Or(err, failed); failed != nil {
		p.defect(fmt.Sprintf("content does not decode: %v", failed))
	}
	return strings.ToValidUTF8(string(b), "\uFFFD"), more, nil
}

// base64Cleaner passes on only octets of the base64 alphabet, and pads what was cut off.
type base64Cleaner struct {
	r    *bufio.Reader
	n    int // octets passed on, modulo 4
	done bool
}

func (c *base64Cleaner) Read(p []byte) (n int, err error) {
	for n < len(p) {
		b, err := c.next()
		if err != nil {
			if n > 0 {
				return n, nil
			}
			return 0, err
		}
		p[n] = b
		n++
	}
	return n, nil
}

// next answers with the next octet of the alphabet; at the end with padding up to a multiple of four.
func (c *base64Cleaner) next() (byte, error) {
	for !c.done {
		b, err := c.r.ReadByte()
		switch {
		case err == io.EOF || b == '=':
			c.done = true
		case err != nil:
			return 0, err
		case isBase64(b):
			c.n = (c.n + 1) % 4
			return b, nil
		}
	}
	switch c.n {
	case 0:
		return 0, io.EOF
	case 1: // six bits are no octet: make them one that can be read
		c.n++
		return 'A', nil
	}
	c.n = (c.n + 1) % 4
	return '=', nil
}

func isBase64(b byte) bool {
	return b >= 'A' && b <= 'Z' || b >= 'a' && b <= 'z' || b >= '0' && b <= '9' || b == '+' || b == '/'
}

// wrapBase64 encodes b in lines of 76 characters.
func wrapBase64(b []byte) []byte {
	s := base64.StdEncoding.EncodeToString(b)
	var out []byte
	for len(s) > 76 {
		out = append(append(out, s[:76]...), "\r\n"...)
		s = s[76:]
	}
	return append(out, s...)
}
