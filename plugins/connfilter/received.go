package main

import (
	"net/netip"
	"regexp"

	"github.com/posternmail/postern/sdk"
)

// literal finds addresses in the "from" part of a Received field: "[192.0.2.1]", "[IPv6:2001:db8::1]", and
// "(192.0.2.1)" as some servers write.
var literal = regexp.MustCompile(`[\[(](?:[Ii][Pp][Vv]6:)?([0-9A-Fa-f]*[.:][0-9A-Fa-f.:]+)[\])]`)

var byClause = regexp.MustCompile(`(?i)\sby\s`)

// source walks the Received fields from the top, written by our own servers first, to the first address that is
// none of theirs.
func (f *Filter) source(h sdk.Header) (netip.Addr, bool) {
	for field := range h.All("Received") {
		from := field.Text()
		if i := byClause.FindStringIndex(from); i != nil {
			from = from[:i[0]]
		}
		// The last literal is the one that the server saw; one before it is what the client called itself.
		all := literal.FindAllStringSubmatch(from, -1)
		if len(all) == 0 {
			return netip.Addr{}, false
		}
		ip, err := netip.ParseAddr(all[len(all)-1][1])
		if err != nil {
			return netip.Addr{}, false
		}
		if ip = ip.Unmap(); !f.relayed(ip) {
			return ip, true
		}
	}
	return netip.Addr{}, false
}
