package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	mdns "github.com/miekg/dns"

	"github.com/posternmail/postern/sdk"
	"github.com/posternmail/postern/sdk/agentpb"
	"github.com/posternmail/postern/sdk/agenttest"
)

// start the agent under its own name.
func start(t *testing.T, config string, options ...agenttest.Option) *agenttest.Agent {
	t.Helper()
	return agenttest.Start(t, New, config, append(options, agenttest.WithInfo(info()))...)
}

// behind makes 10.0.0.0/24 and an IPv6 network servers of our own.
var behind = agenttest.WithHost(&agentpb.HostFacts{Name: "edge.example", InternalSmtpServers: []string{"10.0.0.0/24", "2001:db8:1::/64"}})

// rcpt connects from ip and says MAIL and RCPT.
func rcpt(a *agenttest.Agent, ip, recipient string) *agenttest.Outcome {
	s := a.From(ip)
	s.Connect().WantContinue()
	s.Mail("s@x.example").WantContinue()
	return s.To(recipient)
}

// text of the reply to everybody.
func text(o *agenttest.Outcome) string { return o.Answer().GetVerdicts()[0].GetReply().GetText() }

// data for the ledger.
func data(o *agenttest.Outcome) string { return o.Answer().GetVerdicts()[0].GetData() }

// dnsServer answers with the records of zones; it counts questions. "slow." zones answer late, "broken." ones
// with SERVFAIL.
func dnsServer(t *testing.T, records ...string) (config string, questions *atomic.Int64) {
	t.Helper()
	questions = new(atomic.Int64)
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	zone := map[string][]mdns.RR{}
	for _, r := range records {
		name, code, _ := strings.Cut(r, " ")
		rr, err := mdns.NewRR(name + " 300 A " + code)
		if err != nil {
			t.Fatal(err)
		}
		zone[name] = append(zone[name], rr)
	}
	never := make(chan struct{})
	handler := mdns.HandlerFunc(func(w mdns.ResponseWriter, q *mdns.Msg) {
		questions.Add(1)
		name := q.Question[0].Name
		if strings.HasSuffix(name, "slow.example.") {
			<-never
		}
		m := new(mdns.Msg).SetReply(q)
		if m.Answer = zone[name]; m.Answer == nil {
			m.Rcode = mdns.RcodeNameError
		}
		if strings.HasSuffix(name, "broken.example.") {
			m.Rcode = mdns.RcodeServerFailure
		}
		_ = w.WriteMsg(m)
	})
	s := &mdns.Server{PacketConn: pc, Handler: handler}
	go func() { _ = s.ActivateAndServe() }()
	t.Cleanup(func() { close(never); _ = s.Shutdown() })
	return fmt.Sprintf("dns_servers = [%q]\n", pc.LocalAddr()), questions
}

// Without any configuration the table ip-block decides, and nothing else is looked at.
func TestEmptyConfiguration(t *testing.T) {
	a := start(t, "")
	rcpt(a, "192.0.2.1", "r@y.example").WantContinue()
	rcpt(a, "2001:db8::1", "r@y.example").WantContinue()
	a.PutRow("ip-block", "192.0.2.0/24", `{"reason":"SRL 9","by":"protofilter"}`, time.Hour)
	out := rcpt(a, "192.0.2.1", "r@y.example").Want(550, "5.7.1").WantReason("MachineBlockList")
	if want := "External client with IP address 192.0.2.1 is blocked for a time because of its reputation"; text(out) != want {
		t.Errorf("the client reads %q, want %q", text(out), want)
	}
	if want := "192.0.2.0/24 by protofilter (SRL 9)"; data(out) != want {
		t.Errorf("the ledger has %q, want %q", data(out), want)
	}
	a.Advance(2 * time.Hour)
	rcpt(a, "192.0.2.1", "r@y.example").WantContinue()
}

