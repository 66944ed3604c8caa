package test

import (
	"bytes"
	"compress/gzip"
	"crypto"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/posternmail/postern/sdk/arc"
	"github.com/posternmail/postern/sdk/dkim"
	sdkdns "github.com/posternmail/postern/sdk/dns"
	"github.com/posternmail/postern/test/rig"
)

// passage is a message on its way through a host with one agent, and all that can be seen of it: the reply, what the
// ledger tells of the agent, what the next hop received.
type passage struct {
	name    string
	ip      string // of the client; an own server's may send anywhere
	from    string
	to      []string
	params  string // of MAIL, such as " SMTPUTF8"
	content string
	rcpt    string // reply to the last RCPT, if it is no 250
	reply   string // to the content; accepted if empty

	event   string // at which the agent spoke; "" is none
	verdict string // continue if empty
	reason  string
	data    string
	stamps  []string // that it left

	hop  []string // recipients that the next hop received it for; nil: nothing came
	mail string   // its sender there, if it is not from
	has  []string // what stands in what came; "!" in front: what does not
}

// ownServer is the address of one of the host's own servers.
const ownServer = "10.0.0.5"

// pass sends it and looks at everything.
func (p *passage) pass(t *testing.T, h *rig.Host, sink *rig.Sink, agent string) {
	t.Helper()
	before := len(sink.Messages())
	c := from(h, p.ip)
	c.Do("MAIL FROM:<"+p.from+">"+p.params, okSender)
	reply := ""
	for i, r := range p.to {
		c.Send("RCPT TO:<%s>", r)
		reply = c.Reply()
		if last := i == len(p.to)-1; last && p.rcpt != "" {
			if masked(reply) != p.rcpt {
				t.Errorf("RCPT got %s, want %s", reply, p.rcpt)
			}
			p.told(t, h, agent, idOf(t, reply))
			return
		}
		if reply != okRcpt {
			t.Fatalf("RCPT got %s", reply)
		}
	}
	reply = c.Data(p.content)
	want := p.reply
	if want == "" {
		want = okQueued
	}
	if masked(reply) != want {
		t.Errorf("got %s, want %s", reply, want)
		return
	}
	c.Do("QUIT", "221")
	p.told(t, h, agent, idOf(t, reply))
	if p.hop != nil {
		p.arrived(t, h, sink, before)
	}
}

// told looks into the ledger, and asks why.
func (p *passage) told(t *testing.T, h *rig.Host, agent, id string) {
	t.Helper()
	if p.event == "" {
		return
	}
	verdictWanted := p.verdict
	if verdictWanted == "" {
		verdictWanted = "continue"
	}
	var steps []verdict
	h.WaitFor(p.event+" of "+agent+" in the ledger", func() bool {
		steps = nil
		for _, r := range ledger(h, id) {
			steps = append(steps, r.steps(agent, p.event)...)
		}
		return len(steps) > 0
	})
	i := slices.IndexFunc(steps, func(v verdict) bool { return v.Verdict == verdictWanted && v.Reason == p.reason && v.Data == p.data })
	if i < 0 {
		t.Errorf("the ledger has %+v, want %s %s (%s)", steps, verdictWanted, p.reason, p.data)
		return
	}
	for _, stamp := range p.stamps {
		if !slices.Contains(steps[i].Stamps, stamp) {
			t.Errorf("no stamp %s in %v", stamp, steps[i].Stamps)
		}
	}
	if p.reason == "" {
		return
	}
	if why := h.MustPostern("why", id); !strings.Contains(why, p.reason) || !strings.Contains(why, p.data) {
		t.Errorf("why does not tell of %s (%s):\n%s", p.reason, p.data, why)
	}
}

// arrived looks at what the next hop received.
func (p *passage) arrived(t *testing.T, h *rig.Host, sink *rig.Sink, before int) {
	t.Helper()
	h.WaitFor("the message at the next hop", func() bool { return len(sink.Messages()) > before })
	got := sink.Messages()[before]
	if to := recipientsOf(got); !slices.Equal(to, p.hop) {
		t.Errorf("the next hop got it for %v, want %v", to, p.hop)
	}
	sender := p.mail
	if sender == "" {
		sender = p.from
	}
	if !strings.HasPrefix(got.From, "MAIL FROM:<"+sender+">") {
		t.Errorf("the next hop got %s, want %s", got.From, sender)
	}
	for _, want := range p.has {
		text, absent := strings.CutPrefix(want, "!")
		if strings.Contains(got.Content, text) == absent {
			t.Errorf("%q in what the next hop got: %v\n%s", text, absent, got.Content)
		}
	}
}

