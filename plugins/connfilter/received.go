package main

import (
	"net/netip"
	"regexp"
	"strings"

	"github.com/posternmail/postern/sdk"
)

// source walks the Received fields from the top, where our own servers wrote, to the first address that is none
// of theirs. It ends without one at a field that names no client: the message began there, and what stands
// below is the sender's word.
func (f *Filter) source(h sdk.Header) (netip.Addr, bool) {
	for field := range h.All("Received") {
		ip, ok := clientOf(string(field.Raw))
		if !ok {
			return netip.Addr{}, false
		}
		// A server of ours that talks to itself (a content filter on loopback) is no source.
		if !f.relayed(ip) && !ip.IsLoopback() && !ip.IsUnspecified() {
			return ip, true
		}
	}
	return netip.Addr{}, false
}

var (
	// literal is an address as servers write the one they saw: "[192.0.2.1]", "[IPv6:2001:db8::1]", "(192.0.2.1)".
	literal = regexp.MustCompile(`[\[(](?:[Ii][Pp][Vv]6:)?([0-9A-Fa-f:.]+)(?:%[^\])]*)?[\])]`)
	// claim is what the client called itself, in the notations of Exim, qmail and CommuniGate; there it may stand
	// behind the address: "([192.0.2.1] helo=[9.9.9.9])", "(HELO [9.9.9.9])".
	claim = regexp.MustCompile(`(?i)(?:[( ](?:helo|ehlo|ident)=|\((?:[^()]* )?(?:helo|ehlo) )[^\s()]*`)
	// byClause begins with the server that wrote the field.
	byClause = regexp.MustCompile(`(?i) by `)
)

// clientOf reads the address of the client out of a Received field (RFC 5321 section 4.4): the last literal of
// its "from" clause that is not the client's own claim.
func clientOf(field string) (netip.Addr, bool) {
	from := strings.Join(strings.Fields(field), " ")
	if len(from) < 5 || !strings.EqualFold(from[:5], "from ") {
		return netip.Addr{}, false
	}
	if i := byClause.FindStringIndex(from); i != nil {
		from = from[:i[0]]
	}
	all := literal.FindAllStringSubmatch(claim.ReplaceAllString(from, ""), -1)
	for i := len(all) - 1; i >= 0; i-- {
		if ip, err := netip.ParseAddr(all[i][1]); err == nil {
			return ip.Unmap(), true
		}
	}
	return netip.Addr{}, false
}
