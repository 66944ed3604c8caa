package config

import (
	"net/netip"
	"slices"
	"strings"

	"github.com/hashicorp/hcl/v2"
)

// checkTogether judges blocks against each other.
func (l *loader) checkTogether() {
	if l.broken {
		return // what seems to be missing may stand where the reader gave up
	}
	l.checkListeners()
	l.checkRoutes()
	l.checkStrangers()
	if len(l.root.all("receive_connector")) == 0 && len(l.files) > 0 {
		l.diags.warnf(hcl.Range{Filename: l.files[0].name}, "there is no receive_connector: no mail can come in")
	}
}

// listener is one address of one connector.
type listener struct {
	addr  netip.AddrPort
	text  string // as it is written
	at    hcl.Range
	owner *node
}

// checkListeners finds addresses that only one of two can have. The kernel would say so only at the start.
func (l *loader) checkListeners() {
	var taken []listener
	for _, n := range l.root.all("receive_connector") {
		n.each("listen", func(_ int, s string, at hcl.Range) {
			addr, err := parseListen(s)
			if err != nil || addr.Port() == 0 {
				return
			}
			for _, other := range taken {
				if collide(addr, other.addr) && (s != other.text || !toldApart(n, other.owner)) {
					l.diags.errorf(at, "%s is taken by %s at %s", s, other.owner.title(), other.at)
					return
				}
			}
			taken = append(taken, listener{addr, s, at, n})
		})
	}
}

// toldApart tells whether two connectors may share an address: each client is then for the one with the most specific
// range that holds it, so they must not have the same.
func toldApart(a, b *node) bool {
	one, two := a.prefixes("remote"), b.prefixes("remote")
	return a != b && (len(one) > 0 || len(two) > 0) &&
		!slices.ContainsFunc(one, func(p netip.Prefix) bool { return slices.Contains(two, p) })
}

// collide tells whether two addresses cannot be listened on at once: the same, or one of them all of a family. "::"
// takes IPv4 too.
func collide(a, b netip.AddrPort) bool {
	if a.Port() != b.Port() {
		return false
	}
	one, two := a.Addr().Unmap(), b.Addr().Unmap()
	covers := func(all, addr netip.Addr) bool {
		return all.IsUnspecified() && (all.Is6() || addr.Is4() || addr.IsUnspecified())
	}
	return one == two || covers(one, two) || covers(two, one)
}

// checkRoutes warns of accepted domains that no send connector takes.
func (l *loader) checkRoutes() {
	for i, domain := range l.config.AcceptedDomains {
		if !l.routed(domain.Name) {
			n := l.root.all("accepted_domain")[i]
			l.diags.warnf(n.labelAt(), "no send_connector has an address space for %s: its mail is accepted and cannot leave", domain.Name)
		}
	}
}

// checkStrangers warns of connectors for anonymous clients where there is no domain that those could send to.
func (l *loader) checkStrangers() {
	if len(l.config.AcceptedDomains) > 0 {
		return
	}
	for _, n := range l.root.all("receive_connector") {
		if !slices.Contains(n.strs("permissions"), "anonymous") {
			continue
		}
		at := n.at
		n.each("permissions", func(_ int, s string, place hcl.Range) {
			if s == "anonymous" && n.set("permissions") {
				at = place
			}
		})
		l.diags.warnf(at, "no mail is accepted from anonymous clients: there is no accepted_domain they could send to")
	}
}

func (l *loader) routed(domain string) bool {
	for _, n := range l.root.all("send_connector") {
		if n.value("address_spaces").bad {
			return true // perhaps this one
		}
	}
	for _, connector := range l.config.SendConnectors {
		for _, space := range connector.AddressSpaces {
			if space.covers(domain) {
				return true
			}
		}
	}
	return false
}

// covers tells whether a domain, or all subdomains of "*.x", are within the address space.
func (a AddressSpace) covers(domain string) bool {
	if a.Pattern == "*" || a.Pattern == domain {
		return true
	}
	suffix, wild := strings.CutPrefix(a.Pattern, "*")
	return wild && strings.HasSuffix(domain, suffix)
}
