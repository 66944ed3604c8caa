package session

import (
	"net/netip"
	"slices"
	"strings"

	"github.com/posternmail/postern/host/internal/config"
	"github.com/posternmail/postern/host/internal/envelope"
	"github.com/posternmail/postern/sdk/address"
)

// Permissions of a receive connector.
const (
	permitAnonymous  = "anonymous"
	permitUsers      = "users"
	permitOwnServers = "own_servers"
)

// trustOf a client before it authenticates. An own server is one by its address: the connector is for named clients
// only, or the client is one of the host's internal servers. A connector open to all makes nobody trusted.
func trustOf(c *config.ReceiveConnector, h config.Host, client netip.Addr) envelope.Trust {
	if !slices.Contains(c.Permissions, permitOwnServers) {
		return envelope.Anonymous
	}
	if contains(c.Remote, client) || contains(h.InternalSMTPServers, client) {
		return envelope.OwnServer
	}
	return envelope.Anonymous
}

func contains(prefixes []netip.Prefix, a netip.Addr) bool {
	a = a.Unmap()
	return slices.ContainsFunc(prefixes, func(p netip.Prefix) bool { return p.Contains(a) })
}

// permits reports whether the connector takes what a client with the session's trust has to send.
func (s *Session) permits() bool {
	return s.env.Trust != envelope.Anonymous || slices.Contains(s.start.Connector.Permissions, permitAnonymous)
}

// trusted reports whether the client may relay.
func (s *Session) trusted() bool {
	return s.env.Trust == envelope.User || s.env.Trust == envelope.OwnServer
}

// offersAuth reports whether AUTH is possible now: over TLS only, where users are permitted.
func (s *Session) offersAuth() bool { return s.permitsUsers() && s.w.TLS() != nil }

func (s *Session) permitsUsers() bool {
	return s.deps.Authenticate != nil && slices.Contains(s.start.Connector.Permissions, permitUsers)
}

// accepts reports whether domain is one that mail is taken for.
func (s *Session) accepts(domain string) bool {
	domain = address.ASCIIDomain(domain)
	return slices.ContainsFunc(s.deps.Config.AcceptedDomains, func(a config.AcceptedDomain) bool {
		name := address.ASCIIDomain(a.Name)
		if suffix, ok := strings.CutPrefix(name, "*"); ok {
			return strings.HasSuffix(domain, suffix) && len(domain) > len(suffix)
		}
		return domain == name
	})
}

// ownDomain is the one that <postmaster> without a domain belongs to (RFC 5321 section 4.5.1).
func (s *Session) ownDomain() string {
	for _, a := range s.deps.Config.AcceptedDomains {
		if !strings.HasPrefix(a.Name, "*") {
			return a.Name
		}
	}
	return ""
}
