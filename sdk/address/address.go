// Package address parses and writes the mailboxes of SMTP envelopes: RFC 5321 section 4.1.2 with the
// internationalized forms of RFC 6531 section 3.3. It is strict: what it accepts can be written again, parsed
// again, and is the same mailbox and nothing else.
package address

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"unicode/utf8"

	"golang.org/x/net/idna"
)

// Limits of RFC 5321 section 4.5.3.1, in octets.
const (
	MaxLocal  = 64
	MaxDomain = 255
	MaxPath   = 256 // with the angle brackets
)

// Mailbox is one address. The zero value is the null reverse-path "<>".
type Mailbox struct {
	// Local part without quoting: what a quoted string means, not how it was written.
	Local string
	// Domain as given but for the letters A to Z, which are lower case; an address literal keeps its brackets.
	Domain string
}

// Errors that Parse wraps.
var (
	ErrSyntax  = errors.New("invalid address")
	ErrTooLong = errors.New("address too long")
)

// IsNull reports whether m is the null reverse-path.
func (m Mailbox) IsNull() bool { return m.Local == "" && m.Domain == "" }

// IsPostmaster reports whether m is <postmaster> without a domain (RFC 5321 section 4.1.1.3).
func (m Mailbox) IsPostmaster() bool {
	return m.Domain == "" && strings.EqualFold(m.Local, "postmaster")
}

// IsASCII reports whether m can be sent without SMTPUTF8.
func (m Mailbox) IsASCII() bool { return isASCII(m.Local) && isASCII(m.Domain) }

// String writes m without angle brackets, the local part quoted where it must be.
func (m Mailbox) String() string {
	local := m.Local
	if !isDotString(local) {
		local = quote(local)
	}
	switch {
	case m.IsNull():
		return ""
	case m.Domain == "":
		return local
	}
	return local + "@" + m.Domain
}

// Key is m in the one form that tables and comparisons use: all in lower case, the domain with A-labels (ASCIIDomain).
func (m Mailbox) Key() string {
	if !isASCII(m.Domain) {
		m.Domain = ASCIIDomain(m.Domain)
	}
	return strings.ToLower(m.String())
}

// ASCIIDomain is domain in lower case with A-labels (RFC 5890 section 2.3.2.1), the form in which the spellings of one
// name are the same. What has no such form only gets lower case. "*." of a pattern stays in front.
func ASCIIDomain(domain string) string {
	if isASCII(domain) {
		return strings.ToLower(domain)
	}
	name, star := domain, ""
	if below, ok := strings.CutPrefix(domain, "*."); ok {
		name, star = below, "*."
	}
	if ascii, err := idna.Lookup.ToASCII(name); err == nil {
		return star + ascii
	}
	return strings.ToLower(domain)
}

// Parse reads a mailbox without angle brackets. The empty string is the null reverse-path, and "postmaster"
// needs no domain; all else is local@domain.
func Parse(s string) (Mailbox, error) {
	if s == "" {
		return Mailbox{}, nil
	}
	if strings.EqualFold(s, "postmaster") {
		return Mailbox{Local: s}, nil
	}
	if len(s) > MaxPath-2 {
		return Mailbox{}, fmt.Errorf("%w: %d octets, at most %d", ErrTooLong, len(s), MaxPath-2)
	}
	local, rest, err := parseLocal(s)
	if err != nil {
		return Mailbox{}, err
	}
	if !strings.HasPrefix(rest, "@") {
		return Mailbox{}, fmt.Errorf("%w: no domain", ErrSyntax)
	}
	domain, err := ParseDomain(rest[1:])
	if err != nil {
		return Mailbox{}, err
	}
	// As it is written, with its quotes.
	if n := len(s) - len(rest); n > MaxLocal {
		return Mailbox{}, fmt.Errorf("%w: local part of %d octets, at most %d", ErrTooLong, n, MaxLocal)
	}
	return Mailbox{Local: local, Domain: domain}, nil
}

// ParsePath reads a path with its angle brackets at the start of s (RFC 5321 Reverse-path and Forward-path),
// drops a source route, and answers with what follows the path.
func ParsePath(s string) (m Mailbox, rest string, err error) {
	if !strings.HasPrefix(s, "<") {
		return Mailbox{}, "", fmt.Errorf("%w: no angle bracket", ErrSyntax)
	}
	end := closingBracket(s)
	if end < 0 {
		return Mailbox{}, "", fmt.Errorf("%w: angle bracket not closed", ErrSyntax)
	}
	inner, rest := s[1:end], s[end+1:]
	// RFC 5321 section 4.1.2: A-d-l MUST be accepted and SHOULD be ignored.
	if strings.HasPrefix(inner, "@") {
		route, after, ok := strings.Cut(inner, ":")
		if !ok {
			return Mailbox{}, "", fmt.Errorf("%w: source route without mailbox", ErrSyntax)
		}
		for _, hop := range strings.Split(route, ",") {
			if !strings.HasPrefix(hop, "@") {
				return Mailbox{}, "", fmt.Errorf("%w: source route", ErrSyntax)
			}
			if _, err := ParseDomain(hop[1:]); err != nil {
				return Mailbox{}, "", err
			}
		}
		if after == "" {
			return Mailbox{}, "", fmt.Errorf("%w: source route without mailbox", ErrSyntax)
		}
		inner = after
	}
	m, err = Parse(inner)
	return m, rest, err
}

// closingBracket finds the bracket that ends the path at the start of s, not one inside a quoted string.
func closingBracket(s string) int {
	quoted := false
	for i := 1; i < len(s); i++ {
		switch {
		case quoted && s[i] == '\\':
			i++
		case s[i] == '"':
			quoted = !quoted
		case s[i] == '>' && !quoted:
			return i
		}
	}
	return -1
}

