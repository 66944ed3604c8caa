package main

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/posternmail/postern/sdk"
	"github.com/posternmail/postern/sdk/agentpb"
	"github.com/posternmail/postern/sdk/agenttest"
)

var host = agenttest.WithHost(&agentpb.HostFacts{
	Name: "edge.example", Version: sdk.Version,
	AcceptedDomains: []*agentpb.AcceptedDomain{
		{Name: "y.example", Type: "authoritative"}, {Name: "*.y.example", Type: "authoritative"},
		{Name: "relay.y.example", Type: "internal_relay"}, {Name: "z.example", Type: "internal_relay"},
		{Name: "nodir.example", Type: "authoritative"},
	},
	InternalSmtpServers: []string{"198.51.100.0/24"},
})

// start an agent with a directory that knows ann.
func start(t *testing.T, config string, options ...agenttest.Option) *agenttest.Agent {
	t.Helper()
	a := agenttest.Start(t, New, config, append(options, agenttest.WithInfo(info()), host)...)
	for _, key := range []string{"@y.example", "@sub.y.example", "@relay.y.example", "@z.example"} {
		a.PutRow("recipients", key, `{"domain":true}`, 0)
	}
	a.PutRow("recipients", "ann@y.example", `{"address":"Ann@y.example"}`, 0)
	a.PutRow("recipients", "hashed@y.example", `{}`, 0)
	return a
}

func wantUnknown(t *testing.T, o *agenttest.Outcome) *agenttest.Outcome {
	t.Helper()
	o.Want(550, "5.1.1")
	if text := o.Answer().GetVerdicts()[0].GetReply().GetText(); text != "User unknown" {
		t.Errorf("text %q", text)
	}
	return o
}

func TestValidation(t *testing.T) {
	a := start(t, ``, agenttest.KillBetween())
	for _, known := range []string{"ann@y.example", "ANN@Y.example", "hashed@y.example", "any@relay.y.example", "any@z.example",
		"any@nodir.example", "any@elsewhere.example", "Postmaster@y.example", "postmaster"} {
		a.From("192.0.2.1").Rcpt("s@x.example", known).WantVerdict("continue")
	}
	for i, missing := range []string{"bob@y.example", "ann@sub.y.example", "ann+tag@y.example", `"ann "@y.example`} {
		s := a.From(fmt.Sprintf("192.0.2.%d", 10+i))
		wantUnknown(t, s.Rcpt("s@x.example", missing)).WantVerdict("reject").WantReason(reasonUnknown)
		s.Rcpt("", missing).Want(550, "5.1.1") // notifications too
	}
}

// One bad recipient costs the others nothing.
func TestOthersStay(t *testing.T) {
	a := start(t, ``)
	s := a.From("192.0.2.1")
	s.Mail("s@x.example").WantContinue()
	s.To("ann@y.example").WantContinue()
	wantUnknown(t, s.To("bob@y.example"))
	s.To("hashed@y.example").WantContinue()
	s.Data("Subject: x\n\nx\n").WantContinue()
}

func TestBlockList(t *testing.T) {
	a := start(t, `blocked_recipients = ["ann@y.example", "*.z.example", "nodir.example"]`)
	for _, r := range []string{"Ann@y.example", "any@deep.z.example", "any@nodir.example"} {
		wantUnknown(t, a.From("192.0.2.1").Rcpt("s@x.example", r)).WantReason(reasonBlocked)
	}
	a.From("192.0.2.1").Rcpt("s@x.example", "hashed@y.example").WantContinue()
	if rows := a.Rows("sources"); len(rows) > 0 {
		t.Errorf("blocked recipients are counted: %v", rows)
	}
}

func TestValidationOff(t *testing.T) {
	a := start(t, `validate = false`)
	a.From("192.0.2.1").Rcpt("s@x.example", "bob@y.example").WantVerdict("continue")
}

// While a source asks for more bad ones the good ones are not answered faster than the bad ones.
func TestTarpit(t *testing.T) {
	a := start(t, ``)
	s := a.From("192.0.2.1")
	s.Rcpt("s@x.example", "ann@y.example").WantVerdict("continue")
	wantUnknown(t, s.Rcpt("s@x.example", "bob@y.example"))
	o := s.Rcpt("s@x.example", "ann@y.example").WantVerdict("tarpit")
	if d := o.Answer().GetVerdicts()[0].GetDelayMillis(); d != 5000 {
		t.Errorf("delay of %d ms", d)
	}
	a.From("192.0.2.2").Rcpt("s@x.example", "ann@y.example").WantVerdict("continue")
	s.Rcpt("s@x.example", "ann@y.example").WantVerdict("tarpit")
	s.Rcpt("s@x.example", "ann@y.example").WantVerdict("continue") // two good ones against one bad one
	wantUnknown(t, s.Rcpt("s@x.example", "carl@y.example"))
	wantUnknown(t, s.Rcpt("s@x.example", "dora@y.example"))
	s.Rcpt("s@x.example", "ann@y.example").WantVerdict("tarpit")
	a.Advance(61 * time.Minute)
	s.Rcpt("s@x.example", "ann@y.example").WantVerdict("continue")
}

func TestTarpitOff(t *testing.T) {
	a := start(t, `tarpit = "0s"`)
	s := a.From("192.0.2.1")
	wantUnknown(t, s.Rcpt("s@x.example", "bob@y.example"))
	s.Rcpt("s@x.example", "ann@y.example").WantVerdict("continue")
}

// ask for n unknown recipients.
func ask(t *testing.T, a *agenttest.Agent, ip string, n int) (last *agenttest.Outcome) {
	t.Helper()
	for i := range n {
		last = a.From(ip).Rcpt("s@x.example", fmt.Sprintf("guess%d@y.example", i))
		wantUnknown(t, last)
	}
	return last
}

