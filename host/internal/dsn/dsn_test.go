package dsn

import (
	"bytes"
	"encoding/json"
	"flag"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/posternmail/postern/host/internal/envelope"
	"github.com/posternmail/postern/host/internal/queue"
	"github.com/posternmail/postern/sdk/address"
)

var update = flag.Bool("update", false, "write the golden files anew")

func mailbox(s string) address.Mailbox {
	m, err := address.Parse(s)
	if err != nil {
		panic(err)
	}
	return m
}

var start = time.Date(2026, 3, 4, 5, 6, 7, 0, time.UTC)

func request(kind Kind, change func(*envelope.Mail)) Request {
	m := &envelope.Mail{
		ID:      "06a1.1",
		Sender:  envelope.Sender{Address: mailbox("ann@source.example"), EnvID: "QQ314159"},
		Traffic: envelope.Outbound,
		Header:  []byte("From: ann@source.example\r\nSubject: the\r\n\tplan\r\nMessage-ID: <1@source.example>\r\n"),
		Body:    envelope.MemoryBody([]byte("Hello\r\n")),
	}
	m.AddRecipient(&envelope.Recipient{
		Address: mailbox("bob@dest.example"),
		ORCPT:   "rfc822;robert@dest.example",
		Remote:  "mx.dest.example [192.0.2.1]:25",
		Reply:   envelope.Reply{Code: 550, Enhanced: "5.1.1", Text: "no such user here, and this is a long explanation of why that might be the case"},
	})
	m.AddRecipient(&envelope.Recipient{
		Address: mailbox("eve@dest.example"),
		Remote:  "192.0.2.7:25",
		Reply:   envelope.Reply{Code: 554, Text: "no\x07 way \xff"},
	})
	if change != nil {
		change(m)
	}
	return Request{
		Item: &queue.Item{ID: "06a1.1", Message: "06a1.1", Mail: m, Prefix: []byte("Received: from ann by edge\r\n"),
			Session: envelope.Session{ID: "06a1", Helo: "client.source.example"}, Received: start},
		Kind:       kind,
		Recipients: m.Recipients,
		Host:       "edge.test.example",
		Postmaster: "postmaster@test.example",
		Now:        start.Add(time.Hour),
		RetryUntil: start.Add(48 * time.Hour),
		Expires:    start.Add(49 * time.Hour),
	}
}

func all(n envelope.Notify) func(*envelope.Mail) {
	return func(m *envelope.Mail) {
		for _, r := range m.Recipients {
			r.Notify = n
		}
	}
}

func unicode(m *envelope.Mail) {
	m.Sender.SMTPUTF8 = true
	m.Sender.Address = mailbox("änn@source.example")
	m.Header = []byte("Subject: Grüße\r\n")
	m.Recipients[0].Address = mailbox("böb@dest.example")
}

func TestGolden(t *testing.T) {
	ok := func(m *envelope.Mail) {
		all(envelope.NotifySuccess)(m)
		m.Recipients[0].Reply = envelope.Reply{Code: 250, Enhanced: "2.0.0", Text: "queued"}
		m.Recipients[1].Reply = envelope.Reply{}
	}
	tests := []struct {
		name   string
		kind   Kind
		change func(*envelope.Mail)
	}{
		{"failure", Failure, nil},
		{"failure-headers", Failure, func(m *envelope.Mail) { m.Sender.Ret = "HDRS" }},
		{"failure-8bit", Failure, func(m *envelope.Mail) { m.Body = envelope.MemoryBody([]byte("gr\xfc\xdfe\r\n")) }},
		{"failure-bare-line-ends", Failure, func(m *envelope.Mail) {
			m.Header = []byte("Subject: a\nX: b\rc\r\n")
			m.Body = envelope.MemoryBody([]byte("Hello\n.\r\n"))
		}},
		{"failure-subject", Failure, func(m *envelope.Mail) {
			m.Header = []byte("Subject: =?utf-8?q?Gr=C3=BC=C3=9Fe?= " + strings.Repeat("und sch\xc3\xb6ne ", 12) + "\r\n")
		}},
		{"failure-unicode", Failure, unicode},
		{"failure-unicode-headers", Failure, func(m *envelope.Mail) { unicode(m); m.Sender.Ret = "HDRS" }},
		{"failure-unicode-recipient-ascii-sender", Failure, func(m *envelope.Mail) { m.Recipients[0].Address = mailbox("böb@dest.example") }},
		{"delay", Delay, func(m *envelope.Mail) {
			m.Recipients[0].Reply = envelope.Reply{Code: 451, Enhanced: "4.4.1", Text: "connection refused"}
		}},
		{"success", Success, ok},
		{"relayed", Relayed, ok},
		{"expanded", Expanded, ok},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			item := Compose(request(tt.kind, tt.change))
			got := text(item)
			file := filepath.Join("testdata", tt.name+".eml")
			if *update {
				if err := os.WriteFile(file, got, 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got, want) {
				t.Errorf("differs from %s; with -update it is written anew\n%s", file, got)
			}
			checkLines(t, got)
		})
	}
}

