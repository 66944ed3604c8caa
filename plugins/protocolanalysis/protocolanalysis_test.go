package main

import (
	"fmt"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	mdns "github.com/miekg/dns"

	"github.com/posternmail/postern/sdk"
	"github.com/posternmail/postern/sdk/agentpb"
	"github.com/posternmail/postern/sdk/agenttest"
)

var host = agenttest.WithHost(&agentpb.HostFacts{
	Name: "edge.example", Version: sdk.Version,
	AcceptedDomains: []*agentpb.AcceptedDomain{
		{Name: "y.example", Type: "authoritative"}, {Name: "relay.example", Type: "external_relay"},
	},
	InternalSmtpServers: []string{"10.0.0.0/24"},
})

// offline keeps tests that are not about DNS from asking any.
const offline = "reverse_dns = false\n"

func start(t *testing.T, config string, options ...agenttest.Option) *agenttest.Agent {
	t.Helper()
	return agenttest.Start(t, New, config, append(options, agenttest.WithInfo(info()), host)...)
}

// message of a session with an SCL; "" is none.
func message(s *agenttest.Session, scl string) *agenttest.Outcome {
	s.Mail("s@x.example")
	if scl != "" {
		s.Stamped("scl", scl)
	}
	s.To("r@y.example")
	return s.Data("Subject: x\n\nx\n")
}

// refuse tells of a refusal.
func refuse(s *agenttest.Session, command, agent string, code uint32) *agenttest.Outcome {
	return s.Raise(sdk.OnReject, &agentpb.Arguments{Event: &agentpb.Arguments_Reject{Reject: &agentpb.RejectArguments{
		Command: command, Agent: agent, Reply: &agentpb.Reply{Code: code, Text: "no"},
	}}})
}

func data(o *agenttest.Outcome) string { return o.Answer().GetVerdicts()[0].GetData() }

// row of a table, "" if it is not there.
func row(a *agenttest.Agent, table, key string) string {
	for _, r := range a.Rows(table) {
		if r.Key == key {
			return r.Value
		}
	}
	return ""
}

// A source that sends nothing but spam is rated with its twentieth message, and blocked with an explanation.
func TestSpamIsBlocked(t *testing.T) {
	a := start(t, offline, agenttest.KillBetween())
	s := a.From("192.0.2.7")
	s.Connect()
	s.Ehlo("mail.x.example").WantContinue()
	for i := 1; i < 20; i++ {
		o := message(s, "9").WantContinue().WantReason(reasonNotRated).WantStamp("srl", "0")
		if want := fmt.Sprintf("%d of 20 messages and refusals", i); data(o) != want {
			t.Fatalf("message %d: %q", i, data(o))
		}
	}
	const why = "SRL 8 of 20 messages and refusals: spam 6.0 (20 of 20), recent_spam 2.0 (20)"
	o := message(s, "9").WantContinue().WantReason(reasonBlocked).WantStamp("srl", "8").WantCount("blocks", 1)
	if data(o) != why {
		t.Errorf("data %q", data(o))
	}
	rows := a.Rows("ip-block")
	if len(rows) != 1 || rows[0].Key != "192.0.2.7/32" || !rows[0].Expires.Equal(a.Now().Add(24*time.Hour)) ||
		rows[0].Value != `{"reason":"`+why+`","by":"protocolanalysis","srl":8}` {
		t.Errorf("ip-block %+v", rows)
	}
	if len(a.Rows("reputation")) > 0 || len(a.Rows("recent")) > 0 {
		t.Errorf("the profile stays: %+v %+v", a.Rows("reputation"), a.Rows("recent"))
	}
}

