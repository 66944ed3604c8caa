package dns

import (
	"testing"
	"time"

	"github.com/miekg/dns"
)

// FuzzAnswer: whatever a server says, the records that are taken are of the type asked for, and kept no longer than is allowed.
func FuzzAnswer(f *testing.F) {
	for _, text := range []string{"x.example. 60 IN TXT \"a\\\" \\195\"", "x.example. 60 IN CNAME x.example.", "x.example. 4294967295 IN A 192.0.2.1"} {
		rr, err := dns.NewRR(text)
		if err != nil {
			f.Fatal(err)
		}
		m := new(dns.Msg).SetQuestion("x.example.", dns.TypeTXT)
		m.Answer = []dns.RR{rr}
		packed, err := m.Pack()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(packed)
	}
	r, err := New(Options{Servers: []string{"127.0.0.1:53"}, MaxTTL: time.Hour})
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, packed []byte) {
		m := new(dns.Msg)
		if m.Unpack(packed) != nil {
			return
		}
		for _, qtype := range []uint16{dns.TypeA, dns.TypeTXT, dns.TypeMX} {
			for _, rr := range answers(m, question{"x.example.", qtype}) {
				if rr.Header().Rrtype != qtype {
					t.Errorf("%v for a question of type %d", rr, qtype)
				}
				if text, ok := rr.(*dns.TXT); ok {
					for _, s := range text.Txt {
						octets(s)
					}
				}
			}
		}
		if ttl := r.ttl(m); ttl < 0 || ttl > time.Hour {
			t.Errorf("kept for %v", ttl)
		}
	})
}

// FuzzName: a name from a stranger is asked for as it is, or not at all.
func FuzzName(f *testing.F) {
	f.Add("a b@c.example")
	f.Add(`a\032b."x`)
	f.Fuzz(func(t *testing.T, name string) {
		fqdn := dns.Fqdn(escaped(name))
		if _, ok := dns.IsDomainName(fqdn); !ok {
			return
		}
		packed, err := new(dns.Msg).SetQuestion(fqdn, dns.TypeA).Pack()
		if err != nil {
			return
		}
		if m := new(dns.Msg); m.Unpack(packed) != nil || len(m.Question) != 1 {
			t.Errorf("%q is asked for as %q", name, packed)
		}
	})
}
