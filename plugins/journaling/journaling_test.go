package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/posternmail/postern/sdk"
	"github.com/posternmail/postern/sdk/address"
	"github.com/posternmail/postern/sdk/agentpb"
	"github.com/posternmail/postern/sdk/agenttest"
	"github.com/posternmail/postern/sdk/mailfile"
	"github.com/posternmail/postern/sdk/match"
)

var withInfo = agenttest.WithInfo(info())

const message = "From: Ann <ann@x.example>\nSender: Bot <bot@x.example>\nTo: list@y.example\nSubject: =?utf-8?q?gr=C3=BC=C3=9Fe?=\n" +
	"Message-ID: <1@x.example>\n\nline one\n\nFrom here on\n"

// sent raises OnRouted for a message and answers with the reports as they enter the queue.
func sent(s *agenttest.Session, from, to, message string) (*agenttest.Outcome, []string) {
	s.Mail(from)
	for _, r := range strings.Fields(to) {
		s.To(r)
	}
	s.Data(message)
	o := s.Routing(sdk.OnRouted)
	return o, reports(o, message)
}

func reports(o *agenttest.Outcome, message string) []string {
	var all []string
	for _, p := range o.Answer().GetSpawns() {
		text := string(p.GetBefore())
		if p.GetIncludeOriginal() {
			text += strings.ReplaceAll(message, "\n", "\r\n")
		}
		all = append(all, text+string(p.GetAfter()))
	}
	return all
}

const everything = `
	mailbox = "journal@archive.example"
	rule "all" {}
`

func TestReport(t *testing.T) {
	a := agenttest.Start(t, New, everything, withInfo)
	o, got := sent(a.From("192.0.2.1"), "bounce@x.example", "r@y.example s@y.example", message)
	o.WantContinue().WantReason("journaled").WantSpawn("journal@archive.example").WantCount("reports", 1)
	if len(got) != 1 {
		t.Fatalf("%d reports", len(got))
	}
	p := o.Answer().GetSpawns()[0]
	if !p.GetDurable() || len(p.GetSender()) != 0 {
		t.Errorf("a report that can expire or bounce: %v", p)
	}
	head, body, _ := strings.Cut(got[0], "\r\n\r\n")
	for _, line := range []string{
		"From: <postmaster@edge.example>", "To: <journal@archive.example>", "Subject: =?utf-8?q?gr=C3=BC=C3=9Fe?=",
		"Date: Thu, 1 Jan 2026 12:00:00 +0000", "X-MS-Journal-Report:", "Postern-Journal-Part: 1 of 1",
	} {
		if !strings.Contains(head+"\r\n", line+"\r\n") {
			t.Errorf("no line %q in\n%s", line, head)
		}
	}
	envelope := "Sender: bot@x.example\r\nOn-Behalf-Of: ann@x.example\r\nSubject: grüße\r\nMessage-ID: <1@x.example>\r\n" +
		"Recipient: r@y.example\r\nRecipient: s@y.example\r\n"
	if want := textPart(envelope); !strings.Contains(body, "\r\n"+want[:40]) || !strings.Contains(body, "gr=C3=BC=C3=9Fe\r\nMessage-ID: <1@x.example>\r\nRecipient: r@y.example\r\nRecipient: s@y.example\r\n") {
		t.Errorf("the envelope is not right:\n%s", body)
	}
	if !strings.Contains(body, "\r\n\r\n"+strings.ReplaceAll(message, "\n", "\r\n")+"\r\n--") {
		t.Error("the message is not in the report as it was")
	}
	if rows := a.Rows("sets"); len(rows) != 1 || rows[0].Value != `{"mailbox":"journal@archive.example","parts":1,"message":"S1.2"}` {
		t.Errorf("rows %v", rows)
	}
}

