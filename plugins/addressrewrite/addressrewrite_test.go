package main

import (
	"encoding/json"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/posternmail/postern/internal/corpora"
	"github.com/posternmail/postern/sdk"
	"github.com/posternmail/postern/sdk/address"
	"github.com/posternmail/postern/sdk/agentpb"
	"github.com/posternmail/postern/sdk/agenttest"
)

var withInfo = agenttest.WithInfo(info())

const entries = `
	entry "joe" {
		internal = "joe@corp.example"
		external = "joseph.doe@y.example"
	}
	entry "corp" {
		internal   = "corp.example"
		external   = "y.example"
		exceptions = ["robot@corp.example"]
	}
	entry "branches" {
		internal      = "*.corp.example"
		external      = "y.example"
		exceptions    = ["lab.corp.example"]
		outbound_only = true
	}
`

func start(t *testing.T, direction, more string) *agenttest.Agent {
	return agenttest.Start(t, New, "direction = \""+direction+"\"\n"+more, withInfo)
}

// outcome of OnRouted for a message, and the MAIL FROM it leaves with.
func routed(s *agenttest.Session, from, to, message string) (*agenttest.Outcome, string) {
	s.Mail(from)
	for _, r := range strings.Fields(to) {
		s.To(r)
	}
	s.Data(message)
	o := s.Routing(sdk.OnRouted)
	for _, e := range o.Answer().GetEdits() {
		if r := e.GetRewriteSender(); r != nil {
			from = string(r.GetAddress())
		}
	}
	return o, from
}

func TestOutbound(t *testing.T) {
	a := start(t, "outbound", entries)
	for _, c := range []struct{ from, want string }{
		{"joe@corp.example", "joseph.doe@y.example"}, // the address before its domain
		{"JOE@corp.example", "joseph.doe@y.example"},
		{"ann@corp.example", "ann@y.example"},
		{"Ann@sales.corp.example", "Ann@y.example"},   // flattened
		{"ann@x.sales.corp.example", "ann@y.example"}, // at any depth
		{"robot@corp.example", "robot@corp.example"},  // exceptions
		{"ann@lab.corp.example", "ann@lab.corp.example"},
		{"ann@notcorp.example", "ann@notcorp.example"},
		{"", ""},
	} {
		_, got := routed(a.From("192.0.2.1"), c.from, "r@elsewhere.example", "Subject: x\n\n")
		if got != c.want {
			t.Errorf("MAIL FROM:<%s> leaves as %q, want %q", c.from, got, c.want)
		}
	}
}

func TestOutboundFields(t *testing.T) {
	a := start(t, "outbound", entries)
	message := "Return-Path: <ann@corp.example>\n" +
		"Received: from x by corp.example for <ann@corp.example>; Thu, 1 Jan 2026 12:00:00 +0000\n" +
		"From: \"Doe, Joe\" <joe@corp.example> (at (head) office)\n" +
		"Sender: ann@corp.example\n" +
		"Reply-To: Team: ann@corp.example,\n\tBob <bob@x.example>;\n" +
		"Return-Receipt-To: <ann@corp.example>\n" +
		"Disposition-Notification-To: <ann@corp.example>\n" +
		"Resent-From: ann@corp.example\n" +
		"Resent-Sender: ann@corp.example\n" +
		"To: ann@corp.example\n" +
		"Message-ID: <1@corp.example>\n" +
		"X-Other: ann@corp.example\n" +
		"\nFrom: ann@corp.example\n"
	o, _ := routed(a.From("192.0.2.1"), "ann@corp.example", "r@elsewhere.example", message)
	want := "Return-Path: <ann@corp.example>\n" +
		"Received: from x by corp.example for <ann@corp.example>; Thu, 1 Jan 2026 12:00:00 +0000\n" +
		"From: \"Doe, Joe\" <joseph.doe@y.example> (at (head) office)\n" +
		"Sender: ann@y.example\n" +
		"Reply-To: Team: ann@y.example,\n\tBob <bob@x.example>;\n" +
		"Return-Receipt-To: <ann@y.example>\n" +
		"Disposition-Notification-To: <ann@y.example>\n" +
		"Resent-From: ann@y.example\n" +
		"Resent-Sender: ann@y.example\n" +
		"To: ann@corp.example\n" +
		"Message-ID: <1@corp.example>\n" +
		"X-Other: ann@corp.example\n" +
		"\nFrom: ann@corp.example\n"
	if got := strings.ReplaceAll(o.Message(), "\r\n", "\n"); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	o.WantContinue().WantReason("rewritten").WantCount("rewritten", 8)
}

