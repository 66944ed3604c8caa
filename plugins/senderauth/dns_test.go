package main

import (
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"

	sdkdns "github.com/posternmail/postern/sdk/dns"
)

// zone of a fake DNS server: records in the form of a zone file by name and type; silent names are answered with
// SERVFAIL.
type zone struct {
	mu      sync.Mutex
	records map[string][]dns.RR // by name, lower case
	silent  map[string]bool
}

func newZone(t testing.TB, lines ...string) *zone {
	t.Helper()
	z := &zone{records: map[string][]dns.RR{}, silent: map[string]bool{}}
	for _, line := range lines {
		z.add(t, line)
	}
	return z
}

func (z *zone) add(t testing.TB, line string) {
	t.Helper()
	rr, err := dns.NewRR(line)
	if err != nil {
		t.Fatalf("%s: %v", line, err)
	}
	name := strings.ToLower(rr.Header().Name)
	z.mu.Lock()
	defer z.mu.Unlock()
	z.records[name] = append(z.records[name], rr)
}

// txt adds a text of any length.
func (z *zone) txt(name, text string) {
	rr := &dns.TXT{Hdr: dns.RR_Header{Name: dns.Fqdn(name), Rrtype: dns.TypeTXT, Class: dns.ClassINET, Ttl: 60}}
	for len(text) > 255 {
		rr.Txt, text = append(rr.Txt, text[:255]), text[255:]
	}
	rr.Txt = append(rr.Txt, text)
	z.records[zoneKey(name)] = append(z.records[zoneKey(name)], rr)
}

// zoneKey is a name as the server sees it in a question.
func zoneKey(name string) string {
	return strings.ToLower(dns.Fqdn(strings.ReplaceAll(name, " ", `\ `)))
}

// serve on loopback and answer with the address.
func (z *zone) serve(t testing.TB) string {
	t.Helper()
	udp, tcp := listen(t)
	for _, s := range []*dns.Server{{PacketConn: udp, Handler: z}, {Listener: tcp, Handler: z}} {
		started := make(chan struct{})
		s.NotifyStartedFunc = func() { close(started) }
		go s.ActivateAndServe()
		<-started
		t.Cleanup(func() { s.Shutdown() })
	}
	return udp.LocalAddr().String()
}

// listen on a port that is free for both.
func listen(t testing.TB) (net.PacketConn, net.Listener) {
	t.Helper()
	var last error
	for range 20 {
		tcp, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		udp, err := net.ListenPacket("udp", tcp.Addr().String())
		if err == nil {
			return udp, tcp
		}
		last = err
		tcp.Close()
	}
	t.Fatal(last)
	return nil, nil
}

// resolver that asks the zone.
func (z *zone) resolver(t testing.TB) *sdkdns.Resolver {
	t.Helper()
	r, err := sdkdns.New(sdkdns.Options{Servers: []string{z.serve(t)}, Timeout: 10 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// ServeDNS implements dns.Handler.
func (z *zone) ServeDNS(w dns.ResponseWriter, q *dns.Msg) {
	z.mu.Lock()
	defer z.mu.Unlock()
	m := new(dns.Msg).SetReply(q)
	name := strings.ToLower(q.Question[0].Name)
	m.Answer = z.answer(name, q.Question[0].Qtype, 5)
	switch {
	case len(m.Answer) > 0:
	case z.silent[name]:
		m.Rcode = dns.RcodeServerFailure
	case z.records[name] == nil:
		m.Rcode = dns.RcodeNameError
	}
	if _, isUDP := w.RemoteAddr().(*net.UDPAddr); isUDP {
		m.Truncate(1232)
	}
	w.WriteMsg(m)
}

// answer follows aliases, as a resolver does.
func (z *zone) answer(name string, qtype uint16, depth int) []dns.RR {
	var out []dns.RR
	for _, rr := range z.records[name] {
		if rr.Header().Rrtype == qtype {
			out = append(out, rr)
		} else if alias, ok := rr.(*dns.CNAME); ok && depth > 0 {
			out = append(append(out, rr), z.answer(strings.ToLower(alias.Target), qtype, depth-1)...)
		}
	}
	return out
}
