package classifier

import (
	"net/mail"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"golang.org/x/net/publicsuffix"
)

// hop is what a relay says of where it had a message from (RFC 5321 section 4.4).
type hop struct {
	helo     string // what the client called itself
	host     string // its name by DNS; empty: not told, or none
	nameless bool   // it has none, says the relay
	address  netip.Addr
	by       string // the relay
	number   string // its own, of the message
	time     time.Time
	readable bool
}

// Bounds of what is looked at.
const (
	maxHops  = 30
	maxTrace = 2000 // octets of a field
)

// readHop reads the value of a Received field.
func readHop(value string) hop {
	var h hop
	clauses, date, dated := cutLast(value[:min(len(value), maxTrace)], ";")
	if dated {
		h.time, _ = mail.ParseDate(strings.Join(strings.Fields(date), " "))
	}
	words := strings.Fields(clauses)
	by := len(words)
	for i := 0; i+1 < len(words); i++ {
		switch {
		case by == len(words) && strings.EqualFold(words[i], "by"):
			by, h.by = i, strings.ToLower(strings.Trim(words[i+1], "()"))
		case h.number == "" && strings.EqualFold(words[i], "id"):
			h.number = strings.Trim(words[i+1], "<>();")
		}
	}
	// qmail writes of itself in parentheses alone.
	h.readable = !h.time.IsZero() && (h.by != "" || strings.HasPrefix(clauses, "(") || strings.HasPrefix(clauses, " ("))
	if by >= 2 && strings.EqualFold(words[0], "from") {
		h.client(words[1], strings.Join(words[2:by], " "))
	}
	return h
}

// client is told in several ways: "helo (host [address])", "host (HELO helo) (address)", "host ([address] helo=helo)".
func (h *hop) client(name, comment string) {
	h.helo = strings.ToLower(name)
	lower := strings.ToLower(comment)
	if _, helo, told := strings.Cut(lower, "helo"); told {
		h.host = h.helo
		if words := strings.FieldsFunc(helo, func(r rune) bool { return strings.ContainsRune(" =[]()", r) }); len(words) > 0 {
			h.helo = words[0]
		}
	} else if inside, ok := strings.CutPrefix(lower, "("); ok {
		h.host, _, _ = strings.Cut(inside, " ")
		h.host = strings.TrimRight(h.host[strings.LastIndexByte(h.host, '@')+1:], ")")
	}
	h.nameless = h.host == "unknown" || strings.HasPrefix(lower, "([")
	if !strings.Contains(h.host, ".") || strings.ContainsAny(h.host, "[/=:") || isIP(h.host) {
		h.host = ""
	}
	if h.address = addressIn(lower); !h.address.IsValid() {
		h.address, _ = netip.ParseAddr(strings.Trim(name, "[]"))
	}
}

func isIP(s string) bool {
	_, err := netip.ParseAddr(s)
	return err == nil
}

// addressIn brackets or parentheses.
func addressIn(comment string) netip.Addr {
	for {
		i := strings.IndexAny(comment, "[(")
		if i < 0 {
			return netip.Addr{}
		}
		comment = strings.TrimPrefix(comment[i+1:], "ipv6:")
		end := strings.IndexFunc(comment, func(r rune) bool { return !strings.ContainsRune("0123456789abcdef.:", r) })
		if end < 0 {
			end = len(comment)
		}
		if a, err := netip.ParseAddr(comment[:end]); err == nil {
			return a
		}
	}
}

// public reports whether the client is another machine, of the internet.
func (h *hop) public() bool {
	return h.address.IsGlobalUnicast() && !h.address.IsPrivate()
}

// dynamic hosts are named by their address: two of its octets at least.
func (h *hop) dynamic() bool {
	if h.host == "" || !h.address.Is4() {
		return false
	}
	found := 0
	for number := range strings.FieldsFuncSeq(h.host, func(r rune) bool { return r < '0' || r > '9' }) {
		n, err := strconv.ParseUint(number, 10, 8)
		for _, octet := range h.address.As4() {
			if err == nil && n > 0 && octet == byte(n) {
				found++
				break
			}
		}
	}
	return found >= 2
}

func (s *inspector) trace() {
	author := false
	for i := range s.header {
		switch f := &s.header[i]; strings.ToLower(f.Name) {
		case "received":
			s.note(receivedBelow, author)
			if len(s.hops) < maxHops {
				s.hops = append(s.hops, readHop(f.Value))
			}
		case "subject", "from", "to":
			author = true
		}
	}
	for i := range s.hops {
		h := &s.hops[i]
		s.hop(h)
		if i > 0 && !h.time.IsZero() && !s.hops[i-1].time.IsZero() {
			s.note(receivedOrder, h.time.Sub(s.hops[i-1].time) > 3*time.Hour)
		}
	}
}

func (s *inspector) hop(h *hop) {
	s.note(receivedMalformed, !h.readable)
	if !h.public() {
		return
	}
	s.note(heloAddress, isIP(h.helo))
	s.note(hostNameless, h.nameless)
	s.note(hostDynamic, h.by != "" && h.dynamic() && organization(h.by) != organization(h.host))
}

// organization is the domain that somebody has registered, of a host name.
func organization(domain string) string {
	domain = strings.ToLower(strings.TrimSuffix(domain, "."))
	if isIP(domain) {
		return domain
	}
	if org, err := publicsuffix.EffectiveTLDPlusOne(domain); err == nil {
		return org
	}
	return domain
}

func cutLast(s, sep string) (before, after string, found bool) {
	if i := strings.LastIndex(s, sep); i >= 0 {
		return s[:i], s[i+len(sep):], true
	}
	return s, "", false
}