func recipientsOf(m rig.Received) (to []string) {
	for _, line := range m.To {
		to = append(to, line[strings.Index(line, "<")+1:strings.Index(line, ">")])
	}
	return to
}

// passAll passes one after the other, and sees that the next hop got nothing else.
func passAll(t *testing.T, h *rig.Host, sink *rig.Sink, agent string, all []passage) {
	t.Helper()
	want := len(sink.Messages()) + 1
	for _, p := range all {
		t.Run(p.name, func(t *testing.T) { p.pass(t, h, sink, agent) })
		if p.hop != nil {
			want++
		}
	}
	// The last one is delivered after all before it that could have been.
	last := passage{ip: ownServer, from: "last@sender.example", to: []string{"last@example.org"}, content: helloMessage, hop: []string{"last@example.org"}}
	last.pass(t, h, sink, agent)
	if got := len(sink.Messages()); got != want {
		t.Errorf("the next hop got %d messages, want %d", got, want)
	}
}

// zone is a DNS server. What it is not told does not exist; names below quiet.example are answered with SERVFAIL, and when
// it is dead all are.
type zone struct {
	addr    string
	mu      sync.Mutex
	records map[string][]dns.RR
	dead    bool
}

// startZone serves records in the form of a zone file.
func startZone(t *testing.T, lines ...string) *zone {
	t.Helper()
	z := &zone{records: map[string][]dns.RR{}}
	for _, line := range lines {
		rr, err := dns.NewRR(line)
		if err != nil {
			t.Fatalf("%s: %v", line, err)
		}
		z.records[rr.Header().Name] = append(z.records[rr.Header().Name], rr)
	}
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	z.addr = pc.LocalAddr().String()
	s := &dns.Server{PacketConn: pc, Handler: z}
	go func() { _ = s.ActivateAndServe() }()
	t.Cleanup(func() { _ = s.Shutdown() })
	return z
}

func (z *zone) die(dead bool) {
	z.mu.Lock()
	defer z.mu.Unlock()
	z.dead = dead
}

// key publishes the public half of a key.
func (z *zone) key(t *testing.T, name string, key crypto.Signer) {
	t.Helper()
	text, err := dkim.Record(key)
	if err != nil {
		t.Fatal(err)
	}
	rr := &dns.TXT{Hdr: dns.RR_Header{Name: dns.Fqdn(name), Rrtype: dns.TypeTXT, Class: dns.ClassINET, Ttl: 60}}
	for len(text) > 255 {
		rr.Txt, text = append(rr.Txt, text[:255]), text[255:]
	}
	rr.Txt = append(rr.Txt, text)
	z.mu.Lock()
	defer z.mu.Unlock()
	z.records[rr.Hdr.Name] = append(z.records[rr.Hdr.Name], rr)
}

// ServeDNS implements dns.Handler.
func (z *zone) ServeDNS(w dns.ResponseWriter, q *dns.Msg) {
	z.mu.Lock()
	defer z.mu.Unlock()
	m := new(dns.Msg).SetReply(q)
	name := strings.ToLower(q.Question[0].Name)
	switch {
	case z.dead || strings.HasSuffix(name, "quiet.example."):
		m.Rcode = dns.RcodeServerFailure
	case z.records[name] == nil:
		m.Rcode = dns.RcodeNameError
	}
	for _, rr := range z.records[name] {
		if m.Rcode == dns.RcodeSuccess && rr.Header().Rrtype == q.Question[0].Qtype {
			m.Answer = append(m.Answer, rr)
		}
	}
	_ = w.WriteMsg(m)
}

// verifier asks the zone for keys.
func (z *zone) verifier(t *testing.T) *dkim.Verifier {
	t.Helper()
	r, err := sdkdns.New(sdkdns.Options{Servers: []string{z.addr}})
	if err != nil {
		t.Fatal(err)
	}
	return &dkim.Verifier{Lookup: r.TXT, Now: time.Now()}
}

// edKey is a key for tests.
func edKey(seed byte) crypto.Signer {
	return ed25519.NewKeyFromSeed(bytes.Repeat([]byte{seed}, ed25519.SeedSize))
}

