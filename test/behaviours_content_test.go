package test

import (
	"archive/zip"
	"bytes"
	"compress/gzip"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/maxmind/mmdbwriter"
	"github.com/maxmind/mmdbwriter/mmdbtype"

	"github.com/posternmail/postern/test/rig"
)

// judged is a message that an agent judges at the end of data, seen from outside: what the client reads, what the ledger
// and `postern why` tell, and what the next hop received.
type judged struct {
	name    string
	sender  string   // a@sender.example if empty
	to      []string // b@example.org if empty
	content string
	reply   string // with [id]; okQueued if empty
	closed  bool   // the connection ends with it

	event   string // of the ledger's record: RECEIVE if empty
	verdict string
	reason  string
	data    string
	stamps  []string // that the agent left with it
	hop     []string // who the next hop received it for; nil: nobody
	has     []string // what stands in the message there
	hasNot  []string
}

// judgeAll sends messages one after the other, and sees that the next hop got what it should and nothing else.
func judgeAll(t *testing.T, h *rig.Host, sink *rig.Sink, agent string, messages []judged) {
	t.Helper()
	want := len(sink.Messages())
	for _, m := range messages {
		t.Run(m.name, func(t *testing.T) { m.run(t, h, sink, agent) })
		if m.hop != nil {
			want++
		}
		if t.Failed() {
			return
		}
	}
	// A message that nobody objects to is delivered after all before it that could have been.
	last := judged{sender: "last@sender.example", content: helloMessage, verdict: "", hop: []string{"b@example.org"}}
	t.Run("nothing else", func(t *testing.T) { last.run(t, h, sink, agent) })
	if got := len(sink.Messages()); got != want+1 {
		t.Errorf("the next hop got %d messages, want %d", got, want+1)
	}
}

func (m judged) run(t *testing.T, h *rig.Host, sink *rig.Sink, agent string) {
	before := len(sink.Messages())
	c := from(h, "192.0.2.1")
	sender, reply := m.sender, m.reply
	if sender == "" {
		sender = "a@sender.example"
	}
	if reply == "" {
		reply = okQueued
	}
	if m.to == nil {
		m.to = []string{"b@example.org"}
	}
	c.Do("MAIL FROM:<"+sender+">", okSender)
	for _, to := range m.to {
		c.Do("RCPT TO:<"+to+">", okRcpt)
	}
	got := c.Data(m.content)
	if masked(got) != reply {
		t.Fatalf("got  %s\nwant %s", got, reply)
	}
	if m.closed {
		c.WantClosed()
	} else {
		c.Do("QUIT", "221")
	}
	if m.verdict != "" {
		m.told(t, h, agent, idOf(t, got))
	}
	if m.hop != nil {
		m.received(t, h, sink, before)
	}
}

// told looks into the ledger.
func (m judged) told(t *testing.T, h *rig.Host, agent, id string) {
	t.Helper()
	event := m.event
	if event == "" {
		event = "RECEIVE"
	}
	r := waitRecord(h, id, event)
	if event != "RECEIVE" && (r.Agent != agent || strings.TrimPrefix(r.Reason, "undetermined: ") != m.reason) {
		t.Errorf("the ledger has %+v", r)
	}
	var steps []verdict
	for _, r := range ledger(h, id) {
		steps = append(steps, r.steps(agent, "OnEndOfData")...)
	}
	i := slices.IndexFunc(steps, func(v verdict) bool { return v.Verdict == m.verdict && v.Reason == m.reason })
	if i < 0 {
		t.Errorf("the ledger has no %s %s of %s in %+v", m.verdict, m.reason, agent, steps)
		return
	}
	if steps[i].Data != m.data {
		t.Errorf("the ledger has the data %q, want %q", steps[i].Data, m.data)
	}
	for _, s := range m.stamps {
		if !slices.ContainsFunc(steps, func(v verdict) bool { return slices.Contains(v.Stamps, s) }) {
			t.Errorf("the ledger has no stamp %q in %+v", s, steps)
		}
	}
	if why := h.MustPostern("why", id); !strings.Contains(why, m.reason) {
		t.Errorf("why does not tell of %s:\n%s", m.reason, why)
	}
}

