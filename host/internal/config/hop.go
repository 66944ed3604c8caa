package config

import "strings"

// Hop names where c takes mail for a domain: "connector/next", next being the domain for DNS routing, and otherwise
// the connector's own target.
func (c *SendConnector) Hop(domain string) string {
	switch {
	case c.DNS:
		return c.Name + "/" + strings.ToLower(domain)
	case c.LMTP != "":
		return c.Name + "/lmtp"
	case c.DropDirectory != "":
		return c.Name + "/drop"
	}
	return c.Name + "/" + strings.Join(c.SmartHosts, ",")
}