// Where the header can be trusted a recipient is in To, Cc or neither.
func TestRecipientsOfUsers(t *testing.T) {
	a := agenttest.Start(t, New, everything, withInfo)
	_, got := sent(a.From("192.0.2.1").Authenticated("me"), "me@y.example", "a@y.example b@x.example c@x.example",
		"From: me@y.example\nTo: A <a@y.example>\nCc: b@x.example\nSubject: x\nMessage-ID: <2@y.example>\n\n")
	want := "Sender: me@y.example\r\nSubject: x\r\nMessage-ID: <2@y.example>\r\nTo: a@y.example\r\nCc: b@x.example\r\nBcc: c@x.example\r\n"
	if len(got) != 1 || !strings.Contains(got[0], want) {
		t.Errorf("%s", got)
	}
}

func mailbox(text string) address.Mailbox {
	m, _ := address.Parse(text)
	return m
}

func addresses(t *testing.T, entries ...string) *match.Addresses {
	t.Helper()
	list, _, err := match.NewAddresses(entries)
	if err != nil {
		t.Fatal(err)
	}
	return list
}

func TestGroups(t *testing.T) {
	e := &sdk.RoutingEvent{Event: sdk.Event{Session: &sdk.Session{}}}
	e.Sender.Mailbox = mailbox("s@x.example")
	e.Recipients = []sdk.EnvelopeRecipient{
		{Mailbox: mailbox("a@y.example"), ExpandedFrom: mailbox("all@y.example"), Original: mailbox("team@y.example")},
		{Mailbox: mailbox("b@y.example"), Original: mailbox("old@y.example")},
	}
	want := "Sender: s@x.example\r\nSubject: \r\nMessage-ID: \r\nRecipient: a@y.example, Expanded: all@y.example\r\n" +
		"Recipient: b@y.example, Forwarded: old@y.example\r\n"
	if got := envelopePart(e, e.Recipients); got != want {
		t.Errorf("%q", got)
	}
	for group, want := range map[string]bool{"all@y.example": true, "team@y.example": false, "y.example": true} {
		none := addresses(t)
		r := rule{direction: "all", addresses: none, senders: none, recipients: none, groups: addresses(t, group)}
		if got := r.matches(e, map[string]bool{"all": true}); got != want {
			t.Errorf("group %s: %v", group, got)
		}
	}
}

func TestRules(t *testing.T) {
	a := agenttest.Start(t, New, `
		rule "boss" {
			addresses = ["boss@y.example"]
			mailbox   = "boss@archive.example"
		}
		rule "from-x" {
			senders = ["x.example"]
			mailbox = "x@archive.example"
		}
		rule "to-sales" {
			recipients = ["sales@y.example"]
			senders    = ["*.z.example"]
			mailbox    = "sales@archive.example"
		}
		rule "out" {
			direction = "outbound"
			mailbox   = "out@archive.example"
		}
		rule "in" {
			direction = "internal"
			mailbox   = "in@archive.example"
		}
		rule "boss-too" {
			recipients = ["boss@y.example"]
			mailbox    = "boss@archive.example"
		}`, withInfo)
	for _, c := range []struct {
		user     bool
		from, to string
		want     string
	}{
		{false, "s@z.example", "r@y.example", ""},
		{false, "s@z.example", "Boss@y.example", "boss"},
		{false, "boss@y.example", "r@y.example", "boss"},
		{false, "s@x.example", "boss@y.example", "boss x"},
		{false, "s@a.z.example", "sales@y.example q@y.example", "sales"},
		{false, "s@z.example", "sales@y.example", ""},
		{true, "me@y.example", "r@q.example", "out"},
		{true, "me@y.example", "r@y.example", "in"},
		{true, "me@y.example", "r@y.example r@q.example", "out in"},
		{false, "s@x.example", "x@archive.example", ""}, // a journal mailbox
	} {
		s := a.From("192.0.2.1")
		if c.user {
			s.Authenticated("me")
		}
		o, _ := sent(s, c.from, c.to, "Subject: x\n\n")
		var got []string
		for _, p := range o.Answer().GetSpawns() {
			got = append(got, strings.TrimSuffix(string(p.GetRecipients()[0]), "@archive.example"))
		}
		if strings.Join(got, " ") != c.want {
			t.Errorf("%s to %s: journaled to %q, want %q", c.from, c.to, got, c.want)
		}
	}
}

