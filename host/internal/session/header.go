package session

import (
	"bytes"
	"strings"

	"github.com/posternmail/postern/host/internal/envelope"
)

// maxHeaderLine is the longest line of a header in octets, without its CRLF (RFC 5322 section 2.1.1).
const maxHeaderLine = 998

// ownPrefix of header fields that only we and our own servers write.
const ownPrefix = "x-postern-"

// checkHeader refuses what no header may hold, and a message that has come around too often (RFC 5321 section 6.3).
func checkHeader(h []byte, maxHops int) envelope.Reply {
	if bytes.IndexByte(h, 0) >= 0 {
		return headerNUL
	}
	if len(h) > 0 && (h[0] == ' ' || h[0] == '\t') {
		return headerFold // it would go on the field that we put in front
	}
	hops := 0
	for len(h) > 0 {
		line := firstLine(h)
		h = h[len(line):]
		if len(line) > maxHeaderLine+2 {
			return headerLine
		}
		if hasName(line, "received") {
			hops++
		}
	}
	if maxHops > 0 && hops > maxHops {
		return mailLoop
	}
	return envelope.Reply{}
}

// firstLine of b with its line end.
func firstLine(b []byte) []byte {
	if i := bytes.IndexByte(b, '\n'); i >= 0 {
		return b[:i+1]
	}
	return b
}

// hasName reports whether a line begins the field of a name, given in lower case. RFC 5322 section 4.5: blanks may stand
// before the colon.
func hasName(line []byte, name string) bool {
	if len(line) <= len(name) || !asciiFold(line[:len(name)], name) {
		return false
	}
	rest := bytes.TrimLeft(line[len(name):], " \t")
	return len(rest) > 0 && rest[0] == ':'
}

func asciiFold(b []byte, lower string) bool {
	for i := range b {
		c := b[i]
		if c >= 'A' && c <= 'Z' {
			c += 'a' - 'A'
		}
		if c != lower[i] {
			return false
		}
	}
	return true
}

// withoutOwn is the header firewall: fields with our prefix are taken out. Without any it answers with h itself.
func withoutOwn(h []byte) []byte {
	var out []byte
	found := false
	for rest := h; len(rest) > 0; {
		f := firstField(rest)
		own := len(f) >= len(ownPrefix) && asciiFold(f[:len(ownPrefix)], ownPrefix)
		if own && !found {
			found = true
			out = append(out, h[:len(h)-len(rest)]...)
		}
		if found && !own {
			out = append(out, f...)
		}
		rest = rest[len(f):]
	}
	if !found {
		return h
	}
	return out
}

// firstField of a header block with its folded lines.
func firstField(h []byte) []byte {
	n := len(firstLine(h))
	for n < len(h) && (h[n] == ' ' || h[n] == '\t') {
		n += len(firstLine(h[n:]))
	}
	return h[:n]
}

// field is the value of the first field of a name, unfolded, as far as a reply or a line of the ledger can hold it.
func field(h []byte, name string) string {
	lower := strings.ToLower(name)
	for len(h) > 0 {
		f := firstField(h)
		if hasName(f, lower) {
			_, value, _ := bytes.Cut(f, []byte{':'})
			return clean(value)
		}
		h = h[len(f):]
	}
	return ""
}

// clean makes one printable line of at most 200 octets.
func clean(value []byte) string {
	words := strings.Join(strings.Fields(string(value)), " ")
	words = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return -1
		}
		return r
	}, words)
	if len(words) > 200 {
		words = words[:200]
	}
	return strings.ToValidUTF8(words, "?")
}
