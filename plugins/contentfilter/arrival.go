package main

import (
	"strings"
	"time"

	"github.com/posternmail/postern/sdk"
)

// arrival is a Received field for the signs of the classifier: of the hop to us, which sorted mail has and a message that
// is just coming in has not, as the host writes its own when it is accepted. Nil for mail from inside: who submits a
// message from a desk says what it likes in HELO.
func (f *Filter) arrival(e *sdk.DataEvent) []byte {
	s := e.Session
	if !s.Client.IsValid() || s.Client.In(f.internal) || s.Auth != nil {
		return nil
	}
	literal := "[" + s.Client.String() + "]"
	from := literal
	if helo := s.Helo; len(helo) <= maxHelo && helo != "" && !strings.ContainsFunc(helo, breaksTrace) {
		from = helo + " (" + helo + " " + literal + ")"
	}
	return []byte("Received: from " + from + "\r\n\tby localhost; " + e.Time.Format(time.RFC1123Z) + "\r\n")
}

// breaksTrace reports whether a character of HELO would end its word in the field.
func breaksTrace(r rune) bool { return r <= ' ' || strings.ContainsRune("()[];", r) }

// maxHelo is how long a domain may be, in octets (RFC 5321 section 4.5.3.1.2).
const maxHelo = 255