func routing(origin string) *agentpb.Arguments {
	return &agentpb.Arguments{Event: &agentpb.Arguments_Routing{Routing: &agentpb.RoutingArguments{
		Copy: 1, Copies: 1, Attempt: 1, Origin: origin, Item: "I1",
	}}}
}

// A report is not journaled; a stranger cannot pass for one.
func TestNoLoop(t *testing.T) {
	a := agenttest.Start(t, New, everything, withInfo)
	_, got := sent(a.From("192.0.2.1"), "s@x.example", "r@y.example", message)
	s := a.From("192.0.2.1")
	s.Mail("").To("journal@archive.example")
	s.Data(got[0])
	if o := s.Raise(sdk.OnRouted, routing("spawn")); len(o.Answer().GetSpawns()) != 0 {
		t.Error("a report is journaled")
	}
	s = a.From("192.0.2.1")
	s.Mail("").To("r@y.example")
	s.Data(got[0])
	if o := s.Raise(sdk.OnRouted, routing("smtp")); len(o.Answer().GetSpawns()) != 1 {
		t.Error("mail that looks like a report evades journaling")
	}
}

// What the agent answers is the same when the event comes again, or a queue would hold two sets.
func TestSameAgain(t *testing.T) {
	var all [2][]string
	for i := range all {
		a := agenttest.Start(t, New, everything, withInfo)
		_, all[i] = sent(a.From("192.0.2.1"), "s@x.example", "r@y.example", message)
	}
	if len(all[0]) != 1 || all[0][0] != all[1][0] {
		t.Errorf("%s\n%s", all[0], all[1])
	}
}

// A message that an agent behind this one defers is not reported again for those who have been reported.
func TestReportedOnce(t *testing.T) {
	a := agenttest.Start(t, New, everything, withInfo)
	s := a.From("192.0.2.1")
	o, first := sent(s, "s@x.example", "r@y.example s@y.example", message)
	if again := reports(o.Routing(sdk.OnRouted), message); len(first) != 1 || len(again) != 0 {
		t.Errorf("%d and %d reports", len(first), len(again))
	}
	if rows := a.Rows("sets"); len(rows) != 1 {
		t.Errorf("rows %v", rows)
	}
	s.To("late@y.example")
	later := reports(s.Routing(sdk.OnRouted), message)
	if len(later) != 1 || !strings.Contains(later[0], "Recipient: late@y.example") || strings.Contains(later[0], "Recipient: r@y.example") {
		t.Errorf("%q", later)
	}
}

func TestAlternate(t *testing.T) {
	a := agenttest.Start(t, New, everything+`alternate_mailbox = "spare@archive.example"`, withInfo)
	report := func() string {
		s := a.From("192.0.2.1")
		s.Mail("").To("journal@archive.example")
		s.Data("Subject: x\nPostern-Journal-Set: 1\n\n")
		for _, e := range s.Raise(sdk.OnRouted, routing("spawn")).Answer().GetEdits() {
			return string(e.GetRewriteRecipient().GetAddress())
		}
		return ""
	}
	tried := func(kind sdk.EventKind) {
		s := a.From("192.0.2.1")
		s.Mail("").To("journal@archive.example")
		s.Data("Subject: x\n\n")
		s.Raise(kind, &agentpb.Arguments{Event: &agentpb.Arguments_Delivery{Delivery: &agentpb.DeliveryArguments{
			Results: []*agentpb.DeliveryResult{{Index: 0, Reply: &agentpb.Reply{Code: 451, Enhanced: "4.4.1"}}},
		}}})
	}
	steps := []struct {
		name string
		do   func()
		want string
	}{
		{"at first", func() {}, ""},
		{"deferred", func() { tried(sdk.OnDeferred) }, "spare@archive.example"},
		{"delivered", func() { tried(sdk.OnDelivered) }, ""},
		{"failed", func() { tried(sdk.OnFailed) }, "spare@archive.example"},
		{"an hour later", func() { a.Advance(61 * time.Minute) }, ""},
	}
	for _, s := range steps {
		s.do()
		if got := report(); got != s.want {
			t.Errorf("%s: the report goes to %q, want %q", s.name, got, s.want)
		}
	}
	for to, want := range map[string]string{"journal@archive.example": "spare@archive.example", "spare@archive.example": ""} {
		s := a.From("192.0.2.1")
		s.Mail("").To(to)
		s.Data("Subject: x\nPostern-Journal-Set: 1\n\n")
		got := ""
		for _, e := range s.Raise(sdk.OnRouted, routing("refused")).Answer().GetEdits() {
			got = string(e.GetRewriteRecipient().GetAddress())
		}
		if got != want {
			t.Errorf("a report that %s has refused goes to %q, want %q", to, got, want)
		}
	}
	if o, _ := sent(a.From("192.0.2.1"), "s@x.example", "spare@archive.example", "Subject: x\n\n"); len(o.Answer().GetSpawns()) != 0 {
		t.Error("mail to the alternate mailbox is journaled")
	}
}