// signed by a key of x.example, as if it came from there.
func signed(t *testing.T, text string) string {
	t.Helper()
	s := dkim.Signer{Domain: "x.example", Selector: "s1", Key: edKey('x'), Headers: []string{"From", "Subject"}}
	value, err := s.Sign(messageOf(text), time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return "DKIM-Signature:" + value + "\r\n" + text
}

func messageOf(text string) *dkim.Message {
	header, body, _ := strings.Cut(text, "\r\n\r\n")
	return dkim.NewMessage([]byte(header), strings.NewReader(body), int64(len(body)))
}

// sealed by lists.example, with the results that it claims to have found.
func sealed(t *testing.T, text, results string) string {
	t.Helper()
	text = "Authentication-Results: lists.example; " + results + "\r\n" + text
	s := dkim.Signer{Domain: "lists.example", Selector: "arc", Key: edKey('l'), Headers: []string{"From", "Subject"}}
	set, err := arc.Seal(messageOf(text), &s, "lists.example", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return arc.SealField + ":" + set.Seal + "\r\n" + arc.MessageField + ":" + set.Message + "\r\n" + arc.ResultsField + ":" + set.Results + "\r\n" + text
}

func fromLine(address string) string {
	return "From: " + address + "\r\nSubject: hello\r\n\r\nhello\r\n"
}

func senderauth(z *zone, config string) string {
	return fmt.Sprintf("agent \"senderauth\" {\n  priority = 50\n  config {\n    dns_servers = [%q]\n%s\n  }\n}\n", z.addr, config)
}

// authWorld: x.example has everything and asks for rejection, its subdomains for quarantine; y.example has SPF, and other servers
// for Sender ID; p.example is forgiving.
func authWorld(t *testing.T) *zone {
	t.Helper()
	z := startZone(t,
		`x.example. 60 IN TXT "v=spf1 ip4:192.0.2.0/24 -all"`,
		`_dmarc.x.example. 60 IN TXT "v=DMARC1; p=reject; sp=quarantine; rua=mailto:dmarc@x.example,mailto:reports@far.example,mailto:victim@other.example"`,
		`x.example. 60 IN MX 10 mx.x.example.`,
		`x.example._report._dmarc.far.example. 60 IN TXT "v=DMARC1"`,
		`far.example. 60 IN A 192.0.2.200`,
		`y.example. 60 IN TXT "v=spf1 ip4:198.51.100.0/24 ~all"`,
		`y.example. 60 IN TXT "spf2.0/pra ip4:192.0.2.0/24 -all"`,
		`f.example. 60 IN TXT "v=spf1 -all"`,
		`broken.example. 60 IN TXT "v=spf1 nonsense -all"`,
		`z.example. 60 IN A 192.0.2.1`,
	)
	z.key(t, "s1._domainkey.x.example", edKey('x'))
	z.key(t, "arc._domainkey.lists.example", edKey('l'))
	return z
}

// internal makes an own server of 10.0.0.0/24, which may send anywhere.
func internal(nextHop string) string {
	return strings.Replace(filtered(nextHop), `["anonymous"]`, `["anonymous", "own_servers"]`, 1)
}

// TestSenderauthStamps is what the README of senderauth says of its results: an empty configuration refuses nothing.
func TestSenderauthStamps(t *testing.T) {
	t.Parallel()
	sink, z := rig.StartSink(t), authWorld(t)
	h := rig.Start(t, internal(sink.Addr)+senderauth(z, ""))
	one := func(name, ip, sender, content, data string, stamps, has []string) passage {
		return passage{name: name, ip: ip, from: sender, to: []string{"b@example.org"}, content: content, event: "OnEndOfData",
			reason: "Verified", data: data, stamps: stamps, hop: []string{"b@example.org"}, has: has}
	}
	own := passage{name: "an own server", ip: ownServer, from: "jane@x.example", to: []string{"b@example.org"}, content: fromLine("jane@x.example"),
		event: "OnEndOfData", reason: "NoSource", hop: []string{"b@example.org"}, has: []string{"!Authentication-Results", "!Received-SPF"}}
	relayed := one("behind an own server", ownServer, "jane@x.example",
		"Received: from mx.x.example (mx.x.example [192.0.2.7]) by hub.example; Thu, 1 Jan 2026 12:00:00 +0000\r\n"+fromLine("jane@x.example"),
		"spf=pass dkim=none dmarc=pass arc=none sender-id=pass", []string{"auth.spf=pass"}, []string{`client-ip="192.0.2.7"`})
	leaving := passage{name: "a user far away, through an own server", ip: ownServer, from: "jane@x.example", to: []string{"you@far.example"},
		content: "Received: from laptop (laptop [203.0.113.9]) by hub.example with ESMTPSA; Thu, 1 Jan 2026 12:00:00 +0000\r\n" + fromLine("jane@x.example"),
		event:   "OnEndOfData", reason: "Trusted", hop: []string{"you@far.example"}, has: []string{"!Authentication-Results"}}
	passAll(t, h, sink, "senderauth", []passage{
		one("all is proved", "192.0.2.7", "jane@x.example", signed(t, fromLine("Jane <jane@x.example>")),
			"spf=pass dkim=pass dmarc=pass arc=none sender-id=pass",
			[]string{"auth.spf=pass", "auth.dkim=pass", "auth.dmarc=pass", "auth.arc=none", "auth.senderid=pass", "auth.domain=x.example", "senderauth.prd=x.example", "senderauth.policy=reject"},
			[]string{"Authentication-Results: edge.example;\r\n\tspf=pass smtp.mailfrom=jane@x.example;", "dkim=pass (256-bit key)", "header.d=x.example",
				"dmarc=pass policy.dmarc=reject header.from=x.example", "Received-SPF: Pass (edge.example:"}),
		one("nothing is proved", "203.0.113.9", "jane@x.example", fromLine("jane@x.example"),
			"spf=fail dkim=none dmarc=fail arc=none sender-id=fail", []string{"auth.spf=fail", "auth.dmarc=fail", "senderauth.policy=reject"},
			[]string{"dmarc=fail policy.dmarc=reject header.from=x.example", "Received-SPF: Fail (edge.example: the client may not send for the domain)", `client-ip="203.0.113.9"`}),
		one("softfail, and a record for Sender ID", "192.0.2.7", "b@y.example", fromLine("b@y.example"),
			"spf=softfail dkim=none dmarc=none arc=none sender-id=pass", []string{"auth.spf=softfail", "auth.senderid=pass"}, []string{"Received-SPF: Softfail"}),
		one("the null sender is its HELO", "203.0.113.9", "", fromLine("a@z.example"),
			"spf=none dkim=none dmarc=none arc=none sender-id=none", []string{"auth.spf=none"}, []string{"spf=none smtp.helo=client.example"}),
		one("a record that is wrong", "192.0.2.7", "a@broken.example", fromLine("a@z.example"),
			"spf=permerror dkim=none dmarc=none arc=none sender-id=none", []string{"auth.spf=permerror"}, []string{"spf=permerror reason="}),
		one("DNS that is silent", "192.0.2.7", "a@quiet.example", fromLine("a@quiet.example"),
			"spf=temperror dkim=none dmarc=temperror arc=none sender-id=temperror", []string{"auth.spf=temperror", "auth.dmarc=temperror"}, []string{"spf=temperror"}),
		one("an altered message", "203.0.113.9", "list@z.example", strings.Replace(signed(t, fromLine("jane@x.example")), "\r\n\r\nhello", "\r\n\r\nbuy", 1),
			"spf=none dkim=fail dmarc=fail arc=none sender-id=fail", []string{"auth.dkim=fail"}, []string{"dkim=fail"}),
		one("a sealed message", "203.0.113.9", "list@z.example", sealed(t, fromLine("a@z.example"), "dmarc=pass"),
			"spf=none dkim=none dmarc=none arc=pass sender-id=none", []string{"auth.arc=pass"}, []string{"arc=pass policy.arc-sets=1 policy.arc-newest=lists.example"}),
		one("forged results leave", "203.0.113.9", "a@z.example", "Authentication-Results: (x) EDGE.example 1; dmarc=pass\r\nAuthentication-Results: other.example; spf=pass\r\n"+
			fromLine("a@z.example"), "spf=none dkim=none dmarc=none arc=none sender-id=none", nil, []string{"!EDGE.example", "other.example; spf=pass"}),
		own, relayed, leaving,
	})
	out := h.MustPostern("agent", "run", "senderauth", "--", "test", "203.0.113.9", "jane@x.example")
	for _, want := range []string{"sender-id  fail\n", "spf        fail\n", "dmarc      policy reject of x.example\n"} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in\n%s", want, out)
		}
	}
}