// The sessions that a blocked source has end at their next message; those that begin later are connfilter's.
func TestRunningSessionsEnd(t *testing.T) {
	a := start(t, offline)
	s := a.From("192.0.2.7")
	a.Advance(time.Second)
	a.PutRow("ip-block", "192.0.2.7/32", `{"reason":"SRL 8","by":"protocolanalysis","srl":8}`, time.Hour)
	o := s.Mail("s@x.example").Want(550, "5.7.1").WantVerdict("disconnect").WantReason(reasonInBlock)
	if text := o.Answer().GetVerdicts()[0].GetReply().GetText(); text != "Mail from your address is refused for a time because of its reputation" || data(o) != "SRL 8" {
		t.Errorf("%q because of %q", text, data(o))
	}
	a.Advance(time.Second)
	later := a.From("192.0.2.7")
	later.Mail("s@x.example").WantVerdict("continue")
	refuse(later, "RCPT", "connfilter", 550)
	later.Ehlo("x")
	later.Disconnect("quit")
	if rows := a.Rows("reputation"); len(rows) > 0 {
		t.Errorf("what a blocked source does counts: %+v", rows)
	}
	a.PutRow("ip-block", "192.0.2.8/32", `{"by":"ops"}`, time.Hour)
	other := a.From("192.0.2.8")
	a.Advance(time.Second)
	other.Mail("s@x.example").WantVerdict("continue") // somebody else's block
}

// Each input gives its weight at its worst, and what is between in proportion.
func TestFormula(t *testing.T) {
	tests := []struct {
		name, profile, recent, proxy string
		level                        string
		why                          string // after "SRL n of n messages and refusals: "
	}{
		{"good", `{"low":40,"sessions":40}`, ``, ``, "0", "good_mail -3.0 (40 of 40)"},
		{"nothing", `{"other":40,"sessions":40}`, ``, ``, "0", "nothing against it"},
		{"half spam", `{"low":20,"high":20,"rejected":20}`, `{"high":20}`, ``, "5",
			"spam 3.0 (20 of 40), recent_spam 2.0 (20), rejects 1.5 (20 of 40), good_mail -1.5 (20 of 40)"},
		{"long ago", `{"low":20,"high":60}`, `{"high":5}`, ``, "4", "spam 4.5 (60 of 80), recent_spam 0.5 (5), good_mail -0.8 (20 of 80)"},
		{"refused only", `{"refused":40}`, ``, ``, "3", "rejects 3.0 (40 of 40)"},
		{"one harvest", `{"other":20,"harvests":1}`, ``, ``, "2", "harvests 1.5 (1)"},
		{"harvests", `{"other":20,"harvests":7}`, ``, ``, "3", "harvests 3.0 (7)"},
		{"two names", `{"other":20}`, `{"helo a":1,"helo b":1}`, ``, "0", "nothing against it"},
		{"six names", `{"other":20}`, `{"helo a":1,"helo b":1,"helo c":1,"helo d":1,"helo e":1,"helo f":1}`, ``, "1", "helo 1.0 (6)"},
		{"literal", `{"other":20,"sessions":3,"literal":3}`, ``, ``, "2", "literal 2.2 (3 of 4)"},
		{"our name", `{"other":20,"sessions":9,"own_domain":9}`, ``, ``, "4", "own_domain 3.6 (9 of 10)"},
		{"names", `{"other":20,"sessions":9,"no_reverse_dns":9,"reverse_mismatch":9}`, ``, ``, "2", "no_reverse_dns 0.9 (9 of 10), reverse_mismatch 0.9 (9 of 10)"},
		{"manners", `{"other":20,"sessions":9,"early_talk":9,"pipelining":9}`, ``, ``, "6", "early_talk 3.6 (9 of 10), pipelining 2.7 (9 of 10)"},
		{"proxy", `{"other":20}`, ``, `{"open":"socks5 on port 1080"}`, "9", "open_proxy 9.0 (socks5 on port 1080)"},
		{"all", `{"high":99,"rejected":99,"sessions":9,"own_domain":9}`, `{"high":99}`, ``, "9",
			"spam 6.0 (99 of 99), recent_spam 2.0 (99), rejects 3.0 (99 of 99), own_domain 3.6 (9 of 10)"},
	}
	a := start(t, offline+"block = false")
	for i, test := range tests {
		ip := fmt.Sprintf("192.0.2.%d", 10+i)
		for table, value := range map[string]string{"reputation": test.profile, "recent": test.recent, "proxies": test.proxy} {
			if value != "" {
				a.PutRow(table, ip, value, time.Hour)
			}
		}
		s := a.From(ip)
		s.Mail("s@x.example").WantContinue().WantStamp("srl", test.level)
		s.To("r@y.example")
		o := s.Data("Subject: x\n\nx\n") // without an SCL
		if _, why, _ := strings.Cut(data(o), ": "); !sameFactors(why, test.why) {
			t.Errorf("%s: %q, want %q", test.name, data(o), test.why)
		}
	}
	if rows := a.Rows("ip-block"); len(rows) > 0 {
		t.Errorf("blocked without being told to: %+v", rows)
	}
}