// Only the copies that leave are rewritten.
func TestOutboundOnlyWhatLeaves(t *testing.T) {
	a := start(t, "outbound", entries)
	o, from := routed(a.From("192.0.2.1"), "ann@corp.example", "in@y.example", "From: ann@corp.example\n\n")
	if len(o.Answer().GetEdits()) != 0 || from != "ann@corp.example" {
		t.Errorf("mail that stays is rewritten: %v", o.Answer())
	}
	o, _ = routed(a.From("192.0.2.1"), "ann@corp.example", "in@y.example out@elsewhere.example", "From: ann@corp.example\n\n")
	for _, e := range o.Answer().GetEdits() {
		if r := e.GetRecipients(); len(r) != 1 || r[0] != 1 {
			t.Errorf("edit for recipients %v, want only 1: %v", r, e)
		}
	}
	if len(o.Answer().GetEdits()) != 2 {
		t.Errorf("edits %v", o.Answer().GetEdits())
	}
}

// Thousands of fields, which nobody needs, do not ask for more edits than an answer may have.
func TestManyFields(t *testing.T) {
	s := start(t, "inbound", entries).From("192.0.2.1")
	s.Mail("s@x.example").To("ann@y.example")
	o := s.Data(strings.Repeat("To: ann@y.example\n", 3000) + "\nx\n").WantContinue()
	if n := strings.Count(o.Message(), "To: ann@corp.example"); n != maxFields {
		t.Errorf("%d fields are rewritten", n)
	}
}