// TestSenderauthActions is what the README of senderauth says of its actions: each reply, and who is left out.
func TestSenderauthActions(t *testing.T) {
	t.Parallel()
	sink, z := rig.StartSink(t), authWorld(t)
	h := rig.Start(t, internal(sink.Addr)+senderauth(z, `
    dmarc_reject         = "reject"
    dmarc_quarantine     = "quarantine"
    dmarc_temperror      = "reject"
    spf_fail             = "reject"
    spf_softfail         = "delete"
    spf_permerror        = "reject"
    senderid_fail        = "reject"
    dkim_fail            = "reject"
    arc_fail             = "reject"
    trusted_sealers      = ["lists.example"]
    bypassed_recipients  = ["abuse@example.org"]
    bypassed_sender_domains = ["good.example"]`))
	refused := func(name, ip, sender, content, reply, reason, data string) passage {
		return passage{name: name, ip: ip, from: sender, to: []string{"b@example.org"}, content: content, reply: reply + " [id]",
			event: "OnEndOfData", verdict: "reject", reason: reason, data: data}
	}
	through := func(name, ip, sender, content, reason, data string, to ...string) passage {
		return passage{name: name, ip: ip, from: sender, to: to, content: content, event: "OnEndOfData", reason: reason, data: data, hop: to}
	}
	stranger := "203.0.113.9"
	later := refused("dmarc_temperror", "192.0.2.7", "a@z.example", fromLine("a@quiet.example"), "451 4.4.3 DMARC check is temporarily unavailable", "DMARC", "quiet.example temperror")
	later.verdict = "defer"
	dropped := refused("spf_softfail, delete", stranger, "a@y.example", fromLine("a@z.example"), "", "SPF", "y.example softfail")
	dropped.reply, dropped.verdict = "", "discard"
	kept := refused("dmarc_quarantine", stranger, "a@z.example", fromLine("jane@sub.x.example"), "", "DMARC", "sub.x.example p=quarantine")
	kept.reply, kept.verdict = "", "quarantine"
	split := through("bypassed_recipients, of several", stranger, "a@z.example", fromLine("jane@x.example"), "Verified",
		"spf=none dkim=none dmarc=fail arc=none sender-id=fail", "b@example.org", "abuse@example.org")
	split.hop = []string{"abuse@example.org"}
	passAll(t, h, sink, "senderauth", []passage{
		refused("dmarc_reject", stranger, "a@z.example", fromLine("jane@x.example"), "550 5.7.1 Message refused by the DMARC policy of the domain in From", "DMARC", "x.example p=reject"),
		later, kept, dropped,
		refused("spf_fail", stranger, "a@f.example", fromLine("a@z.example"), "550 5.7.23 SPF validation failed", "SPF", "f.example fail"),
		refused("spf_permerror", stranger, "a@broken.example", fromLine("a@z.example"), "550 5.7.24 SPF validation error", "SPF", "broken.example permerror"),
		refused("senderid_fail", stranger, "a@z.example", "Sender: b@f.example\r\n"+fromLine("a@z.example"), "550 5.7.1 Sender ID (PRA) Not Permitted", "SenderID", "f.example fail"),
		refused("no purported address", stranger, "a@z.example", "Subject: hello\r\n\r\nhello\r\n", "550 5.7.1 Missing purported responsible address", "SenderID", "no purported responsible address"),
		refused("dkim_fail", stranger, "a@z.example", strings.Replace(signed(t, "From: a@z.example\r\nSubject: hello\r\n\r\nhello\r\n"), "\r\n\r\nhello", "\r\n\r\nbuy", 1),
			"550 5.7.20 No passing DKIM signature found", "DKIM", "x.example body hash does not verify"),
		refused("arc_fail", stranger, "a@z.example", strings.Replace(sealed(t, fromLine("a@z.example"), "dmarc=pass"), "\r\n\r\nhello", "\r\n\r\nbuy", 1),
			"550 5.7.29 ARC validation failure", "ARC", "message signature 1: body hash does not verify"),
		through("a trusted sealer", stranger, "list@z.example", sealed(t, fromLine("jane@x.example"), "dmarc=pass header.from=x.example"), "Verified",
			"spf=none dkim=none dmarc=fail arc=pass sender-id=fail override=lists.example", "b@example.org"),
		through("forwarded, but signed", stranger, "list@f.example", signed(t, fromLine("jane@x.example")), "Verified", "spf=fail dkim=pass dmarc=pass arc=none sender-id=fail", "b@example.org"),
		through("bypassed_sender_domains", stranger, "list@good.example", fromLine("jane@x.example"), "SenderBypassed", "good.example", "b@example.org"),
		through("bypassed_recipients", stranger, "a@z.example", fromLine("jane@x.example"), "RecipientBypassed", "x.example p=reject", "abuse@example.org"),
		split,
	})
	if list := quarantined(h); len(list) != 1 || list[0].Agent != "senderauth" || !strings.Contains(list[0].Reason, "DMARC") {
		t.Errorf("quarantined %+v", list)
	}
}