// sameFactors compares explanations; the message that asked for it has made one attempt more for the shares of attempts.
func sameFactors(got, want string) bool {
	var names [2][]string
	for i, s := range []string{got, want} {
		for part := range strings.SplitSeq(s, ", ") {
			if strings.HasPrefix(part, "rejects ") {
				part = "rejects"
			}
			names[i] = append(names[i], part)
		}
	}
	return slices.Equal(names[0], names[1])
}

// Refusals count and rate, those for now do not; the block comes at the refusal, and the session ends with it.
func TestRefusals(t *testing.T) {
	a := start(t, offline+"weight_rejects = 8", agenttest.KillBetween())
	s := a.From("192.0.2.7")
	s.Mail("s@x.example")
	refuse(s, "RCPT", "greylist", 451).WantVerdict("continue")
	refuse(s, "XYZ", "", 500).WantVerdict("continue")
	if rows := a.Rows("reputation"); len(rows) > 0 {
		t.Fatalf("counted: %+v", rows)
	}
	for range 18 {
		refuse(s, "RCPT", "recipientfilter", 550).WantVerdict("continue")
	}
	refuse(s, "EHLO", "connfilter", 550).WantVerdict("continue")
	if got := row(a, "reputation", "192.0.2.7"); got != `{"refused":19}` {
		t.Errorf("profile %s", got)
	}
	o := refuse(s, "MAIL", "senderfilter", 554).WantVerdict("disconnect").WantReason(reasonBlocked)
	if !strings.Contains(data(o), "rejects 8.0 (20 of 20)") || row(a, "ip-block", "192.0.2.7/32") == "" {
		t.Errorf("%q, ip-block %+v", data(o), a.Rows("ip-block"))
	}
}

// A message refused for its content counts by its SCL and as refused.
func TestRefusedMessages(t *testing.T) {
	a := start(t, offline)
	s := a.From("192.0.2.7")
	s.Mail("s@x.example")
	s.Stamped("scl", "9")
	refuse(s, "MESSAGE", "contentfilter", 550)
	s.Mail("s@x.example")
	refuse(s, "MESSAGE", "antivirus", 550)
	if got := row(a, "reputation", "192.0.2.7"); got != `{"high":1,"other":1,"rejected":2}` {
		t.Errorf("profile %s", got)
	}
	if got := row(a, "recent", "192.0.2.7"); got != `{"high":1}` {
		t.Errorf("recent %s", got)
	}
}

// What is stored at MAIL blocks too: refusals of other sessions have brought it over the threshold.
func TestBlockedAtMail(t *testing.T) {
	a := start(t, offline)
	a.PutRow("reputation", "192.0.2.7", `{"high":30,"rejected":30}`, time.Hour)
	a.From("192.0.2.7").Mail("s@x.example").Want(550, "5.7.1").WantVerdict("disconnect").WantReason(reasonBlocked)
	if row(a, "ip-block", "192.0.2.7/32") == "" || row(a, "reputation", "192.0.2.7") != "" {
		t.Errorf("ip-block %+v, reputation %+v", a.Rows("ip-block"), a.Rows("reputation"))
	}
}