func TestHarvest(t *testing.T) {
	a := start(t, `harvest_limit = 5`, agenttest.KillBetween())
	ask(t, a, "192.0.2.7", 4).WantVerdict("reject")
	ask(t, a, "192.0.2.8", 1).WantVerdict("reject") // another source
	o := ask(t, a, "192.0.2.7", 1).WantVerdict("disconnect").WantReason(reasonHarvest).WantCount("harvests", 1)
	if data := o.Answer().GetVerdicts()[0].GetData(); data != "5 unknown recipients in 1h0m0s" {
		t.Errorf("data %q", data)
	}
	rows := a.Rows("ip-block")
	if len(rows) != 1 || rows[0].Key != "192.0.2.7/32" || !rows[0].Expires.Equal(a.Now().Add(24*time.Hour)) ||
		rows[0].Value != `{"reason":"DirectoryHarvest: 5 unknown recipients in 1h0m0s","by":"recipientfilter"}` {
		t.Errorf("ip-block %+v", rows)
	}
	if rows := a.Rows("reputation"); len(rows) != 1 || rows[0].Key != "192.0.2.7" || rows[0].Value != `{"harvests":1}` {
		t.Errorf("reputation %+v", rows)
	}
	if rows := a.Rows("sources"); len(rows) != 1 || rows[0].Key != "192.0.2.8" {
		t.Errorf("sources %+v", rows)
	}
}

func TestHarvestIPv6(t *testing.T) {
	a := start(t, `harvest_limit = 3`)
	ask(t, a, "2001:db8:1:2::1", 1)
	ask(t, a, "2001:db8:1:2:3::1", 1)
	ask(t, a, "2001:db8:1:2:ffff::9", 1).WantVerdict("disconnect")
	if rows := a.Rows("ip-block"); len(rows) != 1 || rows[0].Key != "2001:db8:1:2::/64" {
		t.Errorf("ip-block %+v", rows)
	}
}

// The window begins with the first unknown recipient and is not drawn out by more.
func TestWindow(t *testing.T) {
	a := start(t, "harvest_limit = 3\nharvest_window = \"10m\"")
	ask(t, a, "192.0.2.7", 1)
	a.Advance(6 * time.Minute)
	ask(t, a, "192.0.2.7", 1)
	a.Advance(6 * time.Minute)
	ask(t, a, "192.0.2.7", 2).WantVerdict("reject")
	ask(t, a, "192.0.2.7", 1).WantVerdict("disconnect")
}

// A source that knows more than it guesses is a large sender with a stale list.
func TestLargeSender(t *testing.T) {
	a := start(t, `harvest_limit = 3`)
	ask(t, a, "192.0.2.7", 1)
	for range 10 {
		a.From("192.0.2.7").Rcpt("s@x.example", "ann@y.example").WantContinue()
	}
	ask(t, a, "192.0.2.7", 8).WantVerdict("reject")
	ask(t, a, "192.0.2.7", 1).WantVerdict("disconnect")
}

func TestNotCounted(t *testing.T) {
	a := start(t, "harvest_limit = 1\ntrusted = [\"203.0.113.0/24\"]")
	ask(t, a, "203.0.113.7", 3).WantVerdict("reject")
	ask(t, a, "198.51.100.7", 3).WantVerdict("reject") // internal_smtp_servers
	s := a.From("192.0.2.7").Authenticated("ann")
	for range 3 {
		wantUnknown(t, s.Rcpt("ann@y.example", "typo@y.example")).WantVerdict("reject")
	}
	if rows := a.Rows("sources"); len(rows) > 0 {
		t.Errorf("sources %+v", rows)
	}
}

func TestBlockOff(t *testing.T) {
	a := start(t, "harvest_limit = 1\nharvest_block = \"0s\"")
	ask(t, a, "192.0.2.7", 1).WantVerdict("disconnect")
	if rows := append(a.Rows("ip-block"), a.Rows("reputation")...); len(rows) > 0 {
		t.Errorf("rows %+v", rows)
	}
}

func TestLimitOff(t *testing.T) {
	a := start(t, `harvest_limit = 0`)
	ask(t, a, "192.0.2.7", 30).WantVerdict("reject")
}

func TestConfiguration(t *testing.T) {
	for config, want := range map[string]string{
		``:                               "",
		`blocked_recipients = ["@"]`:     `blocked_recipients[0]: "@": invalid address`,
		`trusted = ["192.0.2.0/24","x"]`: `trusted[1]: "x" is no network`,
		`harvest_window = "1s"`:          `harvest_window: 1s is less than 1m`,
		`harvest_limit = -1`:             `harvest_limit: `,
	} {
		got := agenttest.Diagnostics(t, New, config)
		if want == "" && len(got) > 0 || want != "" && !slices.ContainsFunc(got, func(d string) bool { return strings.Contains(d, want) }) {
			t.Errorf("%s: %q, want %q", config, got, want)
		}
	}
}

func TestNothingToValidate(t *testing.T) {
	relay := agenttest.WithHost(&agentpb.HostFacts{AcceptedDomains: []*agentpb.AcceptedDomain{{Name: "z.example", Type: "internal_relay"}}})
	got := agenttest.Diagnostics(t, New, ``, relay)
	if len(got) != 1 || !strings.HasPrefix(got[0], "warning: validate: no accepted domain is authoritative") {
		t.Errorf("%q", got)
	}
}

func TestReadme(t *testing.T) { agenttest.CheckReadme(t, New, "README.md") }