// Whatever JSON object the row is, it blocks; a long one is cut.
func TestRowOfAnyShape(t *testing.T) {
	for i, row := range []string{`{}`, `{"reason":7,"by":["x"]}`, `{"other":true}`, `{"reason":"` + strings.Repeat("ä", 2000) + `"}`} {
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			a := start(t, "")
			a.PutRow("ip-block", "2001:db8::/32", row, 0)
			rcpt(a, "2001:db8::1", "r@y.example").Want(550, "5.7.1").WantReason("MachineBlockList")
		})
	}
}

const lists = `
	allow_list {
		networks = ["192.0.2.1", "2001:db8:a::/48"]
	}
	block_list {
		networks = ["192.0.2.0/24", "198.51.100.5-198.51.100.9", "2001:db8::/32"]
		entry "203.0.113.0/24" {
			comment = "sends junk"
			expires = "2026-01-31"
		}
		entry "203.0.113.7" {
			expires = "2026-01-01T12:30:00Z"
		}
	}
	bypassed_recipients = ["abuse@y.example", "*.open.example"]`

func TestLists(t *testing.T) {
	a := start(t, lists)
	for ip, want := range map[string]string{
		"192.0.2.2": "192.0.2.0/24", "198.51.100.5": "198.51.100.5/32", "198.51.100.9": "198.51.100.8/31",
		"2001:db8::1": "2001:db8::/32", "203.0.113.1": "203.0.113.0/24 (sends junk)", "203.0.113.7": "203.0.113.7/32",
	} {
		out := rcpt(a, ip, "r@y.example").Want(550, "5.7.1").WantReason("LocalBlockList")
		if data(out) != want {
			t.Errorf("%s: the ledger has %q, want %q", ip, data(out), want)
		}
		if want := "External client with IP address " + ip + " does not have permissions to submit to this server"; text(out) != want {
			t.Errorf("the client reads %q, want %q", text(out), want)
		}
	}
	for _, ip := range []string{"198.51.100.4", "198.51.100.10", "203.0.114.1", "2001:db9::1"} {
		rcpt(a, ip, "r@y.example").WantContinue()
	}
}

// The allow list is looked at first, and frees the session of all antispam agents.
func TestAllowList(t *testing.T) {
	a := start(t, lists)
	for _, ip := range []string{"192.0.2.1", "2001:db8:a::1"} {
		out := a.From(ip).Connect().WantVerdict("bypass").WantReason("IPOnAllowList")
		if v := out.Answer().GetVerdicts()[0]; v.GetCategory() != sdk.Antispam || v.GetScope() != sdk.InSession {
			t.Errorf("%s: bypass of %s in %s", ip, v.GetCategory(), v.GetScope())
		}
		rcpt(a, ip, "r@y.example").WantContinue()
	}
	a.PutRow("ip-block", "192.0.2.1/32", "{}", 0)
	rcpt(a, "192.0.2.1", "r@y.example").WantContinue()
}

// An entry that has expired does not hide a wider one that is in force.
func TestExpiry(t *testing.T) {
	a := start(t, lists) // the clock says 2026-01-01 12:00
	a.Advance(time.Hour)
	if out := rcpt(a, "203.0.113.7", "r@y.example").Want(550, "5.7.1"); data(out) != "203.0.113.0/24 (sends junk)" {
		t.Errorf("the ledger has %q", data(out))
	}
	a.Advance(30*24*time.Hour + 10*time.Hour) // 2026-01-31 23:00, the last hour
	rcpt(a, "203.0.113.1", "r@y.example").Want(550, "5.7.1")
	a.Advance(time.Hour)
	rcpt(a, "203.0.113.1", "r@y.example").WantContinue()
}

// The refusal waits for RCPT, is repeated for each recipient, and leaves those out who want the mail.
func TestRefusedAtRcpt(t *testing.T) {
	a := start(t, lists, agenttest.KillBetween())
	s := a.From("192.0.2.9")
	s.Connect().WantContinue().WantReason("LocalBlockList")
	s.Ehlo("client.example").WantContinue()
	s.Mail("s@x.example").WantContinue()
	s.To("r@y.example").Want(550, "5.7.1")
	s.To("Abuse@Y.example").WantContinue().WantReason("RecipientBypassed")
	s.To("any@sub.open.example").WantContinue()
	s.To("any@open.example").Want(550, "5.7.1")
	s.Mail("s@x.example").WantContinue() // a second message of the session
	s.To("r@y.example").Want(550, "5.7.1")
}