// Sessions are counted with what was odd about them.
func TestSessions(t *testing.T) {
	type session = agentpb.Session
	tests := []struct {
		name, helo string
		facts      func(*session)
		want       string
	}{
		{"in order", "mail.x.example", nil, `{"sessions":1}`},
		{"its own address", "[192.0.2.7]", nil, `{"sessions":1}`},
		{"another address", "[192.0.2.9]", nil, `{"literal":1,"sessions":1}`},
		{"an IPv6 address", "[IPv6:2001:db8::1]", nil, `{"literal":1,"sessions":1}`},
		{"without brackets", "192.0.2.9", nil, `{"literal":1,"sessions":1}`},
		{"our domain", "Y.example", nil, `{"own_domain":1,"sessions":1}`},
		{"our host", "edge.example.", nil, `{"own_domain":1,"sessions":1}`},
		{"our address", "[198.51.100.1]", nil, `{"own_domain":1,"sessions":1}`},
		{"a domain relayed for", "relay.example", nil, `{"sessions":1}`},
		{"before the greeting", "x", func(s *session) { s.EarlyTalk = true }, `{"early_talk":1,"sessions":1}`},
		{"before replies", "x", func(s *session) { s.Unsynchronized = 3 }, `{"pipelining":1,"sessions":1}`},
		{"without a word", "", func(s *session) { s.Commands = 0 }, ``},
		{"a user", "[192.0.2.9]", func(s *session) { s.Trust = sdk.User }, ``},
	}
	a := start(t, offline+`trusted = ["203.0.113.0/24"]`, agenttest.KillBetween())
	for _, test := range tests {
		s := a.From("192.0.2.7").With(func(s *session) { s.Helo, s.Commands = []byte(test.helo), 1 })
		if test.facts != nil {
			s.With(test.facts)
		}
		s.Disconnect("quit").WantVerdict("continue")
		if got := row(a, "reputation", "192.0.2.7"); got != test.want {
			t.Errorf("%s: %s, want %s", test.name, got, test.want)
		}
		a.Advance(31 * 24 * time.Hour) // forgotten
	}
	for _, ip := range []string{"127.0.0.1", "::1", "203.0.113.9", "10.0.0.5"} {
		s := a.From(ip).With(func(s *session) { s.Commands = 1 })
		s.Ehlo("x")
		refuse(s, "RCPT", "x", 550)
		s.Disconnect("quit")
	}
	if rows := append(a.Rows("reputation"), a.Rows("recent")...); len(rows) > 0 {
		t.Errorf("rated: %+v", rows)
	}
}

// Names are counted once each within the window; of IPv6 the /64 is the source.
func TestNames(t *testing.T) {
	a := start(t, offline, agenttest.KillBetween())
	for i, ip := range []string{"2001:db8::1", "2001:db8::2", "2001:db8::3", "2001:db8::1"} {
		s := a.From(ip)
		s.Ehlo(fmt.Sprintf("Name%d.example", i%3)).WantContinue()
		s.Helo("na\"\\\xffme\n").WantContinue()
	}
	const want = `{"helo na???me?":1,"helo name0.example":1,"helo name1.example":1,"helo name2.example":1}`
	if got := row(a, "recent", "2001:db8::"); got != want {
		t.Errorf("recent %s", got)
	}
	for i := range 100 {
		a.From("2001:db8::4").Ehlo(fmt.Sprintf("%d%s", i, strings.Repeat("x", 200)))
	}
	if got := row(a, "recent", "2001:db8::"); strings.Count(got, "helo ") != maxNames || len(got) > 4096 {
		t.Errorf("%d names, %d octets", strings.Count(got, "helo "), len(got))
	}
	a.Advance(25 * time.Hour)
	if rows := a.Rows("recent"); len(rows) > 0 {
		t.Errorf("after the window: %+v", rows)
	}
}

// Behind a server of our own the source is in Received; it is rated and blocked by its messages.
func TestRelayed(t *testing.T) {
	a := start(t, offline+"min_messages = 3\nweight_recent_spam = 9", agenttest.KillBetween())
	relayed := func(received, scl string) *agenttest.Outcome {
		s := a.From("10.0.0.5")
		s.Mail("s@x.example")
		s.Stamped("scl", scl)
		s.To("r@y.example")
		return s.Data(received + "Subject: x\n\nx\n")
	}
	const from = "Received: from a.example ([192.0.2.7]) by hub.example\n"
	a.PutRow("recent", "192.0.2.7", `{"high":20}`, time.Hour)
	relayed(from, "9").WantReason(reasonNotRated)
	relayed(from, "9").WantReason(reasonNotRated)
	if got := row(a, "reputation", "192.0.2.7"); got != `{"high":2}` {
		t.Errorf("profile %s", got)
	}
	relayed(from, "9").WantContinue().WantReason(reasonBlocked)
	if row(a, "ip-block", "192.0.2.7/32") == "" {
		t.Errorf("ip-block %+v", a.Rows("ip-block"))
	}
	relayed(from, "9").WantContinue()
	relayed("Received: by hub.example\n", "9").WantContinue()
	relayed("Received: from x ([127.0.0.1]) by hub\n", "9").WantContinue()
	if rows := a.Rows("reputation"); len(rows) > 0 {
		t.Errorf("counted: %+v", rows)
	}
}