// TestSenderauthReports counts mail, and sends a DMARC aggregate report when the day is over.
func TestSenderauthReports(t *testing.T) {
	t.Parallel()
	sink, z := rig.StartSink(t), authWorld(t)
	h := rig.New(t, internal(sink.Addr)+senderauth(z, "    report_from  = \"dmarc@example.org\"\n    dmarc_reject = \"reject\"")+`
agent "dkimsign" {
  priority = 130
  when {
    traffic = ["outbound"]
  }
  config {
    key "example.org" "ed" {
      file = "ed.pem"
    }
  }
}
`)
	keyFile(t, h, "ed.pem", edKey('e'))
	z.key(t, "ed._domainkey.example.org", edKey('e'))
	h.Start()
	scheduled(h, "senderauth")
	for range 2 {
		c := from(h, "203.0.113.9")
		if got := c.Message("eve@x.example", "b@example.org", fromLine("eve@x.example")); !strings.HasPrefix(got, "550 5.7.1 Message refused by the DMARC policy") {
			t.Errorf("got %s", got)
		}
	}
	passed(t, h, sink, from(h, "192.0.2.7"), signed(t, fromLine("jane@x.example")))
	rows := func() []string {
		var keys []string
		for line := range strings.Lines(h.MustPostern("table", "list", "senderauth/aggregate", "--json")) {
			if m := rowKey.FindStringSubmatch(line); m != nil {
				keys = append(keys, m[1])
			}
		}
		return keys
	}
	h.WaitFor("two rows", func() bool { return len(rows()) == 2 })
	// A day later, as it were.
	yesterday := time.Now().UTC().AddDate(0, 0, -1)
	for _, key := range rows() {
		value := h.MustPostern("table", "get", "senderauth/aggregate", key, "--json")
		m := rowValue.FindStringSubmatch(strings.ReplaceAll(value, `\"`, `"`))
		if m == nil {
			t.Fatalf("no row in %s", value)
		}
		h.MustPostern("table", "set", "senderauth/aggregate", yesterday.Format("20060102")+key[8:], m[1])
		h.MustPostern("table", "delete", "senderauth/aggregate", key)
	}
	h.MustPostern("table", "delete", "schedule", "senderauth")
	h.WaitFor("two reports at the next hop", func() bool { return len(sink.Messages()) == 3 })
	to := recipientsOf(sink.Messages()[1])
	to = append(to, recipientsOf(sink.Messages()[2])...)
	slices.Sort(to)
	if !slices.Equal(to, []string{"dmarc@x.example", "reports@far.example"}) { // not the one that has not agreed
		t.Errorf("reports to %v", to)
	}
	got := sink.Messages()[1]
	if !strings.HasPrefix(got.From, "MAIL FROM:<dmarc@example.org>") || !strings.Contains(got.Content, "Subject: Report Domain: x.example\r\n Submitter: example.org\r\n Report-ID: <") {
		t.Errorf("%s\n%s", got.From, got.Content)
	}
	begin := yesterday.Truncate(24 * time.Hour).Unix()
	if name := fmt.Sprintf("example.org!x.example!%d!%d!", begin, begin+86399); !strings.Contains(got.Content, name) {
		t.Errorf("no file %s in\n%s", name, got.Content)
	}
	if all := verified(t, z, got.Content); !slices.Equal(all, []string{"ed25519-sha256 ed@example.org pass"}) { // it passes DMARC itself
		t.Errorf("signatures of the report: %v", all)
	}
	document := unpack(t, got.Content)
	for _, want := range []string{
		"<source_ip>203.0.113.9</source_ip>", "<count>2</count>", "<disposition>reject</disposition>", "<p>reject</p>", "<sp>quarantine</sp>",
		"<source_ip>192.0.2.7</source_ip>", "<count>1</count>", "<disposition>none</disposition>", "<selector>s1</selector>", "<email>dmarc@example.org</email>",
	} {
		if !strings.Contains(document, want) {
			t.Errorf("no %s in\n%s", want, document)
		}
	}
	h.WaitFor("no rows", func() bool { return len(rows()) == 0 })
}

