// Package trace reads the Received fields of a message (RFC 5321 section 4.4).
package trace

import (
	"net/netip"
	"regexp"
	"strings"
)

// Client that a server wrote into its Received field.
type Client struct {
	Addr netip.Addr
	Helo string // what it called itself
}

// Source walks Received fields from the top, where our own servers wrote, to the first client that is none of
// them. It ends without one at a field that names no client: the message began there, and what stands below is
// the sender's word.
func Source(received []string, ours func(netip.Addr) bool) (Client, bool) {
	for _, field := range received {
		c, ok := ClientOf(field)
		if !ok {
			return Client{}, false
		}
		// A server of ours that talks to itself (a content filter on loopback) is no source.
		if !ours(c.Addr) && !c.Addr.IsLoopback() && !c.Addr.IsUnspecified() {
			return c, true
		}
	}
	return Client{}, false
}

var (
	// literal is an address as servers write the one they saw: "[192.0.2.1]", "[IPv6:2001:db8::1]", "(192.0.2.1)".
	literal = regexp.MustCompile(`[\[(](?:[Ii][Pp][Vv]6:)?([0-9A-Fa-f:.]+)(?:%[^\])]*)?[\])]`)
	// claim is what the client called itself, in the notations of Exim, qmail and CommuniGate; there it may stand
	// behind the address.
	claim = regexp.MustCompile(`(?i)(?:[( ](?:helo|ehlo|ident)=|\((?:[^()]* )?(?:helo|ehlo) )[^\s()]*`)
	// byClause begins with the server that wrote the field.
	byClause = regexp.MustCompile(`(?i) by `)
)

// ClientOf reads the client out of the value of a Received field: its address is the last literal of the "from"
// clause that is not the client's own claim.
func ClientOf(value string) (Client, bool) {
	words := strings.Fields(value)
	if len(words) < 2 || !strings.EqualFold(words[0], "from") {
		return Client{}, false
	}
	from := strings.Join(words, " ")
	if i := byClause.FindStringIndex(from); i != nil {
		from = from[:i[0]]
	}
	all := literal.FindAllStringSubmatch(claim.ReplaceAllString(from, ""), -1)
	for i := len(all) - 1; i >= 0; i-- {
		if ip, err := netip.ParseAddr(all[i][1]); err == nil {
			return Client{ip.Unmap(), words[1]}, true
		}
	}
	return Client{}, false
}