// parseLocal reads Dot-string or Quoted-string and answers with its meaning and the rest.
func parseLocal(s string) (local, rest string, err error) {
	if s[0] == '"' {
		return parseQuoted(s)
	}
	i := strings.IndexByte(s, '@')
	if i < 0 {
		i = len(s)
	}
	if !isDotString(s[:i]) {
		return "", "", fmt.Errorf("%w: local part", ErrSyntax)
	}
	return s[:i], s[i:], nil
}

// parseQuoted reads Quoted-string: qtextSMTP is %d32-33, %d35-91, %d93-126 and UTF8-non-ascii, and
// quoted-pairSMTP a backslash with %d32-126.
func parseQuoted(s string) (local, rest string, err error) {
	var b strings.Builder
	for i := 1; i < len(s); i++ {
		switch c := s[i]; {
		case c == '"':
			if !utf8.ValidString(b.String()) {
				return "", "", fmt.Errorf("%w: local part is not UTF-8", ErrSyntax)
			}
			return b.String(), s[i+1:], nil
		case c == '\\' && i+1 < len(s) && s[i+1] >= 32 && s[i+1] <= 126:
			i++
			b.WriteByte(s[i])
		case c < 32 || c == 127 || c == '\\':
			return "", "", fmt.Errorf("%w: character in quoted local part", ErrSyntax)
		default:
			b.WriteByte(c)
		}
	}
	return "", "", fmt.Errorf("%w: quote not closed", ErrSyntax)
}

// ParseDomain reads a Domain or an address-literal and writes it with its letters in lower case.
func ParseDomain(s string) (string, error) {
	if s == "" {
		return "", fmt.Errorf("%w: no domain", ErrSyntax)
	}
	if len(s) > MaxDomain {
		return "", fmt.Errorf("%w: domain of %d octets, at most %d", ErrTooLong, len(s), MaxDomain)
	}
	if s[0] == '[' {
		return parseLiteral(s)
	}
	if !utf8.ValidString(s) {
		return "", fmt.Errorf("%w: domain is not UTF-8", ErrSyntax)
	}
	for _, label := range strings.Split(s, ".") {
		if !isLabel(label) {
			return "", fmt.Errorf("%w: domain label %q", ErrSyntax, label)
		}
	}
	return lowerASCII(s), nil
}

// parseLiteral reads IPv4-address-literal and IPv6-address-literal (RFC 5321 section 4.1.3). General address
// literals have no registered use and are refused.
func parseLiteral(s string) (string, error) {
	inner, ok := strings.CutSuffix(s[1:], "]")
	if !ok {
		return "", fmt.Errorf("%w: address literal not closed", ErrSyntax)
	}
	if v6, ok := cutPrefixFold(inner, "IPv6:"); ok {
		ip, err := netip.ParseAddr(v6)
		if err != nil || !ip.Is6() || ip.Zone() != "" {
			return "", fmt.Errorf("%w: IPv6 literal", ErrSyntax)
		}
		return "[IPv6:" + strings.ToLower(v6) + "]", nil
	}
	ip, err := netip.ParseAddr(inner)
	if err != nil || !ip.Is4() {
		return "", fmt.Errorf("%w: address literal", ErrSyntax)
	}
	return s, nil
}

func cutPrefixFold(s, prefix string) (string, bool) {
	if len(s) < len(prefix) || !strings.EqualFold(s[:len(prefix)], prefix) {
		return "", false
	}
	return s[len(prefix):], true
}

// isLabel follows sub-domain of RFC 5321 with U-labels of RFC 6531, and takes an underscore, which names in
// the wild have.
func isLabel(s string) bool {
	if s == "" || len(s) > 63*4 || s[0] == '-' || s[len(s)-1] == '-' {
		return false
	}
	if isASCII(s) && len(s) > 63 {
		return false
	}
	for _, r := range s {
		switch {
		case r >= 'a' && r <= 'z', r >= 'A' && r <= 'Z', r >= '0' && r <= '9', r == '-', r == '_':
		case r == 0x3002, r == 0xFF0E, r == 0xFF61:
			return false // dots to RFC 3490 section 3.1: more than one label
		case r >= 0xA0: // C1 controls (0x80 to 0x9F) are no part of any name
		default:
			return false
		}
	}
	return true
}

// isDotString follows Dot-string: atoms of atext or UTF8-non-ascii, joined by dots.
func isDotString(s string) bool {
	if s == "" || !utf8.ValidString(s) {
		return false
	}
	for _, atom := range strings.Split(s, ".") {
		if atom == "" {
			return false
		}
		for i := 0; i < len(atom); i++ {
			if !isAtext(atom[i]) {
				return false
			}
		}
	}
	return true
}

func isAtext(c byte) bool {
	switch {
	case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', c >= 0x80:
		return true
	}
	return strings.IndexByte("!#$%&'*+-/=?^_`{|}~", c) >= 0
}

func quote(s string) string {
	var b strings.Builder
	b.WriteByte('"')
	for i := 0; i < len(s); i++ {
		if s[i] == '"' || s[i] == '\\' {
			b.WriteByte('\\')
		}
		b.WriteByte(s[i])
	}
	b.WriteByte('"')
	return b.String()
}

func lowerASCII(s string) string {
	b := []byte(s)
	for i, c := range b {
		if c >= 'A' && c <= 'Z' {
			b[i] = c + 'a' - 'A'
		}
	}
	return string(b)
}

func isASCII(s string) bool {
	for i := 0; i < len(s); i++ {
		if s[i] >= 0x80 {
			return false
		}
	}
	return true
}