var (
	rowKey   = regexp.MustCompile(`"key": ?"([^"]+)"`)
	rowValue = regexp.MustCompile(`(?s)"value": ?"?(\{.*?\})"?,?\s*"`)
)

// unpack the XML document of a report.
func unpack(t *testing.T, content string) string {
	t.Helper()
	_, part, _ := strings.Cut(content, "Content-Type: application/gzip")
	_, part, _ = strings.Cut(part, "\r\n\r\n")
	text, _, _ := strings.Cut(part, "\r\n--")
	packed, err := base64.StdEncoding.DecodeString(strings.ReplaceAll(text, "\r\n", ""))
	if err != nil {
		t.Fatal(err)
	}
	r, err := gzip.NewReader(bytes.NewReader(packed))
	if err != nil {
		t.Fatal(err)
	}
	document, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return string(document)
}

// TestSenderauthWithoutDNS: with all of DNS dead mail flows, status says so, and the log says it once.
func TestSenderauthWithoutDNS(t *testing.T) {
	sink, z := rig.StartSink(t), authWorld(t)
	z.die(true)
	h := rig.Start(t, internal(sink.Addr)+senderauth(z, "    dmarc_reject = \"reject\""))
	for i := range 12 {
		p := passage{ip: "203.0.113.9", from: "jane@x.example", to: []string{"b@example.org"}, content: fromLine(fmt.Sprintf("jane@n%d.example", i)),
			event: "OnEndOfData", reason: "Verified", data: "spf=temperror dkim=none dmarc=temperror arc=none sender-id=temperror", hop: []string{"b@example.org"}}
		p.pass(t, h, sink, "senderauth")
	}
	h.WaitFor("status to say it", func() bool {
		out, _ := h.Postern("status")
		return strings.Contains(out, "senderauth") && strings.Contains(out, "DNS") && strings.Contains(out, "SERVFAIL")
	})
	if n := strings.Count(h.Log(), "SERVFAIL"); n != 1 {
		t.Errorf("the log says it %d times", n)
	}
	z.die(false)
	h.WaitFor("the end of it", func() bool {
		passed(t, h, sink, from(h, "192.0.2.7"), fromLine("jane@z.example"))
		out, _ := h.Postern("status")
		return !strings.Contains(out, "SERVFAIL")
	})
	if n := strings.Count(h.Log(), "works again"); n != 1 {
		t.Errorf("the log says %d times that DNS is back", n)
	}
}

