package delivery

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/net/idna"

	"github.com/posternmail/postern/host/internal/config"
)

// Bounds of the cache of answers.
const (
	maxCached   = 10_000
	minTTL      = 5 * time.Second
	maxTTL      = time.Hour
	negativeTTL = time.Minute
)

// errNoName: the name does not exist (NXDOMAIN). Any other error of a lookup is a temporary one.
var errNoName = errors.New("no such domain")

// resolver asks DNS for the hosts of a domain.
type resolver struct {
	servers []string
	system  bool // no servers are configured: addresses come from the system, with its hosts file
	udp     dns.Client
	tcp     dns.Client

	mu    sync.Mutex
	cache map[question]answer
}

type question struct {
	name  string
	qtype uint16
}

type answer struct {
	records []dns.RR
	missing bool // NXDOMAIN
	until   time.Time
}

func newResolver(c config.DNS) *resolver {
	timeout := c.Timeout
	if timeout <= 0 {
		timeout = 5 * time.Second
	}
	r := &resolver{servers: c.Resolvers, cache: map[question]answer{}}
	r.udp = dns.Client{Net: "udp", Timeout: timeout, UDPSize: 1232}
	r.tcp = dns.Client{Net: "tcp", Timeout: timeout}
	if len(r.servers) == 0 {
		r.system = true
		r.servers = systemServers()
	}
	return r
}

func systemServers() []string {
	conf, err := dns.ClientConfigFromFile("/etc/resolv.conf")
	if err != nil || len(conf.Servers) == 0 {
		return []string{"127.0.0.1:53"}
	}
	var out []string
	for _, s := range conf.Servers {
		out = append(out, net.JoinHostPort(s, conf.Port))
	}
	return out
}

// mx looks up the MX records of domain. None is no error.
func (r *resolver) mx(ctx context.Context, domain string) ([]*dns.MX, error) {
	records, err := r.lookup(ctx, domain, dns.TypeMX)
	if err != nil {
		return nil, err
	}
	var out []*dns.MX
	for _, rr := range records {
		if mx, ok := rr.(*dns.MX); ok {
			out = append(out, mx)
		}
	}
	return out, nil
}

// addresses of host, IPv4 first: a broken IPv6 path costs a timeout, a broken IPv4 path is rare.
func (r *resolver) addresses(ctx context.Context, host string) ([]netip.Addr, error) {
	host = strings.TrimSuffix(host, ".")
	if ip, err := netip.ParseAddr(host); err == nil {
		return []netip.Addr{ip.Unmap()}, nil
	}
	if strings.EqualFold(host, "localhost") { // RFC 6761 section 6.3
		return []netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 1}), netip.IPv6Loopback()}, nil
	}
	if r.system {
		return systemAddresses(ctx, host)
	}
	v4, err4 := r.lookup(ctx, host, dns.TypeA)
	v6, err6 := r.lookup(ctx, host, dns.TypeAAAA)
	var out []netip.Addr
	for _, rr := range append(v4[:len(v4):len(v4)], v6...) {
		switch rr := rr.(type) {
		case *dns.A:
			out = appendIP(out, rr.A)
		case *dns.AAAA:
			out = appendIP(out, rr.AAAA)
		}
	}
	if len(out) > 0 {
		return out, nil
	}
	if err4 != nil {
		return nil, err4
	}
	return nil, err6
}

func appendIP(list []netip.Addr, ip net.IP) []netip.Addr {
	if addr, ok := netip.AddrFromSlice(ip); ok {
		return append(list, addr.Unmap())
	}
	return list
}

func systemAddresses(ctx context.Context, host string) ([]netip.Addr, error) {
	list, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
	var missing *net.DNSError
	if errors.As(err, &missing) && missing.IsNotFound {
		return nil, errNoName
	}
	var v4, v6 []netip.Addr
	for _, ip := range list {
		if ip = ip.Unmap(); ip.Is4() {
			v4 = append(v4, ip)
		} else {
			v6 = append(v6, ip)
		}
	}
	return append(v4, v6...), err
}

// lookup answers from the cache or asks.
func (r *resolver) lookup(ctx context.Context, name string, qtype uint16) ([]dns.RR, error) {
	ascii, err := idna.Lookup.ToASCII(strings.TrimSuffix(name, "."))
	if err != nil {
		ascii = strings.ToLower(name) // an underscore, say: let DNS judge
	}
	q := question{dns.Fqdn(strings.ToLower(ascii)), qtype}
	if _, ok := dns.IsDomainName(q.name); !ok {
		return nil, errNoName
	}
	a, ok := r.cached(q)
	if !ok {
		if a, err = r.ask(ctx, q); err != nil {
			return nil, err
		}
		r.keep(q, a)
	}
	if a.missing {
		return nil, errNoName
	}
	return a.records, nil
}

func (r *resolver) cached(q question) (answer, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	a, ok := r.cache[q]
	return a, ok && time.Now().Before(a.until)
}

func (r *resolver) keep(q question, a answer) {
	ttl := negativeTTL
	for i, rr := range a.records {
		if t := time.Duration(rr.Header().Ttl) * time.Second; i == 0 || t < ttl {
			ttl = t
		}
	}
	a.until = time.Now().Add(min(max(ttl, minTTL), maxTTL))
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.cache) >= maxCached {
		clear(r.cache)
	}
	r.cache[q] = a
}

// ask the servers in turn, twice. An answer that says neither yes nor no is worth the next server.
func (r *resolver) ask(ctx context.Context, q question) (answer, error) {
	m := new(dns.Msg)
	m.SetQuestion(q.name, q.qtype)
	m.SetEdns0(1232, false)
	var last error
	for range 2 {
		for _, server := range r.servers {
			in, err := r.exchange(ctx, m, server)
			switch {
			case err != nil:
				last = fmt.Errorf("asking %s: %w", server, err)
			case in.Rcode == dns.RcodeNameError:
				return answer{missing: true}, nil
			case in.Rcode == dns.RcodeSuccess:
				return answer{records: in.Answer}, nil
			default:
				last = fmt.Errorf("%s answered %s", server, dns.RcodeToString[in.Rcode])
			}
			if ctx.Err() != nil {
				return answer{}, ctx.Err()
			}
		}
	}
	return answer{}, last
}

// exchange asks over UDP, and over TCP when the answer was cut off.
func (r *resolver) exchange(ctx context.Context, m *dns.Msg, server string) (*dns.Msg, error) {
	in, _, err := r.udp.ExchangeContext(ctx, m, server)
	if err == nil && in.Truncated {
		in, _, err = r.tcp.ExchangeContext(ctx, m, server)
	}
	return in, err
}
