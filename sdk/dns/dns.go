// Package dns asks DNS servers for agents: with a cache, with one question on the wire for many askers, and
// with answers that tell "there is none" from "nobody could say".
package dns

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/miekg/dns"
)

// ErrUnavailable is wrapped when no server gave a usable answer: the caller does not know, and must not take it
// for "there is none".
var ErrUnavailable = errors.New("DNS unavailable")

// Options of a Resolver. Zero fields have the default in parentheses.
type Options struct {
	Servers  []string      // "127.0.0.1:53", asked in turn (those of /etc/resolv.conf)
	Timeout  time.Duration // for one question, all servers together (5 s)
	MaxTTL   time.Duration // how long an answer is kept at most (1 h)
	MinTTL   time.Duration // and at least (1 s)
	MaxCache int           // answers kept (10,000)
}

// Resolver is safe for concurrent use.
type Resolver struct {
	o   Options
	udp dns.Client
	tcp dns.Client

	mu    sync.Mutex
	cache map[question]*entry
}

type question struct {
	name  string
	qtype uint16
}

// entry is an answer, or one that is being asked for while done is open.
type entry struct {
	done    chan struct{}
	records []dns.RR
	err     error
	until   time.Time
}

// New makes a resolver.
func New(o Options) (*Resolver, error) {
	if len(o.Servers) == 0 {
		conf, err := dns.ClientConfigFromFile("/etc/resolv.conf")
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return nil, fmt.Errorf("reading the system's resolvers: %w", err)
		}
		if err == nil {
			for _, s := range conf.Servers {
				o.Servers = append(o.Servers, net.JoinHostPort(s, conf.Port))
			}
		}
	}
	o.Timeout = orDefault(o.Timeout, 5*time.Second)
	o.MaxTTL = orDefault(o.MaxTTL, time.Hour)
	o.MinTTL = orDefault(o.MinTTL, time.Second)
	o.MaxCache = orDefault(o.MaxCache, 10000)
	return &Resolver{o: o, udp: dns.Client{UDPSize: 1232}, tcp: dns.Client{Net: "tcp"}, cache: map[question]*entry{}}, nil
}

func orDefault[T comparable](v, def T) T {
	var zero T
	if v == zero {
		return def
	}
	return v
}

// A asks for the IPv4 addresses of name. No addresses and no error: there are none.
func (r *Resolver) A(ctx context.Context, name string) ([]netip.Addr, error) {
	return r.addrs(ctx, name, dns.TypeA)
}

// AAAA asks for the IPv6 addresses of name.
func (r *Resolver) AAAA(ctx context.Context, name string) ([]netip.Addr, error) {
	return r.addrs(ctx, name, dns.TypeAAAA)
}

func (r *Resolver) addrs(ctx context.Context, name string, qtype uint16) ([]netip.Addr, error) {
	rrs, err := r.ask(ctx, name, qtype)
	var out []netip.Addr
	for _, rr := range rrs {
		var ip net.IP
		switch rr := rr.(type) {
		case *dns.A:
			ip = rr.A
		case *dns.AAAA:
			ip = rr.AAAA
		}
		if a, ok := netip.AddrFromSlice(ip); ok {
			out = append(out, a.Unmap())
		}
	}
	return out, err
}

// TXT asks for the texts of name, the strings of each record joined.
func (r *Resolver) TXT(ctx context.Context, name string) ([]string, error) {
	rrs, err := r.ask(ctx, name, dns.TypeTXT)
	var out []string
	for _, rr := range rrs {
		if t, ok := rr.(*dns.TXT); ok {
			out = append(out, octets(strings.Join(t.Txt, "")))
		}
	}
	return out, err
}

