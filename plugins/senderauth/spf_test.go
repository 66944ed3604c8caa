package main

import (
	"errors"
	"io"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/miekg/dns"
	"gopkg.in/yaml.v3"

	"github.com/posternmail/postern/internal/corpora"
	"github.com/posternmail/postern/sdk/address"
)

func openCorpus(t *testing.T, path ...string) *os.File {
	t.Helper()
	f, err := os.Open(corpora.Path(t, path...))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

// spfScenario of the openspf.org suites.
type spfScenario struct {
	Description string `yaml:"description"`
	Tests       map[string]struct {
		Helo   string    `yaml:"helo"`
		Host   string    `yaml:"host"`
		Mail   string    `yaml:"mailfrom"`
		Result yaml.Node `yaml:"result"`
		Why    string    `yaml:"explanation"`
	} `yaml:"tests"`
	Zone map[string][]yaml.Node `yaml:"zonedata"`
}

// zone of a scenario. A record of the type SPF stands for one of TXT, unless TXT records are given.
func (s *spfScenario) zone(t *testing.T) *zone {
	t.Helper()
	z := newZone(t)
	for name, entries := range s.Zone {
		key := zoneKey(name)
		z.records[key] = []dns.RR{}
		hasTXT := slices.ContainsFunc(entries, func(n yaml.Node) bool {
			return n.Kind == yaml.MappingNode && n.Content[0].Value == "TXT"
		})
		for _, n := range entries {
			if n.Kind != yaml.MappingNode {
				z.silent[key] = true // TIMEOUT
				continue
			}
			z.addSuiteRecord(t, name, n.Content[0].Value, n.Content[1], hasTXT)
		}
	}
	return z
}

func (z *zone) addSuiteRecord(t *testing.T, name, kind string, value *yaml.Node, hasTXT bool) {
	t.Helper()
	switch {
	case kind == "TXT" || kind == "SPF" && !hasTXT:
		texts := []string{value.Value}
		if value.Kind == yaml.SequenceNode {
			texts = nil
			for _, n := range value.Content {
				texts = append(texts, n.Value)
			}
		}
		if value.Value == "NONE" || value.Value == "TIMEOUT" {
			z.silent[zoneKey(name)] = value.Value == "TIMEOUT"
			return
		}
		z.txt(name, strings.Join(texts, ""))
	case kind == "SPF":
	case kind == "MX":
		z.put(t, name, &dns.MX{Preference: 10, Mx: dns.Fqdn(value.Content[1].Value)}, dns.TypeMX)
	case value.Value == "TIMEOUT":
		z.silent[zoneKey(name)] = true
	case kind == "A":
		z.put(t, name, &dns.A{A: netip.MustParseAddr(value.Value).AsSlice()}, dns.TypeA)
	case kind == "AAAA":
		z.put(t, name, &dns.AAAA{AAAA: netip.MustParseAddr(value.Value).AsSlice()}, dns.TypeAAAA)
	case kind == "PTR":
		z.put(t, name, &dns.PTR{Ptr: dns.Fqdn(value.Value)}, dns.TypePTR)
	case kind == "CNAME":
		z.put(t, name, &dns.CNAME{Target: dns.Fqdn(value.Value)}, dns.TypeCNAME)
	default:
		t.Fatalf("a record of type %s", kind)
	}
}

func (z *zone) put(t *testing.T, name string, rr dns.RR, qtype uint16) {
	t.Helper()
	*rr.Header() = dns.RR_Header{Name: dns.Fqdn(name), Rrtype: qtype, Class: dns.ClassINET, Ttl: 60}
	z.records[zoneKey(name)] = append(z.records[zoneKey(name)], rr)
}

func TestSPFSuite(t *testing.T) {
	for _, suite := range []struct {
		file  string
		tests int
	}{{"rfc7208-tests.yml", 203}, {"rfc4408-tests.yml", 191}} {
		t.Run(suite.file, func(t *testing.T) {
			decoder := yaml.NewDecoder(openCorpus(t, "auth-spf", "pyspf", suite.file))
			count, agree := 0, 0
			for {
				var s spfScenario
				if err := decoder.Decode(&s); errors.Is(err, io.EOF) {
					break
				} else if err != nil {
					t.Fatal(err)
				}
				n, ok := s.run(t)
				count, agree = count+n, agree+ok
			}
			if count != suite.tests {
				t.Errorf("%d tests, expected %d", count, suite.tests)
			}
			t.Logf("%d of %d agree", agree, count)
		})
	}
}

// run the tests of a scenario.
func (s *spfScenario) run(t *testing.T) (count, agree int) {
	t.Helper()
	a := &Auth{resolver: s.zone(t).resolver(t)}
	for name, test := range s.Tests {
		count++
		got := a.checkSPF(t.Context(), client{ip: netip.MustParseAddr(test.Host), helo: test.Helo}, mailboxOf(test.Mail))
		want := []string{test.Result.Value}
		if test.Result.Kind == yaml.SequenceNode {
			want = nil
			for _, n := range test.Result.Content {
				want = append(want, n.Value)
			}
		}
		if test.Why != "" && test.Why != "DEFAULT" && !strings.EqualFold(got.explanation, test.Why) {
			t.Errorf("%s, %s: explains %q, expected %q", s.Description, name, got.explanation, test.Why)
		}
		if slices.Contains(want, got.result) {
			agree++
		} else {
			t.Errorf("%s, %s: %s (%s), expected %s", s.Description, name, got.result, got.reason, want)
		}
	}
	return count, agree
}

// mailboxOf a sender of the suites, which need not parse.
func mailboxOf(text string) address.Mailbox {
	if text == "" {
		return address.Mailbox{}
	}
	at := strings.LastIndexByte(text, '@')
	if at < 0 {
		return address.Mailbox{Local: "postmaster", Domain: text}
	}
	return address.Mailbox{Local: strings.Trim(text[:at], `"`), Domain: text[at+1:]}
}