// received looks at the next hop.
func (m judged) received(t *testing.T, h *rig.Host, sink *rig.Sink, before int) {
	t.Helper()
	h.WaitFor("the message at the next hop", func() bool { return len(sink.Messages()) > before })
	got := sink.Messages()[before]
	var to []string
	for _, line := range got.To {
		to = append(to, line[strings.Index(line, "<")+1:strings.Index(line, ">")])
	}
	slices.Sort(to)
	if !slices.Equal(to, m.hop) {
		t.Errorf("the next hop got it for %v, want %v", to, m.hop)
	}
	unfolded := strings.ReplaceAll(got.Content, "\r\n ", " ")
	for _, text := range m.has {
		if !strings.Contains(got.Content, text) && !strings.Contains(unfolded, text) {
			t.Errorf("the next hop got\n%s\nwithout %q", got.Content[:min(len(got.Content), 4000)], text)
		}
	}
	for _, text := range m.hasNot {
		if strings.Contains(got.Content, text) {
			t.Errorf("the next hop got %q in\n%s", text, got.Content[:min(len(got.Content), 4000)])
		}
	}
}

// letter is a message with these fields and this body.
func letter(fields, body string) string {
	if !strings.Contains(fields, "From:") {
		fields = "From: a@sender.example\r\n" + fields
	}
	if !strings.Contains(fields, "Subject:") {
		fields += "Subject: hello\r\n"
	}
	return fields + "\r\n" + body
}

// listed is a host with a directory and a hashed one, in which recipients trust friend@bad.example and news.example.
func listed(t *testing.T, nextHop, agents string) *rig.Host {
	t.Helper()
	h := rig.New(t, filtered(nextHop)+`directory "corp" {
  file = "{dir}/corp.csv"
}
directory "hashed" {
  file   = "{dir}/hashed.csv"
  hashed = true
}
`+agents)
	writeFile(t, filepath.Join(h.Dir, "corp.csv"), `address,safe_senders
ann@example.org,friend@bad.example news.example
b@example.org,
`)
	key := []byte("0123456789abcdef")
	hash := func(text string) string {
		mac := hmac.New(sha256.New, key)
		mac.Write([]byte(text))
		return hex.EncodeToString(mac.Sum(nil)[:8])
	}
	writeFile(t, filepath.Join(h.Dir, "hashed.csv"), fmt.Sprintf("# hash-key: %x\naddress,safe_senders\n%s,%s\n",
		key, hash("carl@example.org"), hash("carl@example.org|friend@bad.example")))
	return h
}