func TestInbound(t *testing.T) {
	a := start(t, "inbound", entries)
	for to, want := range map[string]string{
		"joseph.doe@y.example": "joe@corp.example",
		"Joseph.Doe@Y.example": "joe@corp.example",
		"ann@y.example":        "ann@corp.example",
		"robot@y.example":      "", // never left as such
		"ann@z.example":        "",
	} {
		o := a.From("192.0.2.1").Rcpt("s@x.example", to).WantContinue()
		got := ""
		for _, e := range o.Answer().GetEdits() {
			got = string(e.GetRewriteRecipient().GetAddress())
		}
		if got != want {
			t.Errorf("RCPT TO:<%s> becomes %q, want %q", to, got, want)
		}
	}
	s := a.From("192.0.2.1")
	s.Mail("s@x.example").To("ann@y.example")
	o := s.Data("From: ann@y.example\nTo: Ann <ann@y.example>, b@x.example\nCC: joseph.doe@y.example\nBcc: ann@y.example\n\nx\n")
	want := "From: ann@y.example\nTo: Ann <ann@corp.example>, b@x.example\nCC: joe@corp.example\nBcc: ann@y.example\n\nx\n"
	if got := strings.ReplaceAll(o.Message(), "\r\n", "\n"); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

// A domain can be written in two ways; a message that is not SMTPUTF8 gets the one that is ASCII.
func TestInternationalized(t *testing.T) {
	a := agenttest.Start(t, New, `
		direction = "outbound"
		entry "idn" {
			internal = "bücher.example"
			external = "büro.example"
		}
		entry "user" {
			internal = "jo@bücher.example"
			external = "jö@büro.example"
		}`, withInfo)
	_, got := routed(a.From("192.0.2.1"), "ann@xn--bcher-kva.example", "r@elsewhere.example", "Subject: x\n\n")
	if want := "ann@xn--bro-hoa.example"; got != want {
		t.Errorf("leaves as %q, want %q", got, want)
	}
	if _, got = routed(a.From("192.0.2.1"), "jo@xn--bcher-kva.example", "r@elsewhere.example", "Subject: x\n\n"); got != "jo@xn--bcher-kva.example" {
		t.Errorf("leaves as %q, which needs SMTPUTF8", got)
	}
	w := &Rewriter{outbound: true}
	r, _ := newRule(Entry{Internal: "jo@bücher.example", External: "jö@büro.example"})
	w.rules.add(r, true)
	if to, ok := w.rewrite(address.Mailbox{Local: "jo", Domain: "bücher.example"}, true); !ok || to.String() != "jö@büro.example" {
		t.Errorf("with SMTPUTF8: %v %v", to, ok)
	}
}

func TestEmpty(t *testing.T) {
	if got := agenttest.Diagnostics(t, New, "", withInfo); len(got) != 1 || got[0] != "warning: no entry and no srs: nothing is rewritten" {
		t.Errorf("%q", got)
	}
}

func TestEmptyDoesNothing(t *testing.T) {
	a := agenttest.Start(t, New, "", withInfo)
	o, from := routed(a.From("192.0.2.1"), "a@x.example", "r@y.example", "From: a@x.example\n\n")
	if o.WantContinue(); len(o.Answer().GetEdits()) != 0 || from != "a@x.example" {
		t.Errorf("%v", o.Answer())
	}
}

func TestMistakes(t *testing.T) {
	for config, want := range map[string]string{
		`entry "a" {
			internal = "a.example"
			external = "y.example"
		}`: "direction is needed",
		`direction = "outbound"
		entry "a" {
			internal = "*.a.example"
			external = "y.example"
		}`: "entry[0].internal: *.domain cannot be turned back: set outbound_only = true",
		`direction = "outbound"
		entry "a" {
			internal = "a.example"
			external = "*.y.example"
		}`: "entry[0].external: *.domain names no single domain",
		`direction = "outbound"
		entry "a" {
			internal = "u@a.example"
			external = "y.example"
		}`: "entry[0].external: internal and external must both be",
		`direction = "inbound"
		entry "a" {
			internal = "a.example"
			external = "y.example"
		}
		entry "b" {
			internal = "b.example"
			external = "Y.example"
		}`: `entry[1].external: entry "a" has it already`,
		`direction = "outbound"
		entry "a" {
			internal = "a.example"
			external = "other.example"
		}`: "warning: entry[0].external: no accepted domain",
		`direction = "inbound"
		srs {
			domain = "y.example"
			secret = "short"
		}`: "srs.secret: a secret of 5 octets can be guessed",
	} {
		t.Run(want, func(t *testing.T) {
			got := agenttest.Diagnostics(t, New, config, withInfo)
			if len(got) != 1 || !strings.HasPrefix(got[0], want) {
				t.Errorf("%q, want %q", got, want)
			}
		})
	}
}

const srsConfig = `
	srs {
		domain = "y.example"
		secret = "a long secret"
	}`

func TestForwardedMail(t *testing.T) {
	out := start(t, "outbound", srsConfig)
	_, from := routed(out.From("192.0.2.1"), "Sue@x.example", "r@elsewhere.example", "From: Sue@x.example\n\n")
	if !strings.HasPrefix(from, "SRS0=") || !strings.HasSuffix(from, "=x.example=Sue@y.example") {
		t.Fatalf("leaves as %q", from)
	}
	for _, own := range []string{"me@y.example", ""} {
		if _, got := routed(out.From("192.0.2.1"), own, "r@elsewhere.example", "Subject: x\n\n"); got != own {
			t.Errorf("<%s> leaves as %q", own, got)
		}
	}
	if _, got := routed(out.From("192.0.2.1"), "Sue@x.example", "r@y.example", "Subject: x\n\n"); got != "Sue@x.example" {
		t.Errorf("mail that stays has the sender %q", got)
	}
}

func TestBounces(t *testing.T) {
	s := newSRS(SRS{Domain: "y.example", Secret: "a long secret", MaxAge: 21 * day, HashLen: 4})
	in := start(t, "inbound", srsConfig)
	bounce, _ := s.forward(address.Mailbox{Local: "Sue", Domain: "x.example"}, in.Now())
	o := in.From("192.0.2.1").Rcpt("", strings.ToLower(bounce.String())).WantContinue().WantReason("srs-turned-back")
	if got := string(o.Answer().GetEdits()[0].GetRewriteRecipient().GetAddress()); got != "sue@x.example" {
		t.Errorf("the bounce goes to %q", got)
	}
	in.From("192.0.2.1").Rcpt("", "SRS0=AAAA=2W=x.example=sue@y.example").Want(550, "5.1.1").WantReason("srs-invalid")
	in.From("192.0.2.1").Rcpt("", "SRS0=AAAA@y.example").Want(550, "5.1.1")
	in.From("192.0.2.1").Rcpt("", "srs0@y.example").WantContinue() // an ordinary mailbox
	in.Advance(22 * day)
	in.From("192.0.2.1").Rcpt("", bounce.String()).Want(550, "5.1.1")
}

// A chain of forwarders: the second keeps the way back to the first, and nothing grows at the third.
func TestSRS1(t *testing.T) {
	now := time.Unix(1577836860, 0)
	one := newSRS(SRS{Domain: "one.example", Secret: "first secret", MaxAge: 21 * day, HashLen: 4})
	two := newSRS(SRS{Domain: "two.example", Secret: "second secret", MaxAge: 21 * day, HashLen: 4})
	three := newSRS(SRS{Domain: "three.example", Secret: "third secret", MaxAge: 21 * day, HashLen: 4})
	from := address.Mailbox{Local: "sue", Domain: "x.example"}
	first, _ := one.forward(from, now)
	second, _ := two.forward(first, now)
	third, _ := three.forward(second, now)
	if !strings.HasPrefix(second.Local, "SRS1=") || len(third.Local) != len(second.Local) {
		t.Fatalf("%s, %s", second, third)
	}
	for _, hop := range []struct {
		by *srs
		at address.Mailbox
	}{{three, third}, {two, second}} {
		back, err := hop.by.reverse(hop.at, now)
		if err != nil || back != first {
			t.Errorf("%s goes back to %s (%v), want %s", hop.at, back, err, first)
		}
	}
	if back, err := one.reverse(first, now); err != nil || back != from {
		t.Errorf("%s goes back to %s (%v)", first, back, err)
	}
}

func TestFormerSecret(t *testing.T) {
	now := time.Unix(1577836860, 0)
	old := newSRS(SRS{Domain: "y.example", Secret: "an old secret", MaxAge: 21 * day, HashLen: 4})
	bounce, _ := old.forward(address.Mailbox{Local: "sue", Domain: "x.example"}, now)
	s := newSRS(SRS{Domain: "y.example", Secret: "a new secret", Former: []string{"an old secret"}, MaxAge: 21 * day, HashLen: 4})
	if _, err := s.reverse(bounce, now); err != nil {
		t.Error(err)
	}
}

// The pairs of another implementation.
func TestVectors(t *testing.T) {
	text, err := os.ReadFile(corpora.Path(t, "srs-vectors", "vectors.json"))
	if err != nil {
		t.Fatal(err)
	}
	var vectors []struct {
		Secret  string
		Time    int64 `json:"time_unix"`
		Forward *struct {
			Sender string
			Domain string `json:"local_domain"`
		}
		Reverse, Result, Error string
	}
	if err := json.Unmarshal(text, &vectors); err != nil || len(vectors) != 5 {
		t.Fatal(len(vectors), err)
	}
	for _, v := range vectors {
		s := newSRS(SRS{Domain: "example.com", Secret: v.Secret, MaxAge: 21 * day, HashLen: 4})
		in := v.Reverse
		if v.Forward != nil {
			in = v.Forward.Sender
		}
		m, err := address.Parse(in)
		if err == nil && v.Forward != nil {
			m, _ = s.forward(m, time.Unix(v.Time, 0))
		} else if err == nil {
			m, err = s.reverse(m, time.Unix(v.Time, 0))
		}
		if (err != nil) != (v.Error != "") || err == nil && m.String() != v.Result {
			t.Errorf("%s: %s, %v; want %s %s", in, m, err, v.Result, v.Error)
		}
	}
}

func TestReadme(t *testing.T) { agenttest.CheckReadme(t, New, "README.md") }

// The host's facts with a relay for another organization: mail for it leaves.
func TestExternalRelayLeaves(t *testing.T) {
	a := agenttest.Start(t, New, `direction = "outbound"`+entries, withInfo, agenttest.WithHost(&agentpb.HostFacts{
		Name: "edge.example", AcceptedDomains: []*agentpb.AcceptedDomain{
			{Name: "y.example", Type: "authoritative"}, {Name: "*.partner.example", Type: "external_relay"},
		},
	}))
	_, got := routed(a.From("192.0.2.1"), "ann@corp.example", "r@eu.partner.example", "Subject: x\n\n")
	if got != "ann@y.example" {
		t.Errorf("leaves as %q", got)
	}
}