// A stranger who does not wait is refused at RCPT, one on an allow list or with a name of its own is not.
func TestClientsThatDoNotWait(t *testing.T) {
	type session = agentpb.Session
	tests := map[string]struct {
		config, ip string
		facts      func(*session)
		reason     string // of a refusal; "" is none
	}{
		"before the greeting": {ip: "192.0.2.1", facts: func(s *session) { s.EarlyTalk = true }, reason: reasonEarlyTalker},
		"before replies":      {ip: "192.0.2.1", facts: func(s *session) { s.Unsynchronized = 2 }, reason: reasonPipelining},
		"waits":               {ip: "192.0.2.1", facts: func(*session) {}},
		"ignored":             {config: `early_talkers = "ignore"`, ip: "192.0.2.1", facts: func(s *session) { s.EarlyTalk = true }},
		"loopback":            {ip: "::1", facts: func(s *session) { s.EarlyTalk = true }},
		"on the allow list":   {config: "allow_list {\n networks = [\"192.0.2.1\"]\n}", ip: "192.0.2.1", facts: func(s *session) { s.EarlyTalk = true }},
		"a user":              {ip: "192.0.2.1", facts: func(s *session) { s.EarlyTalk, s.Trust = true, sdk.User }},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			a := agenttest.Start(t, New, test.config+"\nbypassed_recipients = [\"abuse@y.example\"]", agenttest.WithInfo(info()))
			s := a.From(test.ip).With(test.facts)
			s.Connect()
			if o := s.Rcpt("s@x.example", "r@y.example"); test.reason == "" {
				o.WantContinue()
			} else {
				o.Want(554, "5.5.0").WantReason(test.reason)
			}
			s.Rcpt("s@x.example", "abuse@y.example").WantContinue()
		})
	}
	a := agenttest.Start(t, New, `early_talkers = "note"`, agenttest.WithInfo(info()))
	a.From("192.0.2.1").With(func(s *session) { s.EarlyTalk = true }).Rcpt("s@x.example", "r@y.example").WantContinue().WantReason(reasonEarlyTalker)
}

func TestOwnResponses(t *testing.T) {
	a := start(t, `
		block_response   = "Go away, {ip}. See https://y.example/blocked?ip={ip}"
		machine_response = "Come back later"
		block_list {
			networks = ["192.0.2.1"]
		}`)
	a.PutRow("ip-block", "192.0.2.2", "{}", 0)
	a.PutRow("ip-block", "192.0.2.2/32", "{}", 0)
	if got := text(rcpt(a, "192.0.2.1", "r@y.example").Want(550, "5.7.1")); got != "Go away, 192.0.2.1. See https://y.example/blocked?ip=192.0.2.1" {
		t.Errorf("the client reads %q", got)
	}
	if got := text(rcpt(a, "192.0.2.2", "r@y.example").Want(550, "5.7.1")); got != "Come back later" {
		t.Errorf("the client reads %q", got)
	}
}