// TestContentfilterBehaviours is what the README of contentfilter says of its rules.
func TestContentfilterBehaviours(t *testing.T) {
	t.Parallel()
	const refused = "550 5.7.1 Message rejected due to content restrictions [id]"
	sink := rig.StartSink(t)
	h := listed(t, sink.Addr, contentfilter(`
    bad_phrases         = ["no risk investment"]
    bad_phrase_files    = ["{dir}/bad"]
    good_phrases        = ["order number 4711"]
    bypassed_senders    = ["boss@sender.example", "*.lists.example"]
    bypassed_recipients = ["raw@example.org"]
    protected_domains   = ["paypal.com"]
    max_size            = "64KiB"`))
	writeFile(t, filepath.Join(h.Dir, "bad"), "# of today\ncheap pills\n")
	h.Start()
	spam := letter("", "a No Risk  investment\r\n")
	clean := func(name, content, report string, stamps ...string) judged {
		return judged{name: name, content: content, verdict: "continue", reason: "SclBelowThresholds", data: "0", stamps: append(stamps, "scl=0"), hop: []string{"b@example.org"},
			has: []string{"X-Postern-SCL: 0\r\n", "X-Postern-Antispam-Report: DV:1.3.0;" + report + "OrigIP:192.0.2.1\r\n"}}
	}
	bad := func(name, content, data string) judged {
		return judged{name: name, content: content, reply: refused, event: "REJECT", verdict: "reject", reason: "SclAtOrAboveRejectThreshold", data: data, stamps: []string{"scl=9"}}
	}
	free := func(name, sender, to, content, reason, data string) judged {
		return judged{name: name, sender: sender, to: []string{to}, content: content, verdict: "continue", reason: reason, data: data, stamps: []string{"scl=-1"},
			hop: []string{to}, has: []string{"X-Postern-SCL: -1\r\n", "X-Postern-Antispam-Report: DV:1.3.0;" + reason + ";OrigIP:192.0.2.1\r\n", "o Risk"}, hasNot: []string{"X-Postern-PCL"}}
	}
	with := func(m judged, data string) judged { m.data = data; return m }
	large := "Subject: large\r\n" // and a body over max_size
	judgeAll(t, h, sink, "contentfilter", []judged{
		clean("no rule", letter("X-Postern-SCL: -1\r\n", "hello\r\n"), "NoModel;", "pcl=1"),
		bad("GTUBE", letter("", gtube+"\r\n"), "9: GTUBE"),
		bad("a phrase", spam, `9: bad phrase "no risk investment"`),
		bad("a phrase of a file", letter("Subject: Cheap =?utf-8?q?pills?=\r\n", "x\r\n"), `9: bad phrase "cheap pills"`),
		with(clean("a good phrase outweighs it", letter("", "Order\r\nnumber 4711: no risk investment\r\n"), "CW:CustomList;"), `0: good phrase "order number 4711"`),
		with(clean("too large to be read", letter(large, strings.Repeat(strings.Repeat("no risk investment ", 40)+"\r\n", 100)), "MIME:TooLarge;NoModel;"), "0: TooLarge"),
		with(clean("5,000 parts", letter("Content-Type: multipart/mixed; boundary=b\r\n", strings.Repeat("--b\r\n\r\nx\r\n", 5_000)), "MIME:OverLimits;NoModel;"), "0: OverLimits"),
		with(clean("messages in messages", letter("Content-Type: message/rfc822\r\n", strings.Repeat("Content-Type: message/rfc822\r\n\r\n", 500)), "MIME:OverLimits;NoModel;"), "0: OverLimits"),
		bad("a flood of encoded words", letter("Subject: x"+strings.Repeat("\r\n =?utf-8?q?a?=", 10_000)+"\r\n =?x-none?q?_no_risk?=\r\n =?utf-8?q?_investment?=\r\n", "x\r\n"), `9: bad phrase "no risk investment"`),
		{name: "a megabyte of header", content: letter(strings.Repeat("X-Flood: "+strings.Repeat("x", 500)+"\r\n", 2_000), "x\r\n"), reply: "552 5.3.4 Header size exceeds fixed maximum size [id]"},
		free("a sender that is bypassed", "boss@sender.example", "b@example.org", spam, "SenderBypassed", "boss@sender.example"),
		free("in the header", "a@sender.example", "b@example.org", letter("From: News <x@a.lists.example>\r\n", "no Risk investment\r\n"), "SenderBypassed", "*.lists.example"),
		free("a recipient that is bypassed", "a@sender.example", "raw@example.org", spam, "AllRecipientsBypassed", "raw@example.org"),
		free("a safe sender", "friend@bad.example", "ann@example.org", spam, "AllRecipientsBypassed", "ann@example.org|friend@bad.example"),
		free("by its domain, in the header", "bounce@sender.example", "ann@example.org", letter("From: x@news.example\r\n", "no Risk investment\r\n"), "AllRecipientsBypassed", "ann@example.org|news.example"),
		free("by a hash", "friend@bad.example", "carl@example.org", spam, "AllRecipientsBypassed", "carl@example.org|friend@bad.example"),
		{name: "safe for one of two", sender: "friend@bad.example", to: []string{"b@example.org", "ann@example.org"}, content: spam, verdict: "continue", reason: "RecipientBypassed",
			data: "ann@example.org|friend@bad.example", hop: []string{"ann@example.org"}, has: []string{"X-Postern-SCL: -1\r\n", "RecipientBypassed"}, hasNot: []string{"SCL: 9"}},
		with(clean("suspicious", letter("From: \"service@paypal.com\" <x@paypa1.com>\r\n", "x\r\n"), "NoModel;PCL:PhishingLevel SUSPICIOUS;", "pcl=8"), "0; PCL 8: [Lookalike NameAddress]"),
		with(clean("a sign alone", letter("MIME-Version: 1.0\r\nContent-Type: text/html\r\n", "<a href=http://192.0.2.7/>here</a>\r\n"), "NoModel;PCL:PhishingLevel NEUTRAL;", "pcl=3"),
			"0; PCL 3: [LinkAddress]"),
		clean("sent long ago", letter("Date: Mon, 2 Jan 2006 15:04:05 +0000\r\n", "hello\r\n"), "NoModel;TIME:TimeBasedFeatures;", "pcl=1"),
	})
}

