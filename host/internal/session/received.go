package session

import (
	"net/netip"
	"strings"
	"time"

	"github.com/posternmail/postern/sdk/address"
)

// received is our Received field (RFC 5321 section 4.4), the head of what we put before a message.
func (s *Session) received(now time.Time) []byte {
	var b strings.Builder
	b.Grow(400)
	b.WriteString("Received: from ")
	b.WriteString(s.extendedDomain())
	b.WriteString("\r\n\tby ")
	b.WriteString(s.deps.Config.Host.Name)
	if s.env.Local.IsValid() {
		b.WriteString(" (" + literal(s.env.Local.Addr()) + ")")
	}
	b.WriteString("\r\n\twith " + s.protocol())
	b.WriteString(" id " + s.tx.mail.ID)
	// RFC 5321 section 7.2: with more recipients than one "for" would tell one of another.
	if s.tx.accepted == 1 && len(s.tx.mail.Recipients) == 1 {
		if rcpt := s.tx.mail.Recipients[0].Address; rcpt.IsASCII() || s.tx.mail.Sender.SMTPUTF8 {
			b.WriteString("\r\n\tfor <" + rcpt.String() + ">")
		}
	}
	if s.env.TLS != nil {
		// RFC 8314 section 4.3.
		b.WriteString("\r\n\ttls " + s.env.TLS.CipherSuite)
	}
	b.WriteString(";\r\n\t" + now.Format("Mon, 2 Jan 2006 15:04:05 -0700") + "\r\n")
	return []byte(b.String())
}

// extendedDomain is the name the client gave, if it is one, and where it came from.
func (s *Session) extendedDomain() string {
	ip := literal(s.env.Client.Addr())
	name, err := address.ParseDomain(s.env.Helo)
	if err != nil || !s.tx.mail.Sender.SMTPUTF8 && !(address.Mailbox{Domain: name}).IsASCII() {
		return ip + " (" + ip + ")"
	}
	return name + " (" + ip + ")"
}

// literal writes an address as RFC 5321 section 4.1.3 does.
func literal(a netip.Addr) string {
	a = a.Unmap().WithZone("")
	if a.Is6() {
		return "[IPv6:" + a.String() + "]"
	}
	return "[" + a.String() + "]"
}

// protocol is the registered name for how the message came (RFC 3848, RFC 6531 section 4.3).
func (s *Session) protocol() string {
	p := "SMTP"
	switch {
	case s.tx.mail.Sender.SMTPUTF8:
		p = "UTF8SMTP"
	case s.env.Extended:
		p = "ESMTP"
	}
	if !s.env.Extended && !s.tx.mail.Sender.SMTPUTF8 {
		return p
	}
	if s.env.TLS != nil {
		p += "S"
	}
	if s.env.Auth != nil {
		p += "A"
	}
	return p
}
