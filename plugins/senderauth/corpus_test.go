package main

import (
	"context"
	"io"
	"net/netip"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/posternmail/postern/sdk/address"
	"github.com/posternmail/postern/sdk/dkim"
)

// robotCase is a test of the corpus: a message, how it came, and the symbols that another implementation gave it.
type robotCase struct {
	name, file, ip, from string
	symbols              []string
}

var (
	robotMessage = regexp.MustCompile(`messages/dmarc/(\S+)`)
	robotArg     = regexp.MustCompile(`(IP|From)=(\S+)`)
	robotSymbol  = regexp.MustCompile(`^\s+Expect Symbol(?: With Option)?\s+(\S+)`)
	fakeRecord   = regexp.MustCompile(`name = "([^"]+)",\s*type = "?(\w+)"?[;,]\s*(?:rcode = ['"](\w+)['"]|replies = \[([^\]]*)\])`)
	fakeReply    = regexp.MustCompile(`"([^"]*)"`)
)

func readCorpus(t *testing.T, path ...string) string {
	t.Helper()
	octets, err := io.ReadAll(openCorpus(t, path...))
	if err != nil {
		t.Fatal(err)
	}
	return string(octets)
}

// robotCases of a file whose message is in the corpus.
func robotCases(text string) (cases []robotCase) {
	var c robotCase
	end := func() {
		if c.file != "" && len(c.symbols) > 0 {
			cases = append(cases, c)
		}
	}
	_, text, _ = strings.Cut(text, "*** Test Cases ***")
	for line := range strings.Lines(text) {
		if line[0] != ' ' && strings.TrimSpace(line) != "" {
			end()
			c = robotCase{name: strings.TrimSpace(line)}
			continue
		}
		if m := robotMessage.FindStringSubmatch(line); m != nil {
			c.file = m[1]
		}
		for _, m := range robotArg.FindAllStringSubmatch(line, -1) {
			if m[1] == "IP" {
				c.ip = m[2]
			} else {
				c.from = m[2]
			}
		}
		if m := robotSymbol.FindStringSubmatch(line); m != nil {
			c.symbols = append(c.symbols, m[1])
		}
	}
	end()
	return cases
}

// robotZone of the fake DNS in the corpus's configuration.
func robotZone(t *testing.T, text string) *zone {
	t.Helper()
	z := newZone(t)
	for _, m := range fakeRecord.FindAllStringSubmatch(text, -1) {
		name, kind, rcode := m[1], strings.ToUpper(m[2]), m[3]
		switch {
		case rcode == "timeout":
			z.silent[zoneKey(name)] = true
		case rcode == "norec":
			z.records[zoneKey(name)] = []dns.RR{}
		}
		for _, reply := range fakeReply.FindAllStringSubmatch(m[4], -1) {
			switch kind {
			case "TXT":
				z.txt(name, reply[1])
			case "A", "AAAA", "MX":
				z.add(t, dns.Fqdn(name)+" 60 IN "+kind+" "+reply[1])
			}
		}
	}
	return z
}

// meaning of the symbols that the corpus expects.
var meaning = map[string]string{
	"DMARC_POLICY_ALLOW": "pass", "DMARC_POLICY_SOFTFAIL": "fail none", "DMARC_POLICY_REJECT": "fail reject",
	"DMARC_POLICY_QUARANTINE": "fail quarantine", "DMARC_DNSFAIL": "temperror", "DMARC_NA": "none",
	"R_DKIM_PERMFAIL": "permerror", "R_DKIM_TEMPFAIL": "temperror", "R_DKIM_ALLOW": "pass", "R_DKIM_REJECT": "fail",
}

// disagreements with the corpus, and why.
var disagreements = map[string]string{
	"DKIM Ignore Unknown Tags": "the key of taugh.com was in DNS, and is not in the corpus; so nothing can be said of the signature",
}

// TestDMARCCorpus compares what is found in mail that others wrote with what another implementation finds.
func TestDMARCCorpus(t *testing.T) {
	base := []string{"auth-dmarc", "rspamd"}
	records := robotZone(t, readCorpus(t, append(base, "configs", "merged-local.conf")...))
	a := &Auth{resolver: records.resolver(t), host: "edge.example"}
	count := 0
	for _, c := range append(robotCases(readCorpus(t, append(base, "cases", "001_merged", "115_dmarc.robot")...)),
		robotCases(readCorpus(t, append(base, "cases", "116_dkim.robot")...))...) {
		for _, symbol := range c.symbols {
			want, known := meaning[symbol]
			if !known {
				t.Errorf("%s: %s means nothing", c.name, symbol)
				continue
			}
			count++
			got := c.judged(t, a, strings.HasPrefix(symbol, "R_DKIM"))
			switch why, explained := disagreements[c.name]; {
			case got == want && explained:
				t.Errorf("%s: agrees, though listed as a disagreement", c.name)
			case got != want && !explained:
				t.Errorf("%s: %s is %q, expected %q", c.name, c.file, got, want)
			case got != want:
				t.Logf("%s: %q, the corpus has %q: %s", c.name, got, want, why)
			}
		}
	}
	if count < 20 {
		t.Errorf("only %d cases", count)
	}
	t.Logf("%d cases, %d explained disagreements", count, len(disagreements))
}

// judged is the result of DKIM, or that of DMARC with the policy to apply.
func (c *robotCase) judged(t *testing.T, a *Auth, signatures bool) string {
	t.Helper()
	text := strings.ReplaceAll(readCorpus(t, "auth-dmarc", "rspamd", "messages", "dmarc", c.file), "\r\n", "\n")
	header, body, _ := strings.Cut(strings.ReplaceAll(text, "\n", "\r\n"), "\r\n\r\n")
	message := dkim.NewMessage([]byte(header+"\r\n"), strings.NewReader(body), int64(len(body)))
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	verifier := &dkim.Verifier{Lookup: a.resolver.TXT, Now: time.Date(2022, 8, 1, 0, 0, 0, 0, time.UTC)}
	found := verifier.Verify(ctx, message)
	if signatures {
		f := findings{signatures: found}
		return string(f.signature().Result)
	}
	from := client{helo: "client.example"}
	from.ip, _ = netip.ParseAddr(c.ip)
	sender, _ := address.Parse(c.from)
	var fields []string
	for _, field := range message.Fields("From") {
		_, value, _ := strings.Cut(field, ":")
		fields = append(fields, value)
	}
	d := a.checkDMARC(ctx, fields, a.checkSPF(ctx, from, sender), found, "id")
	if d.result == resultFail {
		return "fail " + d.policy
	}
	return d.result
}