// TestContentfilterSenderID: the report has the result of a senderauth that stands before contentfilter; in the usual order there is none to
// report, and check says so.
func TestContentfilterSenderID(t *testing.T) {
	t.Parallel()
	sink, z := rig.StartSink(t), authWorld(t)
	blocks := senderauth(z, "") + contentfilter("report_sender_id = true")
	h := rig.New(t, filtered(sink.Addr)+blocks)
	const warning = `warning: agent "contentfilter" reads the stamp "auth.senderid" at OnEndOfData, which no agent before it writes`
	if out := h.MustPostern("check"); !strings.Contains(out, warning) {
		t.Errorf("got\n%s\nwithout\n%s", out, warning)
	}
	h.Write(filtered(sink.Addr) + strings.Replace(blocks, "priority = 50", "priority = 35", 1))
	if out := h.MustPostern("check"); strings.Contains(out, "reads the stamp") {
		t.Errorf("got\n%s", out)
	}
	h.Start()
	for sender, status := range map[string]string{"jane@x.example": "Pass", "jane@f.example": "Fail", "jane@z.example": "None"} {
		c := from(h, "192.0.2.1")
		got := passed(t, h, sink, c, fromLine(sender))
		if !strings.Contains(strings.ReplaceAll(got.Content, "\r\n ", " "), "X-Postern-Antispam-Report: DV:1.3.0;SID:SenderIDStatus "+status+";NoModel;OrigIP:192.0.2.1\r\n") {
			t.Errorf("%s: the next hop got\n%s", sender, got.Content)
		}
	}
}

// windowsProgram is the start of one for Windows.
const windowsProgram = "MZ\x90\x00\x03\x00\x00\x00\x04\x00\x00\x00\xff\xff\x00\x00\xb8\x00\x00\x00\x00\x00\x00\x00\x40\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x80\x00\x00\x00program"

// attached is a letter with one file.
func attached(name, mediaType, content string) string {
	encoded := base64.StdEncoding.EncodeToString([]byte(content))
	var lines strings.Builder
	for len(encoded) > 76 {
		lines.WriteString(encoded[:76] + "\r\n")
		encoded = encoded[76:]
	}
	lines.WriteString(encoded)
	return letter("MIME-Version: 1.0\r\nContent-Type: multipart/mixed; boundary=b\r\n", "--b\r\n\r\nsee the file\r\n--b\r\nContent-Type: "+mediaType+
		"\r\nContent-Disposition: attachment; filename=\""+name+"\"\r\nContent-Transfer-Encoding: base64\r\n\r\n"+lines.String()+"\r\n--b--\r\n")
}

