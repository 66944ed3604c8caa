package delivery

import (
	"fmt"
	"strings"

	"github.com/posternmail/postern/host/internal/envelope"
)

func writeParam(b *strings.Builder, name, value string) {
	if value != "" {
		b.WriteString(" " + name + "=" + value)
	}
}

// notifyWords writes NOTIFY's value, empty where none was given.
func notifyWords(n envelope.Notify) string {
	if n&envelope.NotifyNever != 0 {
		return "NEVER"
	}
	var words []string
	for _, w := range []struct {
		bit  envelope.Notify
		word string
	}{{envelope.NotifySuccess, "SUCCESS"}, {envelope.NotifyFailure, "FAILURE"}, {envelope.NotifyDelay, "DELAY"}} {
		if n&w.bit != 0 {
			words = append(words, w.word)
		}
	}
	return strings.Join(words, ",")
}

// orcptParam writes ORCPT's value: the type, then the address as xtext (RFC 3461 section 4.2), or for type utf-8
// as utf-8-addr-unitext where the hop takes SMTPUTF8, as utf-8-addr-xtext where not (RFC 6533 section 3).
func orcptParam(orcpt string, unicode bool) string {
	kind, addr, ok := strings.Cut(orcpt, ";")
	if !ok {
		return ""
	}
	if strings.EqualFold(kind, "utf-8") {
		return kind + ";" + utf8Addr(addr, unicode)
	}
	return kind + ";" + xtext(addr)
}

// xtext follows RFC 3461 section 4: "+" and two hexadecimal digits for all but printable characters other than
// "+" and "=".
func xtext(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if c := s[i]; c < '!' || c > '~' || c == '+' || c == '=' {
			fmt.Fprintf(&b, "+%02X", c)
		} else {
			b.WriteByte(c)
		}
	}
	return b.String()
}

// utf8Addr follows RFC 6533 section 3: EmbeddedUnicodeChar for "\", "+", "=", what cannot stand in a command, and
// outside utf-8-addr-unitext for all that is not US-ASCII.
func utf8Addr(s string, unicode bool) string {
	var b strings.Builder
	for _, c := range s {
		switch {
		case c <= ' ' || c == 0x7f || c == '\\' || c == '+' || c == '=', c > 0x7f && !unicode:
			fmt.Fprintf(&b, `\x{%02X}`, c)
		default:
			b.WriteRune(c)
		}
	}
	return b.String()
}