func TestEmpty(t *testing.T) {
	if got := agenttest.Diagnostics(t, New, "", withInfo); len(got) != 1 || got[0] != "warning: no rule: nothing is journaled" {
		t.Errorf("%q", got)
	}
}

func TestEmptyDoesNothing(t *testing.T) {
	a := agenttest.Start(t, New, "", withInfo)
	o, got := sent(a.From("192.0.2.1"), "s@x.example", "r@y.example", message)
	if o.WantContinue(); len(got) != 0 {
		t.Errorf("%q", got)
	}
}

func TestMistakes(t *testing.T) {
	for config, want := range map[string]string{
		`rule "a" {}`:                 "rule[0]: no journal mailbox",
		everything + `key = "secret"`: "warning: key: a key of less than 8 octets can be guessed",
		everything + "rule \"twice\" {}\nrule \"twice\" {}":                "rule[2]: a second rule \"twice\"",
		everything + `alternate_mailbox = "journal@archive.example"`:       "alternate_mailbox: it is a journal mailbox itself",
		"mailbox = \"j@y.example\"\nrule \"a\" {\nsenders = [\"x@@y\"]\n}": "rule[0].senders[0]",
	} {
		t.Run(want, func(t *testing.T) {
			if got := agenttest.Diagnostics(t, New, config, withInfo); len(got) != 1 || !strings.HasPrefix(got[0], want) {
				t.Errorf("%q, want %q", got, want)
			}
		})
	}
}

func TestReadme(t *testing.T) { agenttest.CheckReadme(t, New, "README.md") }

// archived runs the agent and stores all it sends: the reports of a message to five recipients, two each, of
// another one, and the manifest.
func archived(t *testing.T) []string {
	a := agenttest.Start(t, New, everything+"recipients_per_report = 2\nkey = \"a secret key\"", withInfo)
	_, all := sent(a.From("192.0.2.1"), "s@x.example", "a@y.example b@y.example c@y.example d@y.example e@y.example", message)
	_, more := sent(a.From("192.0.2.1"), "s@x.example", "a@y.example", "Subject: x\n\nno line end")
	all = append(all, more...)
	o := a.Schedule()
	if a.Rows("sets") != nil {
		t.Error("the manifest leaves rows")
	}
	return append(all, reports(o, "")...)
}

