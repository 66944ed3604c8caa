package delivery

import (
	"cmp"
	"context"
	"errors"
	"hash/fnv"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/miekg/dns"

	"github.com/posternmail/postern/host/internal/envelope"
	"github.com/posternmail/postern/host/internal/queue"
)

// maxTargets bounds how many addresses one attempt tries (RFC 5321 section 5.1: at least two).
const maxTargets = 10

// maxExchangers bounds how many names of mail exchangers are looked up: each may cost all the timeouts of DNS.
const maxExchangers = 20

// targets finds the addresses to try for an item, in order. The reply says why there are none: 4xx, or 5xx when
// a retry is in vain.
func (d *Delivery) targets(ctx context.Context, c *connector, item *queue.Item) ([]target, envelope.Reply) {
	var list []target
	var why envelope.Reply
	switch {
	case c.LMTP != "":
		list, why = d.lmtpTargets(ctx, c)
	case c.DNS:
		_, domain := SplitHop(item.Hop)
		list, why = d.mxTargets(ctx, c, domain)
	default:
		list, why = d.smartTargets(ctx, c, item)
	}
	// Those that could not be reached a moment ago come last.
	slices.SortStableFunc(list, func(a, b target) int {
		return cmp.Compare(boolInt(d.pool.isDown(a.address)), boolInt(d.pool.isDown(b.address)))
	})
	if len(list) > maxTargets {
		list = list[:maxTargets]
	}
	return list, why
}

func boolInt(b bool) int {
	if b {
		return 1
	}
	return 0
}

func (d *Delivery) lmtpTargets(ctx context.Context, c *connector) ([]target, envelope.Reply) {
	if path, ok := strings.CutPrefix(c.LMTP, "unix:"); ok {
		return []target{{network: "unix", address: path}}, envelope.Reply{}
	}
	return d.hostTargets(ctx, c.LMTP, 24) // LMTP has no port of its own; 24 is for private mail systems
}

// smartTargets starts with another smart host for each item and attempt, so that they share the load.
func (d *Delivery) smartTargets(ctx context.Context, c *connector, item *queue.Item) ([]target, envelope.Reply) {
	var list []target
	why := reply(451, "4.3.5", "the send connector has no smart host")
	h := fnv.New32a()
	_, _ = h.Write([]byte(item.ID))
	start := int(h.Sum32()%1024) + item.Attempts
	for i := range c.SmartHosts {
		found, problem := d.hostTargets(ctx, c.SmartHosts[(start+i)%len(c.SmartHosts)], c.port())
		list = append(list, found...)
		if !problem.IsZero() {
			why = problem
		}
	}
	return list, why
}

func (c *connector) port() int {
	if c.Port == 0 {
		return smtpPort
	}
	return c.Port
}

// hostTargets are the addresses of "host", "host:port", "[ip]" or "[ip]:port".
func (d *Delivery) hostTargets(ctx context.Context, spec string, port int) ([]target, envelope.Reply) {
	host, portText, err := net.SplitHostPort(spec)
	if err != nil {
		host, portText = strings.Trim(spec, "[]"), strconv.Itoa(port)
	}
	ips, err := d.resolver.addresses(ctx, host)
	if err != nil {
		return nil, reply(451, "4.4.3", "looking up "+host+": "+plainError(err))
	}
	if _, err := netip.ParseAddr(host); err == nil {
		host = ""
	}
	var list []target
	for _, ip := range ips {
		list = append(list, target{network: "tcp", address: net.JoinHostPort(ip.String(), portText), host: host})
	}
	if len(list) == 0 {
		return nil, reply(451, "4.4.4", host+" has no address")
	}
	return list, envelope.Reply{}
}

// mxTargets follows RFC 5321 section 5.1.
func (d *Delivery) mxTargets(ctx context.Context, c *connector, domain string) ([]target, envelope.Reply) {
	if strings.HasPrefix(domain, "[") {
		return d.literalTarget(c, domain)
	}
	records, err := d.resolver.mx(ctx, domain)
	switch {
	case errors.Is(err, errNoName):
		return nil, reply(550, "5.1.2", "domain "+domain+" does not exist")
	case err != nil:
		return nil, reply(451, "4.4.3", "looking up MX of "+domain+": "+plainError(err))
	case len(records) == 1 && records[0].Mx == ".":
		// RFC 7505 section 3: the domain takes no mail.
		return nil, reply(556, "5.1.10", "domain "+domain+" accepts no mail (null MX)")
	case len(records) == 0:
		records = []*dns.MX{{Mx: domain}} // the implicit MX
	}
	return d.exchangers(ctx, c, domain, records)
}