// Each way in which an answer of a list counts.
func TestDNSCodes(t *testing.T) {
	dns, _ := dnsServer(t,
		"1.2.0.192.any.example. 127.0.0.9", "1.2.0.192.codes.example. 127.0.0.9", "1.2.0.192.bits.example. 127.0.0.9",
		"2.2.0.192.codes.example. 127.0.0.4", "2.2.0.192.codes.example. 127.0.0.3",
		"3.2.0.192.bits.example. 127.0.0.12",
		"4.2.0.192.any.example. 203.0.113.1", "5.2.0.192.any.example. 127.255.255.254",
		"6.2.0.192.both.example. 127.0.1.3", "7.2.0.192.both.example. 127.0.0.4",
		"1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.b.d.0.1.0.0.2.codes.example. 127.0.0.3")
	a := start(t, dns+`
		dnsbl "any.example" {}
		dnsbl "CODES.example." {
			codes    = ["127.0.0.2", "127.0.0.3"]
			response = "{ip} is on {zone}"
		}
		dnsbl "bits.example" {
			bitmask = "127.0.0.6"
		}
		dnsbl "both.example" {
			codes   = ["127.0.1.3"]
			bitmask = "127.0.0.4"
		}`)
	for ip, want := range map[string]string{
		"192.0.2.1":   "any.example 127.0.0.9",
		"192.0.2.2":   "codes.example 127.0.0.3",
		"192.0.2.3":   "bits.example 127.0.0.12",
		"192.0.2.6":   "both.example 127.0.1.3",
		"192.0.2.7":   "both.example 127.0.0.4",
		"2001:db8::1": "codes.example 127.0.0.3",
	} {
		if got := data(rcpt(a, ip, "r@y.example").Want(550, "5.7.1").WantReason("BlockListProvider")); got != want {
			t.Errorf("%s: the ledger has %q, want %q", ip, got, want)
		}
	}
	for _, ip := range []string{"192.0.2.4", "192.0.2.5", "192.0.2.200", "2001:db8::2"} {
		rcpt(a, ip, "r@y.example").WantContinue()
	}
	if got := text(rcpt(a, "192.0.2.2", "r@y.example")); got != "192.0.2.2 is on codes.example" {
		t.Errorf("the client reads %q", got)
	}
	if got := text(rcpt(a, "192.0.2.1", "r@y.example")); got != "Recipient not authorized, your IP has been found on a block list" {
		t.Errorf("the client reads %q", got)
	}
}

// An allowing DNS list beats a blocking one and frees the session; the own lists come before both.
func TestDNSOrder(t *testing.T) {
	dns, questions := dnsServer(t,
		"1.2.0.192.black.example. 127.0.0.2", "1.2.0.192.white.example. 127.0.0.2",
		"2.2.0.192.black.example. 127.0.0.2", "2.2.0.192.black2.example. 127.0.0.2", "3.2.0.192.black2.example. 127.0.0.2",
		"4.2.0.192.black.example. 127.0.0.2")
	a := start(t, dns+`
		dnsbl "black.example" {}
		dnsbl "black2.example" {}
		dnswl "white.example" {}
		allow_list {
			networks = ["192.0.2.4"]
		}
		block_list {
			networks = ["192.0.2.5"]
		}
		bypassed_recipients = ["abuse@y.example"]`)
	s := a.From("192.0.2.1")
	s.Connect().WantContinue()
	out := s.Mail("s@x.example").WantVerdict("bypass").WantReason("AllowListProvider")
	if got := data(out); got != "white.example 127.0.0.2" {
		t.Errorf("the ledger has %q", got)
	}
	if got := data(rcpt(a, "192.0.2.2", "r@y.example").Want(550, "5.7.1")); got != "black.example 127.0.0.2" {
		t.Errorf("the ledger has %q", got)
	}
	if got := data(rcpt(a, "192.0.2.3", "r@y.example").Want(550, "5.7.1")); got != "black2.example 127.0.0.2" {
		t.Errorf("the ledger has %q", got)
	}
	rcpt(a, "192.0.2.2", "abuse@y.example").WantContinue().WantReason("RecipientBypassed")
	a.From("192.0.2.4").Connect().WantVerdict("bypass")
	before := questions.Load()
	rcpt(a, "192.0.2.5", "r@y.example").Want(550, "5.7.1").WantReason("LocalBlockList")
	if n := questions.Load() - before; n != 0 {
		t.Errorf("%d questions about a client on the own list", n)
	}
}

// A session asks once, and the next one of the same client hears the answer from the cache.
func TestDNSAskedOnce(t *testing.T) {
	dns, questions := dnsServer(t, "1.2.0.192.black.example. 127.0.0.2")
	a := start(t, dns+`dnsbl "black.example" {}`)
	for range 4 {
		s := a.From("192.0.2.1")
		s.Mail("s@x.example").WantContinue()
		s.To("r@y.example").Want(550, "5.7.1")
		s.Mail("s@x.example").WantContinue()
	}
	if n := questions.Load(); n != 3 { // each of the three processes has a cache
		t.Errorf("%d questions, want 3", n)
	}
}