func zipOf(t *testing.T, name, content string) string {
	t.Helper()
	var b bytes.Buffer
	w := zip.NewWriter(&b)
	f, err := w.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.Write([]byte(content)); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func gzipOf(t *testing.T, content string) string {
	t.Helper()
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	if _, err := w.Write([]byte(content)); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func attachmentfilter(config string) string {
	return "agent \"attachmentfilter\" {\n  priority = 60\n  config {\n" + config + "\n  }\n}\n"
}

// TestAttachmentfilterBehaviours is what the README of attachmentfilter says.
func TestAttachmentfilterBehaviours(t *testing.T) {
	t.Parallel()
	const refused = "550 5.7.1 Message rejected due to unacceptable attachments [id]"
	sink := rig.StartSink(t)
	h := rig.Start(t, filtered(sink.Addr)+attachmentfilter(`
    entry {
      names  = ["*.strip"]
      types  = ["audio/*"]
      action = "strip"
    }
    entry {
      names  = ["*.gone"]
      action = "silent_delete"
    }
    entry {
      names  = ["*.docm"]
      action = "quarantine"
    }
    entry {
      names    = ["*.own"]
      action   = "reject"
      response = "No such files here"
    }
    entry {
      names  = ["good.exe"]
      action = "allow"
    }
    encrypted   = "strip"
    broken      = "quarantine"
    unscannable = "quarantine"
    max_expanded = "4MiB"
    notice      = "{name} is gone: {reason}"`))
	secret := []byte(zipOf(t, "a.txt", "secret"))
	secret[6] |= 1 // of the local header
	secret[bytes.Index(secret, []byte("PK\x01\x02"))+8] |= 1
	bomb := gzipOf(t, tarOf(t, "a.zip", "PK\x03\x04"+strings.Repeat("\x00", 8<<20)))
	deep := "x"
	for range 10 {
		deep = zipOf(t, "a.zip", deep)
	}
	no := func(name, content, reason, data string) judged {
		return judged{name: name, content: content, reply: refused, event: "REJECT", verdict: "reject", reason: reason, data: data}
	}
	stripped := func(name, content, reason, data, notice string, stamps ...string) judged {
		return judged{name: name, content: content, verdict: "continue", reason: reason, data: data, stamps: stamps, hop: []string{"b@example.org"},
			has: []string{"see the file\r\n", "Content-Type: text/plain; charset=utf-8\r\n", base64.StdEncoding.EncodeToString([]byte(notice + "\r\n"))[:40], "\r\n--b--\r\n"}, hasNot: []string{"attachment; filename"}}
	}
	kept := func(name, content, reason, data string) judged {
		return judged{name: name, content: content, event: "QUARANTINE", verdict: "quarantine", reason: reason, data: data}
	}
	judgeAll(t, h, sink, "attachmentfilter", []judged{
		{name: "a text", content: attached("notes.txt", "text/plain", "hello"), hop: []string{"b@example.org"}, has: []string{`filename="notes.txt"`}},
		no("by name", attached("Run.EXE", "application/octet-stream", "x"), "AttachmentName", "Run.EXE (*.exe)"),
		no("by type", attached("a", "text/javascript", "x"), "AttachmentType", "a (text/javascript)"),
		no("by content", attached("invoice.pdf", "application/pdf", windowsProgram), "AttachmentContent", "invoice.pdf (content of *.exe)"),
		no("in an archive", attached("a.zip", "application/zip", zipOf(t, "run.exe", "x")), "AttachmentName", "a.zip/run.exe (*.exe)"),
		no("in archives, by content", attached("a.bin", "image/png", gzipOf(t, zipOf(t, "a.txt", windowsProgram))), "AttachmentContent", "a.bin/a/a.txt (content of *.exe)"),
		no("in parts", letter("Content-Type: message/partial; id=x; number=1; total=2\r\n", "x\r\n"), "AttachmentType", "message/partial (message/partial)"),
		stripped("stripped", attached("a.strip", "application/x-any", "x"), "AttachmentName", "a.strip (*.strip)", "a.strip is gone: files of this kind are not allowed here (*.strip)"),
		stripped("stripped by type", attached("a", "audio/midi", "x"), "AttachmentType", "a (audio/midi)", "a is gone: files of this kind are not allowed here (audio/midi)"),
		stripped("with a password", attached("a.zip", "application/zip", string(secret)), "ArchiveEncrypted", "a.zip (encrypted)", "a.zip is gone: it is encrypted and cannot be checked", "attachmentfilter.encrypted=a.zip"),
		{name: "deleted", content: attached("a.gone", "text/plain", "x"), event: "DROP", verdict: "discard", reason: "AttachmentName", data: "a.gone (*.gone)"},
		kept("quarantined", attached("a.docm", "text/plain", "x"), "AttachmentName", "a.docm (*.docm)"),
		{name: "its own reply", content: attached("a.own", "text/plain", "x"), reply: "550 5.7.1 No such files here [id]", event: "REJECT", verdict: "reject", reason: "AttachmentName", data: "a.own (*.own)"},
		{name: "allowed", content: attached("good.exe", "text/plain", windowsProgram), hop: []string{"b@example.org"}, has: []string{`filename="good.exe"`}},
		kept("broken", attached("a.zip", "application/zip", zipOf(t, "a.txt", "hello")[:40]), "ArchiveBroken", "a.zip (zip: not a valid zip file)"),
		kept("not looked into", attached("a.cab", "application/x-any", "MSCF\x00\x00\x00\x00"), "ArchiveUnscannable", "a.cab (archive of kind cab)"),
		kept("an image of a disk", attached("a.iso", "application/x-any", "x"), "ArchiveUnscannable", "a.iso (archive of kind iso)"),
		no("too much unpacked", attached("a.gz", "application/gzip", bomb), "OverLimit", "over the limit: more than 4194304 octets unpacked"),
		no("too deep", attached("a.zip", "application/zip", deep), "OverLimit", "over the limit: archives more than 8 deep at a.zip/a.zip/a.zip/a.zip/a.zip/a.zip/a.zip/a.zip/a.zip"),
		no("10,000 parts", letter("Content-Type: multipart/mixed; boundary=b\r\n", strings.Repeat("--b\r\n\r\nx\r\n", 10_000)), "OverLimit", "over the limit: MIME parts over the limit: more than 1000"),
		no("messages in messages", letter("Content-Type: message/rfc822\r\n", strings.Repeat("Content-Type: message/rfc822\r\n\r\n", 500)), "OverLimit", "over the limit: MIME nesting over the limit: more than 20"),
	})
}

func tarOf(t *testing.T, name, content string) string {
	t.Helper()
	var b bytes.Buffer
	b.WriteString(name + strings.Repeat("\x00", 100-len(name)) + "0000644\x000000000\x000000000\x00" + fmt.Sprintf("%011o\x00", len(content)) + "00000000000\x00")
	b.WriteString("        0" + strings.Repeat("\x00", 100) + "ustar\x0000" + strings.Repeat("\x00", 247))
	header := b.Bytes()
	sum := 0
	for _, c := range header {
		sum += int(c)
	}
	copy(header[148:], fmt.Sprintf("%06o\x00 ", sum))
	return string(header) + content + strings.Repeat("\x00", 1024+(512-len(content)%512)%512)
}

func edgerules(config string) string {
	return "agent \"edgerules\" {\n  priority = 45\n  config {\n" + config + "\n  }\n}\n"
}

// TestEdgerulesBehaviours is what the README of edgerules says: a rule for each action, named by the subject that it is for.
func TestEdgerulesBehaviours(t *testing.T) {
	t.Parallel()
	rule := func(name, when, actions string) string {
		return fmt.Sprintf("    rule %q {\n      when {\n        %s\n      }\n      %s\n    }\n", name, when, actions)
	}
	on := func(word, actions string) string {
		return rule(word, fmt.Sprintf("subject_contains = [%q]", word), actions)
	}
	sink := rig.StartSink(t)
	h := rig.New(t, filtered(sink.Addr)+contentfilter(`bad_phrases = ["cheap"]
    reject_at   = 0`)+edgerules(`    databases = ["{dir}/places.mmdb"]
`+
		on("refuse", "reject {}")+
		on("later", "reject {\n        code = 451\n        text = \"Not today\"\n      }")+
		on("hangup", "disconnect = true")+
		on("vanish", "delete = true")+
		on("keep", "quarantine = true")+
		on("elsewhere", `redirect_to = ["c@example.org"]`)+
		on("share", "add_recipients = [\"c@example.org\"]\n      copy_to = [\"d@example.org\"]\n      blind_copy_to = [\"e@example.org\"]")+
		on("mark", "prepend_subject = \"[out] \"\n      set_headers = { X-Rule = \"mark\" }\n      remove_headers = [\"X-Old\"]\n      set_scl = 5\n      log = \"marked\"")+
		on("enough", "stop = true")+on("enough", "reject {}")+
		rule("one", `recipient_contains = ["c@example.org"]`, "per_recipient = true\n      delete = true")+
		rule("spam", "scl_over = 9", "reject {\n        text = \"Too much\"\n      }")+
		rule("program", `attachment_names = ["*.exe"]`, "reject {\n        text = \"No programs\"\n      }")+
		rule("here", "subject_contains = [\"place\"]\n        countries = [\"DE\"]\n        systems = [64496]", "reject {\n        text = \"Not from there\"\n      }")+
		rule("body", `subject_or_body_matches = ["(?i)xyz[0-9]+"]`, "quarantine = true")+`
    rule "list" {
      when {
        header "List-Id" {
          contains = ["news"]
        }
      }
      unless {
        from_contains = ["a@sender.example"]
      }
      delete = true
    }
`))
	places(t, filepath.Join(h.Dir, "places.mmdb"))
	h.Start()
	with := func(word string, more ...string) string {
		return letter("Subject: "+word+"\r\n"+strings.Join(more, ""), "hello\r\n")
	}
	why := func(word string) string { return fmt.Sprintf("%s (subject_contains: %q)", word, word) }
	no := func(name, content, reply, data string) judged {
		return judged{name: name, content: content, reply: reply + " [id]", event: "REJECT", verdict: "reject", reason: "reject", data: data}
	}
	passes := func(name, content string, has ...string) judged {
		return judged{name: name, content: content, hop: []string{"b@example.org"}, has: has}
	}
	later := no("4xx", with("later"), "451 4.7.1 Not today", why("later"))
	later.verdict = "defer"
	all := passes("more recipients", letter("To: b@example.org\r\nSubject: share\r\n", "x\r\n"), "To: b@example.org,\r\n <c@example.org>\r\n", "Cc: <d@example.org>\r\n")
	all.hop, all.verdict, all.reason, all.data, all.hasNot = []string{"b@example.org", "c@example.org", "d@example.org", "e@example.org"}, "continue", "matched", why("share"), []string{"<e@example.org>"}
	mark := passes("edits", with("mark", "X-Old: x\r\n"), "Subject: [out] mark\r\n", "X-Rule: mark\r\n")
	mark.verdict, mark.reason, mark.data, mark.stamps, mark.hasNot = "continue", "matched", why("mark"), []string{"scl=5"}, []string{"X-Old"}
	moved := passes("redirected", with("elsewhere"))
	moved.hop, moved.verdict, moved.reason, moved.data = []string{"c@example.org"}, "continue", "redirect_to", why("elsewhere")
	enough := passes("stopped", with("enough"))
	enough.verdict, enough.reason, enough.data = "continue", "matched", why("enough")
	judgeAll(t, h, sink, "edgerules", []judged{
		passes("no rule", with("nothing")),
		no("reject", with("refuse"), "550 5.7.1 Delivery not authorized, message refused", why("refuse")),
		later,
		{name: "disconnect", content: with("hangup"), reply: "421 4.7.1 Delivery not authorized, closing connection [id]", closed: true, event: "REJECT", verdict: "disconnect", reason: "disconnect", data: why("hangup")},
		{name: "delete", content: with("vanish"), event: "DROP", verdict: "discard", reason: "delete", data: why("vanish")},
		{name: "quarantine", content: with("keep"), event: "QUARANTINE", verdict: "quarantine", reason: "quarantine", data: why("keep")},
		moved, all, mark, enough,
		{name: "for one recipient", to: []string{"b@example.org", "c@example.org"}, content: with("two"), verdict: "discard", reason: "delete",
			data: `one (recipient_contains: "c@example.org" in c@example.org)`, hop: []string{"b@example.org"}},
		no("SCL of the content filter", with("x cheap y"), "550 5.7.1 Too much", `spam (stamp scl: "9")`),
		no("an attachment", attached("Run.EXE", "application/octet-stream", "abc"), "550 5.7.1 No programs", `program (attachment_names: "Run.EXE" (application/octet-stream, 3 bytes))`),
		no("country and system", with("place"), "550 5.7.1 Not from there", `here (countries: 192.0.2.1 in DE; systems: 192.0.2.1 in AS64496; subject_contains: "place")`),
		{name: "the text of the body", content: letter("MIME-Version: 1.0\r\nContent-Type: text/html\r\n", "<p>x<b>y</b>Z17\r\n"), event: "QUARANTINE", verdict: "quarantine", reason: "quarantine",
			data: "body (subject_or_body_matches: /(?i)xyz[0-9]+/)"},
		{name: "a header", sender: "x@other.example", content: letter("From: x@other.example\r\nList-Id: <news.example>\r\n", "x\r\n"), event: "DROP", verdict: "discard", reason: "delete", data: `list (header List-Id: "news")`},
		passes("an exception", letter("List-Id: <news.example>\r\n", "x\r\n")),
		{name: "10,000 parts", content: letter("Content-Type: multipart/mixed; boundary=b\r\n", strings.Repeat("--b\r\n\r\nx\r\n", 10_000)),
			reply: "451 4.3.2 Service temporarily unavailable, please try again later [id]", event: "REJECT", verdict: "undetermined", reason: "cannot-judge",
			data: `attachment_names of rule "program": the structure of the message is over the limits: MIME parts over the limit: more than 1000`},
	})
}

// places writes a database in MaxMind's format.
func places(t *testing.T, path string) {
	t.Helper()
	tree, err := mmdbwriter.New(mmdbwriter.Options{DatabaseType: "Test", RecordSize: 24, IncludeReservedNetworks: true})
	if err != nil {
		t.Fatal(err)
	}
	_, network, _ := net.ParseCIDR("192.0.2.0/24")
	err = tree.Insert(network, mmdbtype.Map{"country": mmdbtype.Map{"iso_code": mmdbtype.String("DE")}, "autonomous_system_number": mmdbtype.Uint32(64496)})
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := tree.WriteTo(f); err != nil {
		t.Fatal(err)
	}
}

// TestRulesAreChecked: `postern check` warns of a rule in the sample configuration that reads what no agent before it has
// written, and `postern agent run edgerules -- test` tells which rule matches a file, and why.
func TestRulesAreChecked(t *testing.T) {
	t.Parallel()
	root, err := rig.Root()
	if err != nil {
		t.Fatal(err)
	}
	sample := readFile(t, filepath.Join(root, "config.hcl"))
	const rules = `agent "edgerules" {
  priority = 30
  config {
    rule "spam" {
      when { scl_over = 5 }
      quarantine = true
    }
    rule "phishing" {
      when {
        subject_contains = ["account"]
        stamp "pcl" { at_least = 4 }
      }
      quarantine = true
    }
`
	const place = "agent \"edgerules\" {\n  priority = 30\n  config {\n"
	if !strings.Contains(sample, place) {
		t.Fatal("the sample has another agent edgerules")
	}
	sample = strings.Replace(sample, place, rules, 1)
	h := rig.New(t, sample)
	line := strings.Count(sample[:strings.Index(sample, place[:18])], "\n") + 1
	for _, stamp := range []string{"scl", "pcl"} {
		want := fmt.Sprintf("%s:%d,1-18: warning: agent \"edgerules\" reads the stamp %q at OnEndOfData, which no agent before it writes", h.Config, line, stamp)
		if out := h.MustPostern("check"); !strings.Contains(out, want) {
			t.Errorf("got\n%s\nwithout\n%s", out, want)
		}
	}
	message := filepath.Join(h.Dir, "m.eml")
	writeFile(t, message, letter("Subject: your account\r\n", "x\r\n"))
	want := `rule "spam": does not match: stamp scl does not hold
rule "phishing": matches
    subject_contains: "account"
    stamp pcl: "6"
recipient me@example.org: phishing: quarantine
`
	if out := h.MustPostern("agent", "run", "edgerules", "--", "test", "--to", "me@example.org", "--stamp", "scl=4", "--stamp", "pcl=6", message); !strings.Contains(out, want) {
		t.Errorf("got\n%s\nwithout\n%s", out, want)
	}
	h.Write(strings.Replace(sample, "  priority = 30\n", "  priority = 45\n", 1)) // behind contentfilter
	if out := h.MustPostern("check"); strings.Contains(out, "reads the stamp") {
		t.Errorf("got\n%s", out)
	}
}