func TestVerify(t *testing.T) {
	all := archived(t)
	if len(all) != 5 {
		t.Fatalf("%d messages", len(all))
	}
	for _, c := range []struct {
		name   string
		change func([]string) []string
		want   string // in the output
		err    string
	}{
		{"whole", func(m []string) []string { return m }, "4 reports of 2 sets, 1 manifests, 0 other messages", ""},
		{"twice", func(m []string) []string { return append(m, m...) }, "8 reports of 2 sets", ""},
		{"part", func(m []string) []string { return append(m[:1:1], m[2:]...) }, "part 2 of 3 (message S1.2)", "1 missing, 0 altered"},
		{"set", func(m []string) []string { return append(m[:3:3], m[4:]...) }, "(message S2.2), which a manifest lists", "1 missing, 0 altered"},
		{"body", func(m []string) []string { m[0] = strings.Replace(m[0], "line one", "line two", 1); return m }, "altered: body", "0 missing, 1 altered"},
		{"header", func(m []string) []string {
			m[2] = strings.Replace(m[2], "From: Ann", "From: Bea", 1)
			return m
		}, "altered: header", "0 missing, 1 altered"},
		{"envelope", func(m []string) []string {
			m[3] = strings.Replace(m[3], "Recipient: a@", "Recipient: b@", 1)
			return m
		}, "altered: envelope", "0 missing, 1 altered"},
		{"digests", func(m []string) []string {
			m[1] = strings.Replace(m[1], "body=", "body=0", 1)
			return m
		}, "the seal is wrong", "0 missing, 1 altered"},
		{"manifest", func(m []string) []string {
			head, body, _ := strings.Cut(m[4], "\r\n\r\n")
			m[4] = head + "\r\n\r\n" + body[strings.Index(body, "\n")+1:]
			return m
		}, "manifest", "0 missing, 1 altered"},
	} {
		messages := c.change(append([]string(nil), all...))
		for name, path := range map[string]string{
			"folder": folder(t, messages, "\r\n"), "maildir": maildir(t, messages), "mbox": mbox(t, messages),
		} {
			out, err := runVerify(t, path)
			if !strings.Contains(out, c.want) || (err == nil) != (c.err == "") || err != nil && !strings.Contains(err.Error(), c.err) {
				t.Errorf("%s, %s: %v\n%s", c.name, name, err, out)
			}
		}
	}
}

// A manifest that is missing shows in the one that follows it, and a page of one in the others.
func TestVerifyManifests(t *testing.T) {
	a := agenttest.Start(t, New, everything+"key = \"a secret key\"", withInfo)
	var all []string // report, manifest, report, manifest, ...
	for range 3 {
		_, made := sent(a.From("192.0.2.1"), "s@x.example", "a@y.example", message)
		all = append(all, made...)
		all = append(all, reports(a.Schedule(), "")...)
		a.Advance(24 * time.Hour)
	}
	if len(all) != 6 {
		t.Fatalf("%d messages", len(all))
	}
	paged := func(m []string, n int, from, to string) []string {
		m[n] = strings.Replace(m[n], from, to, 1)
		return m
	}
	for _, c := range []struct {
		name    string
		change  func([]string) []string
		missing string
	}{
		{"whole", func(m []string) []string { return m }, ""},
		{"the first day is elsewhere", func(m []string) []string { return m[2:] }, ""},
		{"a day", func(m []string) []string { return append(m[:2:2], m[4:]...) }, "missing: the manifest of turn 20"},
		{"a page", func(m []string) []string { return paged(m, 3, "page=1; more=false", "page=2; more=false") }, "missing: page 1 of the manifest of turn 20"},
		{"the last page", func(m []string) []string { return paged(m, 5, "more=false", "more=true") }, "missing: page 2 of the manifest of turn 20"},
	} {
		archive := newArchive("")
		for i, m := range c.change(append([]string(nil), all...)) {
			archive.message(context.Background(), fmt.Sprint(i), []byte(m))
		}
		var out bytes.Buffer
		if err := archive.tell(&out); (err == nil) != (c.missing == "") || !strings.Contains(out.String(), c.missing) || strings.Count(out.String(), "missing:") > 1 {
			t.Errorf("%s: %v\n%s", c.name, err, &out)
		}
	}
	if out, err := runVerify(t, folder(t, paged(append([]string(nil), all...), 3, "more=false", "more=true"), "\r\n")); err == nil || !strings.Contains(out, "the seal is wrong") {
		t.Errorf("%v\n%s", err, out)
	}
}