// Lists that are silent or broken have no entry: mail flows, and no decision waits for a list behind the one
// that decides.
func TestDNSSilent(t *testing.T) {
	dns, _ := dnsServer(t, "1.2.0.192.black.example. 127.0.0.2")
	a := start(t, dns+`
		dns_timeout = "300ms"
		dnsbl "broken.example" {}
		dnsbl "black.example" {}
		dnsbl "slow.example" {}`)
	rcpt(a, "192.0.2.2", "r@y.example").WantContinue()
	rcpt(a, "192.0.2.1", "r@y.example").Want(550, "5.7.1")
	quick := start(t, dns+`
		dns_timeout = "15s"
		dnsbl "black.example" {}
		dnsbl "slow.example" {}`)
	rcpt(quick, "192.0.2.1", "r@y.example").Want(550, "5.7.1") // the test's own timeout is shorter than 15 s
}

// With less time than dns_timeout the answer still comes before the event's deadline.
func TestPatience(t *testing.T) {
	f := &Filter{Config: Config{DNSTimeout: time.Minute}}
	if got := f.patience(t.Context()); got != time.Minute {
		t.Errorf("without a deadline: %s", got)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if got := f.patience(ctx); got > 9*time.Second {
		t.Errorf("with 10 s left: %s", got)
	}
}

const relayed = "Received: from hub.example (hub.example [10.0.0.7]) by edge.example with ESMTP; Thu, 1 Jan 2026 12:00:00 +0000\n" +
	"Received: from filter.example (localhost [127.0.0.1])\n\tby hub.example (10.0.0.7) with ESMTP; Thu, 1 Jan 2026 12:00:00 +0000\n" +
	"Received: from helo.example (unknown [%s])\n\tby hub.example with ESMTPS; Thu, 1 Jan 2026 12:00:00 +0000\n" +
	"Received: from forged.example ([192.0.2.1]) by nowhere.example; Thu, 1 Jan 2026 12:00:00 +0000\n" +
	"From: s@x.example\n\nhello\n"

// Behind servers of our own the source is found in Received, for each message.
func TestBehindAnotherServer(t *testing.T) {
	dns, _ := dnsServer(t, "9.113.0.203.black.example. 127.0.0.2", "8.113.0.203.white.example. 127.0.0.2")
	a := start(t, dns+lists+`
		dnsbl "black.example" {}
		dnswl "white.example" {}`, behind, agenttest.KillBetween())
	a.PutRow("ip-block", "198.18.0.0/15", `{"reason":"SRL 9"}`, 0)
	for _, peer := range []string{"10.0.0.5", "2001:db8:1::5"} {
		s := a.From(peer) // which the block list would refuse in the second case
		s.Connect().WantContinue().WantReason("InternalServer")
		for source, reason := range map[string]string{
			"192.0.2.9": "LocalBlockList", "IPv6:2001:db8::1": "LocalBlockList", "198.18.5.5": "MachineBlockList",
			"203.0.113.9": "LocalBlockList",
		} {
			s.Mail("s@x.example").To("r@y.example").WantContinue()
			s.Data(fmt.Sprintf(relayed, source)).Want(550, "5.7.1").WantReason(reason)
		}
		s.Mail("s@x.example").To("r@y.example").WantContinue()
		s.Data(fmt.Sprintf(relayed, "192.0.2.1")).WantVerdict("continue")
	}
	a.Advance(60 * 24 * time.Hour) // past the entry of 203.0.113.0/24
	s := a.From("10.0.0.5")
	s.Mail("s@x.example").To("r@y.example").WantContinue()
	s.Data(fmt.Sprintf(relayed, "203.0.113.9")).Want(550, "5.7.1").WantReason("BlockListProvider")
	s.Mail("s@x.example").To("r@y.example").WantContinue()
	s.Data(fmt.Sprintf(relayed, "203.0.113.10")).WantContinue()
}

// What OnEndOfHeaders answers beside refusals; Data shows only the end of the message.
func TestVerdictsOnRelayedMessages(t *testing.T) {
	a := start(t, lists, behind)
	raise := func(header string, recipients ...string) *agenttest.Outcome {
		s := a.From("10.0.0.5")
		s.Mail("s@x.example").WantContinue()
		for _, r := range recipients {
			s.To(r).WantContinue()
		}
		s.Data(header) // keeps the header with the session
		return s.Raise(sdk.OnEndOfHeaders, nil)
	}
	out := raise(fmt.Sprintf(relayed, "192.0.2.1"), "r@y.example").WantVerdict("bypass").WantReason("IPOnAllowList")
	if v := out.Answer().GetVerdicts()[0]; v.GetScope() != sdk.InMessage || v.GetCategory() != sdk.Antispam {
		t.Errorf("bypass of %s in %s", v.GetCategory(), v.GetScope())
	}
	raise("From: s@x.example\n\n", "r@y.example").WantContinue().WantReason("NoSource")
	raise("Received: by hub.example (Postfix, from userid 0) id 1\n"+fmt.Sprintf(relayed, "192.0.2.9"), "r@y.example").
		WantContinue().WantReason("NoSource")
	raise(fmt.Sprintf(relayed, "192.0.2.9"), "abuse@y.example").WantContinue().WantReason("RecipientBypassed")
	mixed := raise(fmt.Sprintf(relayed, "192.0.2.9"), "abuse@y.example", "r@y.example", "q@y.example")
	mixed.WantVerdictFor("abuse@y.example", "continue").WantFor("r@y.example", 550, "5.7.1").WantFor("q@y.example", 550, "5.7.1")
}

// Without servers of our own, and without DNS lists, their events are not even sent.
func TestSubscribesToWhatItNeeds(t *testing.T) {
	a := start(t, "")
	s := a.From("192.0.2.1")
	if out := s.Mail("s@x.example"); len(out.Answer().GetVerdicts()[0].GetReason()) != 0 || out.Answer().GetId() != 0 {
		t.Errorf("OnMail was sent: %v", out.Answer())
	}
	if out := s.Raise(sdk.OnEndOfHeaders, nil); out.Answer().GetId() != 0 {
		t.Errorf("OnEndOfHeaders was sent: %v", out.Answer())
	}
}

func TestListFiles(t *testing.T) {
	dir := t.TempDir()
	block := filepath.Join(dir, "block.txt")
	var b strings.Builder
	b.WriteString("\uFEFF# ours\r\n\r\n192.0.2.0/24   # documentation\r\n198.51.100.0/24 expires=2026-01-31\r\n2001:db8::/32 ; SBL1\r\n203.0.113.4-203.0.113.5\n")
	for i := range 20000 {
		fmt.Fprintf(&b, "100.%d.%d.0/24\n", 64+i/256%64, i%256)
	}
	if err := os.WriteFile(block, []byte(b.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	a := start(t, fmt.Sprintf("block_list {\n files = [%q]\n}", block))
	for ip, want := range map[string]string{
		"192.0.2.1": "192.0.2.0/24 (documentation)", "198.51.100.1": "198.51.100.0/24", "2001:db8::1": "2001:db8::/32 (SBL1)",
		"203.0.113.5": "203.0.113.4/31", "100.100.7.1": "100.100.7.0/24",
	} {
		if got := data(rcpt(a, ip, "r@y.example").Want(550, "5.7.1").WantReason("LocalBlockList")); got != want {
			t.Errorf("%s: the ledger has %q, want %q", ip, got, want)
		}
	}
	a.Advance(60 * 24 * time.Hour)
	rcpt(a, "198.51.100.1", "r@y.example").WantContinue()
}

// dnsAndLists is a configuration that nothing is wrong with.
const dnsAndLists = `
	allow_list {
		entry "192.0.2.1" {
			expires = "2999-12-31"
		}
	}
	dnsbl "a.example" {
		codes = ["127.0.0.2"]
	}
	dnswl "b.example." {}`

func TestMistakes(t *testing.T) {
	dir := t.TempDir()
	bad := filepath.Join(dir, "bad.txt")
	if err := os.WriteFile(bad, []byte("192.0.2.1\n192.0.2.2 expires=soon\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	long := strings.Repeat("x", 241)
	for name, c := range map[string]struct {
		config string
		want   []string
	}{
		"none":    {dnsAndLists, nil},
		"network": {"block_list {\n networks = [\"192.0.2.1\", \"192.0.2\"]\n}", []string{`block_list.networks[1]: not an IP address, a prefix or a range: "192.0.2"`}},
		"entry":   {"allow_list {\n entry \"x\" {}\n}", []string{`allow_list.entry[0]: not an IP address, a prefix or a range: "x"`}},
		"expiry":  {"allow_list {\n entry \"::1\" {\n expires = \"tomorrow\"\n}\n}", []string{`allow_list.entry[0].expires: "tomorrow" is neither a date (2026-12-31) nor a time (2026-12-31T18:00:00Z)`}},
		"expired": {"allow_list {\n entry \"::1\" {\n expires = \"2020-01-01\"\n}\n}", []string{`warning: allow_list.entry[0].expires: this entry has expired and does nothing any more`}},
		"file":    {fmt.Sprintf("block_list {\n files = [%q]\n}", bad), []string{`block_list.files[0]: ` + bad + `:2: "soon" is neither a date (2026-12-31) nor a time (2026-12-31T18:00:00Z)`}},
		"no file": {fmt.Sprintf("block_list {\n files = [%q]\n}", bad+"x"), []string{`block_list.files[0]: open ` + bad + `x: no such file or directory`}},
		"slips": {"block_list {\n networks = [\"192.0.2.1/24\", \"192.0.2.0/24\"]\n entry \"0.0.0.0/0\" {}\n}", []string{
			`warning: block_list.networks[0]: bits are set behind the prefix: all of 192.0.2.0/24 is meant`, `warning: block_list.entry[0]: 0.0.0.0/0 is wider than any network of one owner`}},
		"zone":     {`dnsbl "a b" {}`, []string{`dnsbl[0]: "a b" is no zone of a DNS list`}},
		"code":     {"dnswl \"a.example\" {\n codes = [\"127.0.0.2\", \"10.0.0.1\"]\n}", []string{`dnswl[0].codes[1]: "10.0.0.1" is no answer of a DNS list: those are in 127.0.0.0/8`}},
		"bitmask":  {"dnsbl \"a.example\" {\n bitmask = \"127.0.0.0\"\n}", []string{`dnsbl[0].bitmask: "127.0.0.0" has no bit in its last octet, so no answer would count`}},
		"bypassed": {`bypassed_recipients = ["a@y.example", "a b"]`, []string{`bypassed_recipients[1]:`}},
		"server":   {`dns_servers = ["127.0.0.1", "::1", "[::1]:53", "resolver.example"]`, []string{`dns_servers[3]: "resolver.example" is neither an address nor address:port`}},
		"long":     {fmt.Sprintf("block_response = %q", long), []string{`block_response: text of 241 characters, at most 240`}},
		"filled":   {fmt.Sprintf("machine_response = %q", strings.Repeat("{ip}", 20)), []string{`machine_response: with {ip} and {zone} filled in it may have 780 characters, at most 400`}},
		"not ASCII, and a second mistake": {`block_response = "weg, böser"` + "\ndns_servers = [\"x\"]", []string{
			`block_response: 'ö' cannot stand in a reply, which is one line of ASCII`, `dns_servers[0]: "x" is neither`}},
		"two lines": {"dnsbl \"a.example\" {\n response = \"a\\r\\n250 ok\"\n}", []string{`dnsbl[0].response: '\r' cannot stand in a reply, which is one line of ASCII`}},
	} {
		t.Run(name, func(t *testing.T) {
			got := agenttest.Diagnostics(t, New, c.config, agenttest.WithInfo(info()))
			if !slices.EqualFunc(got, c.want, strings.HasPrefix) {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
}

func TestReadme(t *testing.T) { agenttest.CheckReadme(t, New, "README.md") }