func text(item *queue.Item) []byte {
	return append(append(append([]byte(nil), item.Mail.Header...), "\r\n"...), item.Mail.Body.Bytes()...)
}

func checkLines(t *testing.T, msg []byte) {
	t.Helper()
	for line := range bytes.Lines(msg) {
		if !bytes.HasSuffix(line, []byte("\r\n")) || bytes.Count(line, []byte("\r")) != 1 || len(line) > 1000 {
			t.Errorf("bad line %q", line)
		}
	}
}

func TestNothingIsOwed(t *testing.T) {
	null := func(m *envelope.Mail) { m.Sender.Address = address.Mailbox{} }
	tests := []struct {
		name   string
		kind   Kind
		change func(*envelope.Mail)
		owed   bool
	}{
		{"failure", Failure, nil, true},
		{"delay", Delay, nil, true},
		{"success", Success, nil, false},
		{"relayed", Relayed, nil, false},
		{"null sender", Failure, null, false},
		{"never", Failure, all(envelope.NotifyNever), false},
		{"success only, failure", Failure, all(envelope.NotifySuccess), false},
		{"success only, success", Success, all(envelope.NotifySuccess), true},
		{"success only, relayed", Relayed, all(envelope.NotifySuccess), true},
		{"failure only, delay", Delay, all(envelope.NotifyFailure), false},
	}
	for _, tt := range tests {
		if got := Compose(request(tt.kind, tt.change)) != nil; got != tt.owed {
			t.Errorf("%s: owed %v, want %v", tt.name, got, tt.owed)
		}
	}
}

func TestOnlyRecipientsOwedAreNamed(t *testing.T) {
	item := Compose(request(Failure, func(m *envelope.Mail) { m.Recipients[0].Notify = envelope.NotifyNever }))
	if body := string(item.Mail.Body.Bytes()); strings.Contains(body, "bob@dest.example") || !strings.Contains(body, "eve@dest.example") {
		t.Error(body)
	}
}

func TestEnvelopeOfANotification(t *testing.T) {
	item := Compose(request(Failure, nil))
	again := Compose(request(Failure, nil))
	m := item.Mail
	switch {
	case item.ID != again.ID || !bytes.Equal(text(item), text(again)):
		t.Error("the same request gives different items")
	case !m.Sender.Address.IsNull() || len(m.Recipients) != 1 || m.Recipients[0].Address != mailbox("ann@source.example"):
		t.Errorf("from %q to %v", m.Sender.Address, m.Recipients)
	case m.Recipients[0].Notify != envelope.NotifyNever:
		t.Error("a notification may cause another one")
	case m.Traffic != envelope.Internal || item.Origin != queue.OriginDSN || item.Parent != "06a1.1":
		t.Errorf("%v %v %v", m.Traffic, item.Origin, item.Parent)
	}
	other := request(Failure, nil)
	other.Recipients = other.Recipients[1:]
	if Compose(other).ID == item.ID {
		t.Error("notifications about different recipients have one id")
	}
	second := request(Failure, nil)
	second.Ordinal = 1
	if Compose(second).ID == item.ID {
		t.Error("two notifications have one id")
	}
	if Compose(Request{Item: item, Kind: Failure, Recipients: m.Recipients}) != nil {
		t.Error("a notification about a notification")
	}
}

func TestLargeOriginalIsNotReturnedWhole(t *testing.T) {
	item := Compose(request(Failure, func(m *envelope.Mail) { m.Body = envelope.MemoryBody(make([]byte, maxOriginal)) }))
	if body := item.Mail.Body; body.Size() > 4096 || !bytes.Contains(body.Bytes(), []byte("text/rfc822-headers")) {
		t.Errorf("%d bytes", body.Size())
	}
}

func TestOriginalCannotEndThePart(t *testing.T) {
	r := request(Failure, nil)
	b := newReport(r, Compose(r).ID).boundary
	item := Compose(request(Failure, func(m *envelope.Mail) {
		m.Body = envelope.MemoryBody([]byte("--" + b + "--\r\n"))
	}))
	if got := bytes.Count(item.Mail.Body.Bytes(), []byte("\r\n--"+b+"--\r\n")); got != 1 {
		t.Errorf("%d", got)
	}
	if !bytes.Contains(item.Mail.Header, []byte(b+"_")) {
		t.Error("the boundary stands in the original")
	}
}