// Each journal mailbox gets every page of a turn, or one that is missing would not be known from one that never was.
func TestManifestPages(t *testing.T) {
	a := agenttest.Start(t, New, everything, withInfo)
	for page, more := range []bool{true, false} {
		schedule := &agentpb.ScheduleArguments{LastUnixNanos: 1e18, Page: uint32(page), More: more}
		o := a.From("192.0.2.1").Raise(sdk.OnSchedule, &agentpb.Arguments{Event: &agentpb.Arguments_Schedule{Schedule: schedule}})
		want := fmt.Sprintf("Postern-Journal-Turn: 20010909T014640.000000000Z; page=%d; more=%t\r\n", page+1, more)
		if made := reports(o, ""); len(made) != 1 || !strings.Contains(made[0], want) {
			t.Errorf("page %d: %q", page, made)
		}
	}
}

func runVerify(t *testing.T, path string) (string, error) {
	t.Helper()
	a := newArchive("a secret key")
	if err := a.read(context.Background(), path); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	err := a.tell(&out)
	return out.String(), err
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func folder(t *testing.T, messages []string, end string) string {
	dir := t.TempDir()
	for i, m := range messages {
		write(t, filepath.Join(dir, string(rune('a'+i))+".eml"), strings.ReplaceAll(m, "\r\n", end))
	}
	return dir
}

func maildir(t *testing.T, messages []string) string {
	dir := t.TempDir()
	for _, sub := range []string{"cur", "new", "tmp"} {
		if err := os.Mkdir(filepath.Join(dir, sub), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	for i, m := range messages {
		write(t, filepath.Join(dir, []string{"cur", "new"}[i%2], string(rune('a'+i))), strings.ReplaceAll(m, "\r\n", "\n"))
	}
	write(t, filepath.Join(dir, "tmp", "x"), messages[0][:200])
	return dir
}

// mbox quotes lines that begin with From.
func mbox(t *testing.T, messages []string) string {
	var b strings.Builder
	for _, m := range messages {
		b.WriteString("From MAILER-DAEMON Thu Jan  1 12:00:00 2026\n")
		for line := range strings.Lines(strings.ReplaceAll(m, "\r\n", "\n")) {
			if strings.HasPrefix(strings.TrimLeft(line, ">"), "From ") {
				b.WriteString(">")
			}
			b.WriteString(line)
		}
		b.WriteString("\n")
	}
	path := filepath.Join(t.TempDir(), "journal.mbox")
	write(t, path, b.String())
	return path
}

func TestVerifyCommand(t *testing.T) {
	var out bytes.Buffer
	dir := t.TempDir()
	if err := verify(context.Background(), &sdk.Invocation{Out: &out, Args: []string{dir}}); err != nil || !strings.Contains(out.String(), "0 reports") {
		t.Errorf("%v %s", err, out.String())
	}
	if err := verify(context.Background(), &sdk.Invocation{Out: &out}); err == nil {
		t.Error("no archive is named, and nothing is said")
	}
	if err := verify(context.Background(), &sdk.Invocation{Out: &out, Args: []string{dir + "/none"}}); err == nil {
		t.Error("an archive that is not there is whole")
	}
}

// Archives may hold anything.
func FuzzVerify(f *testing.F) {
	f.Add([]byte("From x\nPostern-Journal-Set: 1\nPostern-Journal-Part: 1 of 2\nContent-Type: multipart/mixed; boundary=b\n\n--b\n\nx\n--b\n\ny\n--b--\n"))
	f.Add([]byte("Postern-Journal-Manifest: 1\n\n1 2 3\n"))
	f.Add([]byte("To: <a@b.example>\nPostern-Journal-Manifest: 1\nPostern-Journal-Turn: 0; page=2; more=true; after=1\n\n1 2 3\n"))
	f.Add([]byte("Postern-Journal-Set: 1\nPostern-Journal-Part: 1 of 2000000000\n\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		a := newArchive("")
		for _, m := range mailfile.Split(text) {
			a.message(context.Background(), "x", m)
		}
		_ = a.tell(&bytes.Buffer{})
	})
}