// What was counted is halved on schedule, the harvests of recipientfilter too, and leaves when it would have left.
func TestHalfLife(t *testing.T) {
	a := start(t, offline)
	a.PutRow("reputation", "192.0.2.7", `{"high":9,"low":1,"harvests":2,"another":5}`, 10*time.Hour)
	a.PutRow("reputation", "192.0.2.8", `{"sessions":4}`, 0)
	expires := a.Now().Add(10 * time.Hour)
	a.Schedule().WantVerdict("continue") // the first time, when the agent is new
	a.Advance(time.Hour)
	a.Schedule().WantVerdict("continue")
	rows := a.Rows("reputation")
	if len(rows) != 2 || rows[0].Value != `{"another":5,"harvests":1,"high":4,"low":0}` || !rows[0].Expires.Equal(expires) ||
		rows[1].Value != `{"sessions":2}` || !rows[1].Expires.IsZero() {
		t.Errorf("%+v", rows)
	}
}

// zone answers with records: "7.2.0.192.in-addr.arpa. PTR mail.x.example.". Names below "broken." fail.
func zone(t *testing.T, records ...string) (server string) {
	t.Helper()
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var rrs []mdns.RR
	for _, text := range records {
		rr, err := mdns.NewRR(text)
		if err != nil {
			t.Fatal(err)
		}
		rrs = append(rrs, rr)
	}
	s := &mdns.Server{PacketConn: pc, Handler: mdns.HandlerFunc(func(w mdns.ResponseWriter, q *mdns.Msg) {
		m := new(mdns.Msg).SetReply(q)
		if strings.HasSuffix(q.Question[0].Name, "broken.") {
			m.Rcode = mdns.RcodeServerFailure
		}
		for _, rr := range rrs {
			if strings.EqualFold(rr.Header().Name, q.Question[0].Name) && rr.Header().Rrtype == q.Question[0].Qtype {
				m.Answer = append(m.Answer, rr)
			}
		}
		_ = w.WriteMsg(m)
	})}
	go func() { _ = s.ActivateAndServe() }()
	t.Cleanup(func() { _ = s.Shutdown() })
	return pc.LocalAddr().String()
}

// The names of a source are looked up when its session is over.
func TestReverseDNS(t *testing.T) {
	server := zone(t, "7.2.0.192.in-addr.arpa. PTR mail.x.example.", "helo.example. A 192.0.2.7", "helo.example. A 192.0.2.70", "other.example. A 192.0.2.9")
	a := start(t, fmt.Sprintf("dns_servers = [%q]", server))
	for i, test := range []struct{ ip, helo, want string }{
		{"192.0.2.7", "Mail.x.example", `{"sessions":1}`},
		{"192.0.2.7", "helo.example", `{"sessions":1}`},
		{"192.0.2.7", "other.example", `{"reverse_mismatch":1,"sessions":1}`},
		{"192.0.2.7", "nowhere", `{"reverse_mismatch":1,"sessions":1}`},
		{"192.0.2.7", "[192.0.2.7]", `{"sessions":1}`},
		{"192.0.2.8", "helo.example", `{"no_reverse_dns":1,"sessions":1}`},
		{"2001:db8::7", "helo.example", `{"no_reverse_dns":1,"sessions":1}`},
		{"192.0.2.7", "x.broken", `{"sessions":1}`}, // nobody could say
	} {
		s := a.From(test.ip).With(func(s *agentpb.Session) { s.Helo, s.Commands = []byte(test.helo), 1 })
		s.Disconnect("quit").WantVerdict("continue")
		if rows := a.Rows("reputation"); len(rows) != 1 || rows[0].Value != test.want {
			t.Errorf("%d %s: %+v, want %s", i, test.helo, rows, test.want)
		}
		a.Advance(31 * 24 * time.Hour)
	}
}