// TestSenderauthHostile: DNS that says nothing or nonsense, and messages that make much work, cost bounded time and have a verdict.
func TestSenderauthHostile(t *testing.T) {
	t.Parallel()
	mute, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer mute.Close()
	babble, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer babble.Close()
	go func() {
		buffer := make([]byte, 4096)
		for {
			n, addr, err := babble.ReadFrom(buffer)
			if err != nil {
				return
			}
			answer := bytes.Repeat([]byte{0xc0, 0x0c, 0xff}, 300)
			copy(answer, buffer[:min(n, 12)]) // the id is right, all else is not
			answer[2] |= 0x80
			_, _ = babble.WriteTo(answer, addr)
		}
	}()
	signature := "DKIM-Signature: v=1; a=rsa-sha256; d=n%d.example; s=a; h=from; bh=%s; b=AAAA\r\n"
	var many strings.Builder
	for i := range 500 {
		fmt.Fprintf(&many, signature, i, strings.Repeat("A", 43)+"=")
	}
	seals := "ARC-Seal: i=1\r\nARC-Message-Signature: i=1\r\nARC-Authentication-Results: i=1;\r\n"
	for name, c := range map[string]struct{ server, header, data string }{
		"mute DNS":       {mute.LocalAddr().String(), "", "spf=temperror dkim=none dmarc=temperror arc=none sender-id=temperror"},
		"babbling DNS":   {babble.LocalAddr().String(), "", "spf=temperror dkim=none dmarc=temperror arc=none sender-id=temperror"},
		"500 signatures": {mute.LocalAddr().String(), many.String(), "spf=temperror dkim=temperror dmarc=temperror arc=none sender-id=temperror"},
		"60 seals":       {mute.LocalAddr().String(), strings.Repeat(seals, 60), "spf=temperror dkim=none dmarc=temperror arc=fail sender-id=temperror"},
		"a large header": {mute.LocalAddr().String(), strings.Repeat("X-Long: "+strings.Repeat("x", 900)+"\r\n", 200), "spf=temperror dkim=none dmarc=temperror arc=none sender-id=temperror"},
	} {
		t.Run(name, func(t *testing.T) {
			sink := rig.StartSink(t)
			h := rig.Start(t, internal(sink.Addr)+senderauth(&zone{addr: c.server}, "    dns_timeout = \"1s\""))
			p := passage{ip: "203.0.113.9", from: "a@z.example", to: []string{"b@example.org"}, content: c.header + fromLine("a@z.example"),
				event: "OnEndOfData", reason: "Verified", data: c.data, hop: []string{"b@example.org"}}
			p.pass(t, h, sink, "senderauth")
		})
	}
}

// keyFile writes a key as openssl does.
func keyFile(t *testing.T, h *rig.Host, name string, key crypto.Signer) {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	writeFile(t, filepath.Join(h.Dir, name), string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})))
}

