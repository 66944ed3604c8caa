package config

import (
	"strings"

	"github.com/posternmail/postern/sdk/address"
)

// Hop names where c takes mail for a domain: "connector/next", next being the domain for DNS routing, and otherwise
// the connector's own target.
func (c *SendConnector) Hop(domain string) string {
	switch {
	case c.DNS:
		return c.Name + "/" + address.ASCIIDomain(domain)
	case c.LMTP != "":
		return c.Name + "/lmtp"
	case c.DropDirectory != "":
		return c.Name + "/drop"
	}
	return c.Name + "/" + strings.Join(c.SmartHosts, ",")
}