// A large original is neither copied nor held in memory, however many messages fail at once.
func TestLargeOriginalIsNotInMemory(t *testing.T) {
	const size = 8 << 20
	octets := bytes.Repeat([]byte("0123456789012345678901234567890123456789012345678901234567890\r\n"), size/63)
	f, err := os.Create(filepath.Join(t.TempDir(), "body"))
	if err == nil {
		_, err = f.Write(octets)
	}
	if err != nil {
		t.Fatal(err)
	}
	r := request(Failure, func(m *envelope.Mail) { m.Body = envelope.FileBody(f, int64(len(octets))) })
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	item := Compose(r)
	runtime.ReadMemStats(&after)
	if n := after.TotalAlloc - before.TotalAlloc; n > 1<<20 {
		t.Errorf("%d octets of memory for a notification about %d", n, len(octets))
	}
	got, err := io.ReadAll(item.Mail.Body.Reader())
	if err != nil || int64(len(got)) != item.Mail.Body.Size() {
		t.Fatalf("%d octets, %v", len(got), err)
	}
	_, part, _ := bytes.Cut(got, []byte("message/rfc822\r\n"))
	if _, original, _ := bytes.Cut(part, []byte("\r\n\r\nReceived: ")); !bytes.Contains(original, octets) || !bytes.HasSuffix(got, []byte("--\r\n")) {
		t.Error("the original is not whole")
	}
}

// What is looked for in a body is found wherever the body is cut into blocks.
func TestLook(t *testing.T) {
	for text, want := range map[string]look{
		"ab--xyz c\r\n": {found: true}, "--xy\r\nz": {}, "--xy--xyz": {found: true}, "a\r\nb\r\n": {}, "": {},
		"a\rb": {loose: true}, "a\nb": {loose: true}, "a\r": {afterCR: true}, "\r\r\n": {loose: true}, "\n": {loose: true}, "\xe4\r\n": {eight: true},
	} {
		for block := 1; block <= len(text)+1; block++ {
			l := look{boundary: []byte("--xyz")}
			for chunk := range slices.Chunk([]byte(text), block) {
				if n, err := l.Write(chunk); n != len(chunk) || err != nil {
					t.Fatal(n, err)
				}
			}
			if l.found != want.found || l.loose != want.loose || l.afterCR != want.afterCR || l.eight != want.eight {
				t.Errorf("%q in blocks of %d: %+v", text, block, l)
			}
		}
	}
}

// No line of a notification is longer than a line may be, whatever a next hop has said and a sender has claimed.
func TestLongWords(t *testing.T) {
	checkLines(t, text(Compose(request(Failure, func(m *envelope.Mail) {
		m.Recipients[0].Reply.Text = strings.Repeat("x", 3000) + " and " + strings.Repeat("y", 2000)
		m.Recipients[0].ORCPT = "utf-8;" + strings.Repeat("\U0001f600", 125) + "@dest.example"
		m.Recipients[1].Reply.Text = strings.Repeat("z", 1000)
	}))))
	if got := wrap(strings.Repeat("ä", 1000)); !utf8.ValidString(got) || strings.Count(got, "ä") != 1000 {
		t.Error("a character is cut in two")
	}
}

// Another implementation of MIME reads what we write.
func TestPythonReadsReports(t *testing.T) {
	const script = `
import email, email.policy, json, sys
out = []
for name in sys.argv[1:]:
    m = email.message_from_bytes(open(name, 'rb').read(), policy=email.policy.SMTPUTF8)
    def defects(p):
        return [str(d) for d in p.defects] + [x for q in (p.get_payload() if p.is_multipart() else []) for x in defects(q)]
    parts = m.get_payload()
    fields = []
    if parts[1].get_content_type() == 'message/delivery-status':
        fields = [dict(p.items()) for p in parts[1].get_payload()]
    out.append(dict(name=name, type=m.get_content_type(), report=m['content-type'].params.get('report-type'),
      parts=[p.get_content_type() for p in parts], defects=defects(m), fields=fields, subject=m['subject']))
print(json.dumps(out))
`
	files, err := filepath.Glob("testdata/*.eml")
	if err != nil || len(files) == 0 {
		t.Fatal("no golden files", err)
	}
	cmd := exec.Command("python3", append([]string{"-c", script}, files...)...)
	cmd.Stderr = os.Stderr
	output, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	var got []struct {
		Name, Type, Report, Subject string
		Parts, Defects              []string
		Fields                      []map[string]string
	}
	if err := json.Unmarshal(output, &got); err != nil {
		t.Fatal(err)
	}
	for _, g := range got {
		if g.Type != "multipart/report" || len(g.Parts) != 3 || len(g.Defects) > 0 || g.Parts[1] != "message/"+g.Report {
			t.Errorf("%+v", g)
		}
		if strings.HasSuffix(g.Name, "/failure.eml") {
			if g.Fields[1]["Final-Recipient"] != "rfc822; bob@dest.example" || g.Fields[1]["Action"] != "failed" ||
				g.Fields[1]["Status"] != "5.1.1" || g.Fields[0]["Original-Envelope-Id"] != "QQ314159" || g.Subject != "Undeliverable: the plan" {
				t.Errorf("%+v", g)
			}
		}
	}
}