// verified is what becomes of the signatures in what the next hop got.
func verified(t *testing.T, z *zone, content string) (out []string) {
	t.Helper()
	for _, v := range z.verifier(t).Verify(t.Context(), messageOf(content)) {
		out = append(out, fmt.Sprintf("%s %s@%s %s", v.Algorithm, v.Selector, v.Domain, v.Result))
	}
	return out
}

// TestDkimsignBehaviours is what the README of dkimsign says; addressrewrite rewrites before it.
func TestDkimsignBehaviours(t *testing.T) {
	sink, z := rig.StartSink(t), authWorld(t)
	rsaKey, err := rsa.GenerateKey(nil, 2048)
	if err != nil {
		t.Fatal(err)
	}
	h := rig.New(t, internal(sink.Addr)+senderauth(z, "")+`
agent "rewrite-out" {
  plugin   = "addressrewrite"
  priority = 100
  when {
    traffic = ["external", "outbound", "internal"]
  }
  config {
    direction = "outbound"
    entry "branches" {
      internal = "corp.example.org"
      external = "example.org"
    }
  }
}
agent "dkimsign" {
  priority = 130
  when {
    traffic = ["external", "outbound"]
  }
  config {
    key "example.org" "ed" {
      file       = "ed.pem"
      subdomains = true
    }
    key "example.org" "rsa" {
      file = "rsa.pem"
    }
    seal "example.org" "seal" {
      file = "seal.pem"
    }
  }
}
agent "lister" {
  plugin   = "mock"
  priority = 110
  config {
    on "OnResolved" {
      recipient         = "^list@example[.]org$"
      rewrite_recipient = "member@far.example"
    }
  }
}
`)
	for name, key := range map[string]crypto.Signer{"ed": edKey('e'), "rsa": rsaKey, "seal": edKey('s')} {
		keyFile(t, h, name+".pem", key)
		z.key(t, name+"._domainkey.example.org", key)
	}
	h.Start()
	own := func(name, sender, content, reason, data string, has ...string) passage {
		return passage{name: name, ip: ownServer, from: sender, to: []string{"you@far.example"}, content: content, event: "OnCategorized",
			reason: reason, data: data, hop: []string{"you@far.example"}, has: has}
	}
	rewritten := own("behind rewriting", "ann@corp.example.org", fromLine("Ann <ann@corp.example.org>"), "Signed", "ed@example.org rsa@example.org",
		"From: Ann <ann@example.org>", "s=ed;", "s=rsa;")
	rewritten.mail = "ann@example.org"
	list := passage{name: "sealed", ip: "192.0.2.7", from: "jane@x.example", to: []string{"list@example.org"}, content: signed(t, fromLine("jane@x.example")),
		event: "OnCategorized", reason: "Sealed", data: "seal@example.org", hop: []string{"member@far.example"}, has: []string{"ARC-Seal:", "ARC-Authentication-Results: i=1; edge.example;"}}
	passAll(t, h, sink, "dkimsign", []passage{
		rewritten,
		own("a subdomain", "ann@sub.example.org", fromLine("ann@sub.example.org"), "Signed", "ed@example.org", "s=ed;", "!s=rsa"),
		own("another domain", "ann@other.example", fromLine("ann@other.example"), "NoKey", "other.example", "!DKIM-Signature"),
		list,
		{name: "a stranger", ip: "203.0.113.9", from: "ann@example.org", to: []string{"b@example.org"}, content: fromLine("ann@example.org"),
			hop: []string{"b@example.org"}, has: []string{"!DKIM-Signature", "!ARC-Seal"}},
	})
	got := sink.Messages()
	if all := verified(t, z, got[0].Content); !slices.Equal(all, []string{"rsa-sha256 rsa@example.org pass", "ed25519-sha256 ed@example.org pass"}) {
		t.Errorf("signatures %v\n%s", all, got[0].Content)
	}
	if all := verified(t, z, got[1].Content); !slices.Equal(all, []string{"ed25519-sha256 ed@example.org pass"}) {
		t.Errorf("signatures %v\n%s", all, got[1].Content)
	}
	if c := arc.Validate(t.Context(), z.verifier(t), messageOf(got[3].Content)); c.Result != arc.Pass || len(c.Sets) != 1 || c.Sets[0].Sealer != "example.org" ||
		!strings.Contains(c.Sets[0].Results, "dmarc=pass") {
		t.Errorf("the chain %+v\n%s", c, got[3].Content)
	}
	records := h.MustPostern("agent", "run", "dkimsign", "--", "records")
	for _, name := range []string{"ed", "rsa", "seal"} {
		if !strings.Contains(records, name+"._domainkey.example.org. IN TXT (") {
			t.Errorf("no record of %s in\n%s", name, records)
		}
	}
}
