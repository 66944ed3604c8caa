package main

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/posternmail/postern/sdk"
	"github.com/posternmail/postern/sdk/agenttest"
	"github.com/posternmail/postern/sdk/match"
)

// wantDenied wants the reply to the letter.
func wantDenied(t *testing.T, o *agenttest.Outcome) *agenttest.Outcome {
	t.Helper()
	o.Want(554, "5.1.0")
	if text := o.Answer().GetVerdicts()[0].GetReply().GetText(); text != "Sender denied" {
		t.Errorf("text %q", text)
	}
	return o
}

func start(t *testing.T, config string, options ...agenttest.Option) *agenttest.Agent {
	t.Helper()
	return agenttest.Start(t, New, config, append(options, agenttest.WithInfo(info()))...)
}

// atHeaders is the outcome of OnEndOfHeaders alone, where only some recipients are refused.
func atHeaders(s *agenttest.Session, message string) *agenttest.Outcome {
	s.Data(message)
	return s.Raise(sdk.OnEndOfHeaders, nil)
}

func TestBlockedAtMail(t *testing.T) {
	a := start(t, `blocked_senders = ["Spam@x.example", "bad.example", "*.worse.example"]`, agenttest.KillBetween())
	for sender, entry := range map[string]string{
		"spam@X.example": "spam@x.example", "any@bad.example": "bad.example", "any@deep.in.worse.example": "*.worse.example",
	} {
		o := wantDenied(t, a.From("192.0.2.1").Mail(sender)).WantVerdict("reject").WantReason(reasonListed)
		if data := o.Answer().GetVerdicts()[0].GetData(); data != entry {
			t.Errorf("%s: data %q, want %q", sender, data, entry)
		}
	}
	for _, sender := range []string{"other@x.example", "any@sub.bad.example", "any@worse.example", "any@notbad.example", ""} {
		a.From("192.0.2.1").Mail(sender).WantContinue()
	}
}

func TestBlankSender(t *testing.T) {
	a := start(t, `block_blank_senders = true`)
	wantDenied(t, a.From("192.0.2.1").Mail("")).WantReason(reasonBlank)
	a.From("192.0.2.1").Mail("a@x.example").WantContinue()
}

func TestDisconnect(t *testing.T) {
	a := start(t, "blocked_senders = [\"x.example\"]\ndisconnect = true")
	wantDenied(t, a.From("192.0.2.1").Mail("a@x.example")).WantVerdict("disconnect")
}

func TestStamp(t *testing.T) {
	a := start(t, "blocked_senders = [\"x.example\"]\naction = \"stamp\"")
	s := a.From("192.0.2.1")
	s.Mail("a@x.example").WantContinue().WantStamp("status", reasonListed).WantReason(reasonListed)
	s.To("r@y.example")
	s.Data("From: a@z.example\n\nx\n").WantContinue()
	s.Mail("a@z.example").WantContinue()
	s.Data("From: a@x.example\n\nx\n").WantContinue().WantStamp("status", reasonListed)
}

func TestBlockedInHeader(t *testing.T) {
	a := start(t, `blocked_senders = ["spam@x.example"]`)
	for _, header := range []string{
		"From: Spam <spam@X.example>", "From: ok@z.example, spam@x.example", "From: ok@z.example\nSender: spam@x.example",
		"From: =?utf-8?q?P=C3=A4?= <\"spam\"@x.example>", "From: ok@z.example\nFrom: spam@x.example", "From: Friends: spam@x.example;",
		"From: spam@x.example.", "From: <@z.example:spam@x.example>", "From: spam@x\n .example", "From: \"Spam <spam@x.example>", // do not parse
	} {
		s := a.From("192.0.2.1")
		s.Mail("ok@z.example").WantContinue()
		s.To("r@y.example").WantContinue()
		wantDenied(t, s.Data(header+"\n\nx\n")).WantReason(reasonListed)
	}
	for _, header := range []string{"From: ok@z.example", "Subject: no sender", "From: <<<@@@,,,", "Reply-To: spam@x.example\nFrom: ok@z.example"} {
		s := a.From("192.0.2.1")
		s.Mail("ok@z.example")
		s.To("r@y.example")
		s.Data(header + "\n\nx\n").WantContinue()
	}
}

func TestTable(t *testing.T) {
	a := start(t, ``)
	a.PutRow("blocked", "spam@x.example", `{"reason":"reported"}`, time.Hour)
	a.PutRow("blocked", "bad.example", `{}`, 0)
	s := a.From("192.0.2.1")
	wantDenied(t, s.Mail("Spam@x.example")).WantReason(reasonTable)
	wantDenied(t, s.Mail("any@bad.example")).WantReason(reasonTable)
	s.Mail("ok@x.example").WantContinue()
	s.To("r@y.example")
	wantDenied(t, s.Data("From: any@bad.example\n\nx\n")).WantReason(reasonTable)
	a.Advance(2 * time.Hour)
	s.Mail("spam@x.example").WantContinue()
}