// octets of a text, which the DNS library holds with escapes: \" and \195.
func octets(text string) string {
	if !strings.Contains(text, `\`) {
		return text
	}
	var b strings.Builder
	for i := 0; i < len(text); i++ {
		if text[i] != '\\' || i+1 == len(text) {
			b.WriteByte(text[i])
			continue
		}
		i++
		if i+3 <= len(text) {
			if n, err := strconv.ParseUint(text[i:i+3], 10, 8); err == nil {
				b.WriteByte(byte(n))
				i += 2
				continue
			}
		}
		b.WriteByte(text[i])
	}
	return b.String()
}

// escaped is a name as the DNS library writes it: so that it is found again in the answer.
func escaped(name string) string {
	if !strings.ContainsAny(name, special) {
		return name
	}
	var b strings.Builder
	for i := range len(name) {
		if strings.IndexByte(special, name[i]) >= 0 && (i == 0 || name[i-1] != '\\') {
			b.WriteByte('\\')
		}
		b.WriteByte(name[i])
	}
	return b.String()
}

// special characters of a name.
const special = " '@;()\""

// MX asks for the mail exchangers of name, in the order of their preference.
func (r *Resolver) MX(ctx context.Context, name string) ([]net.MX, error) {
	rrs, err := r.ask(ctx, name, dns.TypeMX)
	var out []net.MX
	for _, rr := range rrs {
		if m, ok := rr.(*dns.MX); ok {
			out = append(out, net.MX{Host: strings.TrimSuffix(m.Mx, "."), Pref: m.Preference})
		}
	}
	slices.SortStableFunc(out, func(a, b net.MX) int { return int(a.Pref) - int(b.Pref) })
	return out, err
}

// PTR asks for the names of an address.
func (r *Resolver) PTR(ctx context.Context, ip netip.Addr) ([]string, error) {
	name, err := dns.ReverseAddr(ip.String())
	if err != nil {
		return nil, fmt.Errorf("reverse name of %s: %w", ip, err)
	}
	rrs, err := r.ask(ctx, name, dns.TypePTR)
	var out []string
	for _, rr := range rrs {
		if p, ok := rr.(*dns.PTR); ok {
			out = append(out, strings.TrimSuffix(p.Ptr, "."))
		}
	}
	return out, err
}

// ask answers from the cache, joins a question that is under way, or asks the servers.
func (r *Resolver) ask(ctx context.Context, name string, qtype uint16) ([]dns.RR, error) {
	q := question{strings.ToLower(dns.Fqdn(escaped(name))), qtype}
	r.mu.Lock()
	e := r.cache[q]
	if e != nil && expired(e) {
		e = nil
	}
	if e == nil {
		e = &entry{done: make(chan struct{})}
		r.makeRoom()
		r.cache[q] = e
		// The question is asked for all who wait, so it does not end with the one who came first.
		go r.fetch(q, e)
	}
	r.mu.Unlock()
	select {
	case <-e.done:
		return e.records, e.err
	case <-ctx.Done():
		return nil, fmt.Errorf("%w: %s: %w", ErrUnavailable, name, ctx.Err())
	}
}

func expired(e *entry) bool {
	select {
	case <-e.done:
		return time.Now().After(e.until)
	default:
		return false
	}
}

// makeRoom drops some answers when the cache is full: old ones first, then any.
func (r *Resolver) makeRoom() {
	if len(r.cache) < r.o.MaxCache {
		return
	}
	for q, e := range r.cache {
		if expired(e) {
			delete(r.cache, q)
		}
	}
	for q := range r.cache {
		if len(r.cache) < r.o.MaxCache*9/10 {
			return
		}
		delete(r.cache, q)
	}
}

func (r *Resolver) fetch(q question, e *entry) {
	ctx, cancel := context.WithTimeout(context.Background(), r.o.Timeout)
	defer cancel()
	answer, err := r.exchange(ctx, q)
	ttl := r.o.MinTTL
	if err == nil {
		e.records, ttl = answers(answer, q), r.ttl(answer)
	}
	e.err, e.until = err, time.Now().Add(ttl)
	close(e.done)
}

// exchange asks the servers in turn until one gives a usable answer.
func (r *Resolver) exchange(ctx context.Context, q question) (*dns.Msg, error) {
	if _, ok := dns.IsDomainName(q.name); !ok {
		return nil, fmt.Errorf("%w: %q is not a domain name", ErrUnavailable, q.name)
	}
	m := new(dns.Msg).SetQuestion(q.name, q.qtype)
	m.SetEdns0(1232, false)
	err := fmt.Errorf("%w: no servers", ErrUnavailable)
	for i, server := range r.o.Servers {
		// What is left of the time is shared by the servers that are left.
		deadline, _ := ctx.Deadline()
		share, cancel := context.WithTimeout(ctx, time.Until(deadline)/time.Duration(len(r.o.Servers)-i))
		var answer *dns.Msg
		answer, err = r.exchangeOne(share, m, server)
		cancel()
		if err == nil {
			return answer, nil
		}
	}
	return nil, err
}

func (r *Resolver) exchangeOne(ctx context.Context, m *dns.Msg, server string) (*dns.Msg, error) {
	answer, _, err := r.udp.ExchangeContext(ctx, m, server)
	if err == nil && answer.Truncated {
		answer, _, err = r.tcp.ExchangeContext(ctx, m, server)
	}
	switch {
	case err != nil:
		return nil, fmt.Errorf("%w: %s: %w", ErrUnavailable, server, err)
	case answer.Rcode != dns.RcodeSuccess && answer.Rcode != dns.RcodeNameError:
		return nil, fmt.Errorf("%w: %s answers %s", ErrUnavailable, server, dns.RcodeToString[answer.Rcode])
	}
	return answer, nil
}

// answers picks the records asked for, following CNAMEs inside the answer.
func answers(m *dns.Msg, q question) []dns.RR {
	name := q.name
	for range 8 {
		var out []dns.RR
		next := ""
		for _, rr := range m.Answer {
			if !strings.EqualFold(rr.Header().Name, name) {
				continue
			}
			if rr.Header().Rrtype == q.qtype {
				out = append(out, rr)
			} else if c, ok := rr.(*dns.CNAME); ok {
				next = c.Target
			}
		}
		if out != nil || next == "" {
			return out
		}
		name = next
	}
	return nil
}

// ttl is how long an answer may be kept; for "there is none" the SOA tells (RFC 2308 section 5).
func (r *Resolver) ttl(m *dns.Msg) time.Duration {
	ttl := r.o.MaxTTL
	for _, rr := range m.Answer {
		ttl = min(ttl, time.Duration(rr.Header().Ttl)*time.Second)
	}
	if len(m.Answer) == 0 {
		ttl = min(ttl, time.Minute)
		for _, rr := range m.Ns {
			if soa, ok := rr.(*dns.SOA); ok {
				ttl = min(r.o.MaxTTL, time.Duration(min(soa.Minttl, soa.Hdr.Ttl))*time.Second)
			}
		}
	}
	return max(ttl, r.o.MinTTL)
}

// ReverseName writes an address as DNS lists are asked for it: "7.2.0.192." and, for IPv6, its 32 nibbles
// reversed (RFC 5782 section 2).
func ReverseName(ip netip.Addr) string {
	name, err := dns.ReverseAddr(ip.Unmap().WithZone("").String())
	if err != nil {
		return ""
	}
	name = strings.TrimSuffix(name, "in-addr.arpa.")
	return strings.TrimSuffix(name, "ip6.arpa.")
}