// exchangers are the addresses of records by preference, equal ones in random order. If we are among them, only
// those before us count: the others would give the mail back.
func (d *Delivery) exchangers(ctx context.Context, c *connector, domain string, records []*dns.MX) ([]target, envelope.Reply) {
	records = slices.Clone(records)
	rand.Shuffle(len(records), func(i, j int) { records[i], records[j] = records[j], records[i] })
	slices.SortStableFunc(records, func(a, b *dns.MX) int { return cmp.Compare(a.Preference, b.Preference) })
	records = records[:min(len(records), maxExchangers)]
	why := reply(550, "5.4.4", "no mail host of "+domain+" has an address")
	var list []target
	for _, mx := range records {
		host := strings.ToLower(strings.TrimSuffix(mx.Mx, "."))
		ips, err := d.resolver.addresses(ctx, host)
		if err != nil && !errors.Is(err, errNoName) {
			why = reply(451, "4.4.3", "looking up "+host+": "+plainError(err))
		}
		ips = slices.DeleteFunc(ips, isNobody)
		if d.isSelf(c, host, ips) {
			list = slices.DeleteFunc(list, func(t target) bool { return t.pref == mx.Preference })
			why = reply(550, "5.4.6", "mail for "+domain+" loops back to this host")
			break
		}
		for _, ip := range ips {
			list = append(list, target{network: "tcp", address: net.JoinHostPort(ip.String(), strconv.Itoa(c.port())),
				host: host, domain: domain, pref: mx.Preference})
		}
		if len(list) > maxTargets {
			break
		}
	}
	return list, why
}

// literalTarget of "[192.0.2.1]" and "[IPv6:2001:db8::1]".
func (d *Delivery) literalTarget(c *connector, domain string) ([]target, envelope.Reply) {
	text := strings.Trim(domain, "[]")
	if len(text) > 5 && strings.EqualFold(text[:5], "IPv6:") {
		text = text[5:]
	}
	ip, err := netip.ParseAddr(text)
	if err != nil {
		return nil, reply(550, "5.1.2", "bad address literal")
	}
	ip = ip.Unmap()
	switch {
	case isNobody(ip):
		return nil, reply(550, "5.4.4", domain+" is no host's address")
	case d.isSelf(c, "", []netip.Addr{ip}):
		return nil, reply(550, "5.4.6", "mail for "+domain+" loops back to this host")
	}
	return []target{{network: "tcp", address: net.JoinHostPort(ip.String(), strconv.Itoa(c.port()))}}, envelope.Reply{}
}

// isNobody reports whether an address cannot be that of one host.
func isNobody(ip netip.Addr) bool { return ip.IsUnspecified() || ip.IsMulticast() }

// smtpPort is the one that mail exchangers are asked at (RFC 5321 section 4.5.4.2).
const smtpPort = 25

// isSelf reports whether a mail exchanger is this host: by its name, by an address we listen on, or by a loopback address,
// which names whoever looks at it. A stranger's DNS must not lead to what else runs here; with a port of its own the
// connector is not meant for strangers.
func (d *Delivery) isSelf(c *connector, host string, ips []netip.Addr) bool {
	if host != "" && (strings.EqualFold(host, d.config.Host.Name) || strings.EqualFold(host, c.Fqdn)) {
		return true
	}
	port := uint16(c.port())
	if port == smtpPort && slices.ContainsFunc(ips, netip.Addr.IsLoopback) {
		return true
	}
	return slices.ContainsFunc(ips, func(ip netip.Addr) bool {
		// Who listens everywhere is at every loopback address, and not only at the one that its interface has.
		everywhere := ip.IsLoopback() && d.listening[netip.AddrPortFrom(netip.IPv4Unspecified(), port)]
		return everywhere || d.listening[netip.AddrPortFrom(ip, port)]
	})
}

// listeners are the addresses of the receive connectors; for a wildcard 0.0.0.0 and those of all interfaces.
func (d *Delivery) listeners() map[netip.AddrPort]bool {
	set := map[netip.AddrPort]bool{}
	for _, rc := range d.config.ReceiveConnectors {
		for _, text := range rc.Listen {
			host, port, _ := net.SplitHostPort(text)
			n, err := strconv.ParseUint(port, 10, 16)
			if err != nil {
				continue
			}
			for _, ip := range listenIPs(host) {
				set[netip.AddrPortFrom(ip, uint16(n))] = true
			}
		}
	}
	return set
}

func listenIPs(host string) []netip.Addr {
	ip, err := netip.ParseAddr(host)
	if err == nil && !ip.IsUnspecified() {
		return []netip.Addr{ip.Unmap()}
	}
	out := []netip.Addr{netip.IPv4Unspecified()}
	list, _ := net.InterfaceAddrs() // what cannot be listed is not found to be us by address
	for _, a := range list {
		if prefix, err := netip.ParsePrefix(a.String()); err == nil {
			out = append(out, prefix.Addr().Unmap())
		}
	}
	return out
}