// Without DNS nothing is held against anybody, and it is asked no more for a while.
func TestNoDNS(t *testing.T) {
	a := start(t, `dns_servers = ["127.0.0.1:1"]`)
	for range 4 {
		a.From("192.0.2.7").With(func(s *agentpb.Session) { s.Helo, s.Commands = []byte("x"), 1 }).Disconnect("quit").WantVerdict("continue")
	}
	if got := row(a, "reputation", "192.0.2.7"); got != `{"sessions":4}` {
		t.Errorf("profile %s", got)
	}
}

// With an empty configuration the worst are blocked, and nobody is probed.
func TestEmptyConfiguration(t *testing.T) {
	var cfg Config
	if cfg.OpenProxy != nil {
		t.Error("probes are on")
	}
	a := start(t, ``)
	a.PutRow("reputation", "192.0.2.7", `{"other":20,"sessions":1000,"early_talk":1000,"own_domain":1000}`, time.Hour)
	a.From("192.0.2.7").Mail("s@x.example").WantVerdict("disconnect")
}

func TestMistakes(t *testing.T) {
	for config, want := range map[string]string{
		``:                                    ``,
		`block_threshold = 0`:                 `block_threshold`,
		`block_response = "grüße"`:            `block_response`,
		`dns_servers = ["resolver"]`:          `dns_servers[0]`,
		"open_proxy {\n target = \"here\"\n}": `open_proxy.target: "here" is not address:port`,
		"open_proxy {\n test \"socks9\" {\n ports = [1]\n }\n}":                                  `"socks9" is no kind of proxy`,
		"open_proxy {\n test \"socks5\" {\n ports = [0]\n }\n}":                                  `0 is no port`,
		"open_proxy {\n through {\n kind = \"socks5\"\n address = \"10.0.0.1\"\n }\n}":           `"10.0.0.1" is not address:port`,
		"open_proxy {\n through {\n kind = \"socks5\"\n address = \"proxy.example:1080\"\n }\n}": ``,
	} {
		got := agenttest.Diagnostics(t, New, config)
		if want == "" && len(got) > 0 || want != "" && !slices.ContainsFunc(got, func(d string) bool { return strings.Contains(d, want) }) {
			t.Errorf("%s: %q, want %q", config, got, want)
		}
	}
}

func TestReadme(t *testing.T) { agenttest.CheckReadme(t, New, "README.md") }

// Whatever a client calls itself, its key fits a row and is plain text.
func FuzzNameKey(f *testing.F) {
	for _, name := range []string{"mail.x.example", "[192.0.2.1]", "\xff\x00\"", strings.Repeat("ü", 100)} {
		f.Add(name)
	}
	f.Fuzz(func(t *testing.T, name string) {
		key := nameKey(name)
		if len(key) > len(heloPrefix)+maxName || strings.ContainsAny(key[len(heloPrefix):], "\" \\\n") {
			t.Errorf("%q: %q", name, key)
		}
	})
}

// A source that a feed of connfilter knows is rated from its first message on.
func TestFeedReputation(t *testing.T) {
	a := start(t, offline+"weight_feed = 6")
	for _, c := range []struct{ ip, scl, level, why string }{
		{"192.0.2.77", "1", "2", "SRL 2 of 1 messages and refusals: good_mail -3.0 (1 of 1), feed 5.3 (level 8)"},
		{"192.0.2.78", "9", "9", "SRL 9 of 1 messages and refusals: spam 6.0 (1 of 1), recent_spam 0.1 (1), feed 5.3 (level 8)"},
	} {
		s := a.From(c.ip)
		s.Mail("s@x.example")
		s.Stamped("iprl", "8").Stamped("scl", c.scl).To("r@y.example")
		o := s.Data("Subject: x\n\nx\n").WantStamp("srl", c.level)
		if got := data(o); got != c.why {
			t.Errorf("got %q, want %q", got, c.why)
		}
	}
	if row(a, "ip-block", "192.0.2.78/32") == "" || row(a, "ip-block", "192.0.2.77/32") != "" {
		t.Errorf("blocked are %v", a.Rows("ip-block"))
	}
}