func TestRecipientBlocked(t *testing.T) {
	a := start(t, ``)
	a.PutRow("safelist", "ann@y.example|spam@x.example", `{"list":"blocked"}`, 0)
	a.PutRow("safelist", "ann@y.example|bad.example", `{"list":"blocked"}`, 0)
	a.PutRow("safelist", "ann@y.example|friend@bad.example", `{"list":"safe"}`, 0)
	a.PutRow("safelist", "bob@y.example|spam@x.example", `{"list":"safe"}`, 0)
	s := a.From("192.0.2.1")
	s.Mail("spam@x.example").WantContinue()
	wantDenied(t, s.To("Ann@y.example")).WantVerdict("reject").WantReason(reasonRecipient)
	s.To("bob@y.example").WantContinue()
	s.To("carl@y.example").WantContinue()
	s.Mail("any@bad.example")
	wantDenied(t, s.To("ann@y.example"))
	s.Mail("friend@bad.example")
	s.To("ann@y.example").WantContinue()
	s.Mail("")
	s.To("ann@y.example").WantContinue()

	// The header's sender, once some recipients mind and once all do.
	s.Mail("envelope@x.example")
	s.To("ann@y.example").WantContinue()
	s.To("bob@y.example").WantContinue()
	atHeaders(s, "From: spam@x.example\n\nx\n").WantFor("ann@y.example", 554, "5.1.0").WantVerdictFor("bob@y.example", "continue")
	s.Mail("envelope@x.example")
	s.To("ann@y.example")
	wantDenied(t, s.Data("From: spam@x.example\n\nx\n"))
}

func TestRecipientBlockedDelete(t *testing.T) {
	a := start(t, `recipient_action = "delete"`)
	a.PutRow("safelist", "ann@y.example|x.example", `{"list":"blocked"}`, 0)
	s := a.From("192.0.2.1")
	s.Mail("spam@x.example")
	s.To("ann@y.example").WantVerdict("discard").WantReason(reasonRecipient)
	s.Mail("envelope@z.example")
	s.To("ann@y.example").WantContinue()
	s.To("bob@y.example").WantContinue()
	atHeaders(s, "From: spam@x.example\n\nx\n").WantVerdictFor("ann@y.example", "discard").WantVerdictFor("bob@y.example", "continue")
}

func TestFiles(t *testing.T) {
	file := filepath.Join(os.TempDir(), "senderfilter-test-list") // the same in the test and in its agents
	write(t, file, "# senders\nspam@x.example # reported\n\n*.bad.example\n")
	t.Cleanup(func() { os.Remove(file) })
	a := start(t, `blocked_senders_files = ["`+file+`"]`)
	wantDenied(t, a.From("192.0.2.1").Mail("spam@x.example")).WantReason(reasonListed)
	wantDenied(t, a.From("192.0.2.1").Mail("a@b.bad.example"))
	a.From("192.0.2.1").Mail("a@x.example").WantContinue()
}

func write(t *testing.T, file, text string) {
	t.Helper()
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// A row of "*.domain" blocks the subdomains of the domain, in the envelope and in the header.
func TestTableSubdomains(t *testing.T) {
	a := start(t, ``, agenttest.KillBetween())
	a.PutRow("blocked", "*.bad.example", `{}`, 0)
	s := a.From("192.0.2.1")
	for _, sender := range []string{"any@Sub.Bad.example", "any@deep.sub.bad.example"} {
		o := wantDenied(t, s.Mail(sender)).WantReason(reasonTable)
		if data := o.Answer().GetVerdicts()[0].GetData(); data != "*.bad.example" {
			t.Errorf("%s: data %q", sender, data)
		}
	}
	for _, sender := range []string{"any@bad.example", "any@notbad.example", "any@example", "any@[192.0.2.1]"} {
		s.Mail(sender).WantContinue()
	}
	s.To("r@y.example")
	wantDenied(t, s.Data("From: any@sub.bad.example\n\nx\n")).WantReason(reasonTable)
	s.Mail("any@other.example").WantContinue()
	s.To("r@y.example")
	s.Data("From: any@bad.example\n\nx\n").WantContinue()
}

func TestConfiguration(t *testing.T) {
	for config, want := range map[string]string{
		``: "",
		`blocked_senders = ["a@x.example", "@@"]`:       `blocked_senders[1]: "@@": invalid address`,
		`blocked_senders_files = ["/nonexistent/list"]`: `blocked_senders_files[0]: open /nonexistent/list`,
		`action = "drop"`:                       `action: `,
		"action = \"stamp\"\ndisconnect = true": `disconnect: needs action = "reject"`,
	} {
		got := agenttest.Diagnostics(t, New, config)
		if want == "" && len(got) > 0 || want != "" && !slices.ContainsFunc(got, func(d string) bool { return strings.Contains(d, want) }) {
			t.Errorf("%s: %q, want %q", config, got, want)
		}
	}
}

func TestReadme(t *testing.T) { agenttest.CheckReadme(t, New, "README.md") }

func FuzzLines(f *testing.F) {
	f.Add("a@x.example # c\n\xef\xbb\xbf*.y\n")
	f.Add("\"a b\"@x\n@\n")
	f.Fuzz(func(t *testing.T, text string) {
		list := new(match.Addresses)
		_, _ = match.ReadLines(strings.NewReader(text), func(line string) error { return readLine(list, line) })
		if list.Len() > strings.Count(text, "\n")+1 {
			t.Errorf("%d entries", list.Len())
		}
	})
}
