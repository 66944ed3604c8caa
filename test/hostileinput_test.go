package test

import (
	"archive/zip"
	"bytes"
	"encoding/base64"
	"fmt"
	"maps"
	"net"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/posternmail/postern/test/rig"
)

// hostile is a message that is made to cost much, and what becomes of it.
type hostile struct {
	name    string
	sender  string // a@sender.example if empty
	content string
	reply   string // how the reply begins; that it is queued if empty
	by      string // the agent that tells most about it in the ledger; "": none, or the host
	tells   string // its reason and data hold that
}

// Memory that one process of an agent may have had at most, in octets, as the kernel counted it: what an agent has when it is
// idle (25 MB), a message of the largest size mapped into it (36 MB) and its decoded parts, and for the attachment filter what it
// unpacks of two messages at a time (100 MiB each) where a method of packing needs it in memory. An agent that went on
// unpacking, or that kept all that a message has it make, would be far beyond.
const hostileMemory = 300 << 20

// TestHostileInput sends all agents of the sample configuration what is made to overload a parser. Each has its verdict before
// the client gives up, no process ends or grows without bound, and mail goes on.
func TestHostileInput(t *testing.T) {
	config := strings.Replace(isolated(t), "  proxy_from", "  limits {\n    tarpit          = \"0s\"\n    max_header_size = \"1 MB\"\n  }\n  proxy_from", 1)
	config = strings.Replace(config, `  timeout    = "5s"`, "  timeout {\n    message = \"25s\"\n  }", 1) // the machine may be busy
	config = regexp.MustCompile(`resolvers = \[".*"\]`).ReplaceAllString(config, fmt.Sprintf("resolvers = [%q]", hostileDNS(t)))
	h := rig.Start(t, config)
	h.WaitFor("all agents", func() bool {
		return !slices.ContainsFunc(slices.Collect(maps.Values(states(h))), func(a agentState) bool { return !a.Ready })
	})
	for i, m := range hostileMessages(t) {
		t.Run(m.name, func(t *testing.T) { m.send(t, h, i) })
	}
	accepted(t, from(h, "198.51.100.1"), "a@sender.example", "b@example.org", helloMessage)
	waitEmpty(h)
	for name, a := range states(h) {
		if a.State != "up" || a.Restarts > 0 || a.Dead > 0 || a.Breaches > 0 || a.Leaked > 0 || len(a.Failures) > 0 {
			t.Errorf("agent %s: %+v", name, a)
		}
		for _, i := range a.Instances {
			had := residentPeak(t, i.PID)
			t.Logf("%s: %d MB at most", name, had>>20)
			if had > hostileMemory {
				t.Errorf("agent %s had %d MB", name, had>>20)
			}
		}
	}
}

func (m hostile) send(t *testing.T, h *rig.Host, i int) {
	c := from(h, fmt.Sprintf("203.0.113.%d", 1+i))
	defer c.Conn.Close()
	if m.sender == "" {
		m.sender = "a@sender.example"
	}
	if m.reply == "" {
		m.reply = "250 2.6.0 "
	}
	began := time.Now()
	reply := c.Message(m.sender, "b@example.org", m.content)
	t.Logf("%d KB, %s, %s", len(m.content)>>10, time.Since(began).Round(time.Millisecond), reply)
	if !strings.HasPrefix(reply, m.reply) {
		t.Errorf("got %q, want %q...", reply, m.reply)
	}
	event := "RECEIVE"
	if reply[0] != '2' {
		event = "REJECT"
	}
	r := waitRecord(h, idOf(t, reply), event)
	said := ""
	for _, v := range r.Verdicts {
		if v.Failure != "" || v.Verdict == "undetermined" {
			t.Errorf("%+v", v)
		}
		if v.Agent == m.by {
			said += v.Reason + " " + v.Data + "\n"
		}
	}
	if !strings.Contains(said, m.tells) || event == "REJECT" && r.Agent != m.by {
		t.Errorf("refused by %q (%s); %s says %q, want %q", r.Agent, r.Reason, m.by, said, m.tells)
	}
}

// residentPeak is the most memory that a process has had.
func residentPeak(t *testing.T, pid int) int64 {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(text), "VmHWM:")
	kb, err := strconv.ParseInt(strings.Fields(rest)[0], 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return kb << 10
}

const (
	noAttachments = "550 5.7.1 Message rejected due to unacceptable attachments"
	mixed         = "MIME-Version: 1.0\r\nContent-Type: multipart/mixed; boundary=b\r\n"
)

// hostileMessages is the table.
func hostileMessages(t *testing.T) []hostile {
	zeros := strings.Repeat("\x00", 120<<20)
	archive := "PK\x03\x04" + zeros // has to be unpacked, to be looked into
	tape := gzipOf(t, tarOf(t, "a.zip", archive))
	inside := zipOf(t, "a.txt", "x")
	for range 12 {
		inside = zipOf(t, "a.zip", inside)
	}
	nested := letter("Content-Type: message/rfc822\r\n", strings.Repeat("Content-Type: message/rfc822\r\n\r\n", 5_000))
	var deep, tree strings.Builder
	for i := range 3_000 {
		fmt.Fprintf(&deep, "--b%d\r\nContent-Type: multipart/mixed; boundary=b%d\r\n\r\n", i, i+1)
	}
	for range 20_000 {
		tree.WriteString("<div><table><a href=\"https://www.paypal.com@evil.example/\">www.bank.example</a>")
	}
	words := strings.Repeat("=?utf-8?b?w6nDqcOpw6k=?=\r\n =?utf-8?q?=C3=A9=C3=A9?=\r\n ", 9_000)
	refused := func(name, content, tells string) hostile {
		return hostile{name: name, content: content, reply: noAttachments, by: "attachmentfilter", tells: tells}
	}
	dnsOf := func(name, domain, tells string) hostile {
		return hostile{name: name, sender: "a@" + domain, content: fromLine("a@" + domain), by: "senderauth", tells: tells}
	}
	return []hostile{
		// Of a file that is no archive the beginning is enough: the rest is never unpacked, and does no harm here.
		{name: "a zip bomb of a plain file", content: attached("a.zip", "application/zip", zipOf(t, "zeros.txt", zeros[:20<<20])), by: "attachmentfilter"},
		{name: "a gzip bomb of a plain file", content: attached("a.gz", "application/gzip", gzipOf(t, zeros[:20<<20])), by: "attachmentfilter"},
		refused("a zip bomb", attached("a.zip", "application/zip", zipOf(t, "b.zip", archive)), "OverLimit over the limit"),
		refused("a gzip bomb", attached("a.tar.gz", "application/gzip", tape), "OverLimit over the limit"),
		refused("a gzip bomb, packed four times", attached("a.gz", "application/gzip", gzipOf(t, gzipOf(t, gzipOf(t, tape)))), "OverLimit over the limit"),
		refused("archives in archives", attached("a.zip", "application/zip", inside), "OverLimit over the limit: archives more than 8 deep"),
		refused("100,000 files in an archive", attached("a.zip", "application/zip", manyFiles(t, 100_000)), "OverLimit over the limit"),
		refused("10,000 parts", letter(mixed, strings.Repeat("--b\r\n\r\nx\r\n", 10_000)), "OverLimit over the limit: MIME parts"),
		refused("messages in messages", nested, "OverLimit over the limit: MIME nesting"),
		refused("multiparts in multiparts", letter("Content-Type: multipart/mixed; boundary=b0\r\n", deep.String()), "OverLimit over the limit: MIME nesting"),
		{name: "half boundaries", content: letter(mixed, strings.Repeat("--\r\n--bb\r\n-b\r\n", 60_000)), by: "contentfilter"},
		{name: "a header of 1 MB, one field", content: letter("X-Long: "+strings.Repeat(strings.Repeat("x", 900)+"\r\n ", 1_000)+"x\r\n", "hello\r\n"), by: "contentfilter"},
		{name: "a header of 1 MB, 60,000 fields", content: letter(strings.Repeat("X-Field: abc\r\n", 60_000), "hello\r\n"), by: "contentfilter"},
		{name: "a header of 2 MB", content: letter(strings.Repeat("X-Field: abc\r\n", 150_000), "hello\r\n"), reply: "552 "},
		{name: "encoded words in the subject", content: letter("Subject: "+words+"x\r\n", "hello\r\n"), by: "contentfilter"},
		{name: "encoded words in From", content: letter("From: "+words+"<a@sender.example>\r\n", "hello\r\n"), by: "senderauth", tells: "Verified"},
		{name: "20,000 addresses", content: letter("To: "+strings.Repeat("x <b@example.org>,\r\n ", 20_000)+"b@example.org\r\n", "hello\r\n"), by: "contentfilter"},
		{name: "20,000 parameters", content: letter("Content-Type: text/plain"+strings.Repeat(";\r\n name*1*=utf-8''%41%42", 20_000)+"\r\n", "hello\r\n"), by: "contentfilter"},
		{name: "comments in comments", content: letter("From: "+strings.Repeat("(\r\n ", 100_000)+"a@sender.example\r\n", "hello\r\n"), by: "senderauth"},
		{name: "500 signatures", content: letter(strings.Repeat("DKIM-Signature: v=1; a=rsa-sha256; d=slow.example; s=a; h=from; bh=47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=; b=AAAA\r\n", 500), "hello\r\n"), by: "senderauth", tells: "dkim=temperror"},
		{name: "200 seals", content: letter(strings.Repeat("ARC-Seal: i=1\r\nARC-Message-Signature: i=1\r\nARC-Authentication-Results: i=1;\r\n", 200), "hello\r\n"), by: "senderauth", tells: "arc=fail"},
		{name: "a page of tags that do not end", content: letter("Content-Type: text/html\r\n", tree.String()), by: "contentfilter"},
		{name: "base64 that is none", content: letter("Content-Transfer-Encoding: base64\r\n", strings.Repeat("=A==*?é=QUJD=\r\n", 100_000)), by: "contentfilter"},
		{name: "soft ends of lines", content: letter("Content-Transfer-Encoding: quoted-printable\r\n", strings.Repeat("=\r\n=0D=0A=\r\n", 100_000)), by: "contentfilter"},
		refused("files of uuencode", letter("", strings.Repeat("begin 644 x\r\n#ABC\r\n", 50_000)), "OverLimit over the limit"),
		{name: "TNEF with lengths that lie", content: attached("winmail.dat", "application/ms-tnef", "\x78\x9f\x3e\x22\x01\x00"+strings.Repeat("\x02\x0f\x80\x06\x00\xff\xff\xff\x7f", 10_000)), by: "attachmentfilter"},
		{name: "rar, 7z and xz cut off", content: letter(mixed, "--b\r\n"+partOf("a.rar", "Rar!\x1a\x07\x01\x00"+strings.Repeat("\xff", 1<<16))+"--b\r\n"+partOf("a.7z", "7z\xbc\xaf\x27\x1c\x00\x04"+strings.Repeat("\xff", 1<<16))+
			"--b\r\n"+partOf("a.xz", "\xfd7zXZ\x00\x00\x04"+strings.Repeat("\xff", 1<<16))+"--b--\r\n"), by: "attachmentfilter"},
		dnsOf("DNS that is mute", "slow.example", "spf=temperror"),
		dnsOf("DNS that answers garbage", "garbage.example", "spf=temperror"),
		dnsOf("DNS whose answers are too large", "huge.example", "spf=temperror"),
		dnsOf("SPF that includes without end", "wide.example", "spf=permerror"),
		dnsOf("SPF with the end of a line in it", "line.example", "spf=permerror"),
		dnsOf("aliases in a circle", "circle.example", "spf=none"),
	}
}

// partOf is a MIME part with a file.
func partOf(name, content string) string {
	return "Content-Type: application/octet-stream; name=\"" + name + "\"\r\nContent-Transfer-Encoding: base64\r\n\r\n" +
		regexp.MustCompile(".{76}").ReplaceAllString(base64.StdEncoding.EncodeToString([]byte(content)), "$0\r\n") + "\r\n"
}

// manyFiles is a zip file with n empty files.
func manyFiles(t *testing.T, n int) string {
	t.Helper()
	var b bytes.Buffer
	w := zip.NewWriter(&b)
	for i := range n {
		if _, err := w.Create(strconv.Itoa(i)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// hostileDNS is a resolver that answers badly, each domain in its way. What it does not know does not exist.
func hostileDNS(t *testing.T) (addr string) {
	t.Helper()
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	answer := func(w dns.ResponseWriter, q *dns.Msg) {
		m, name := new(dns.Msg).SetReply(q), q.Question[0].Name
		text := func(s string) {
			rr := &dns.TXT{Hdr: dns.RR_Header{Name: name, Rrtype: dns.TypeTXT, Class: dns.ClassINET, Ttl: 60}}
			for ; len(s) > 255; s = s[255:] {
				rr.Txt = append(rr.Txt, s[:255])
			}
			rr.Txt = append(rr.Txt, s)
			m.Answer = append(m.Answer, rr)
		}
		switch labels := dns.SplitDomainName(name); strings.Join(labels[max(0, len(labels)-2):], ".") {
		case "slow.example":
			return
		case "garbage.example":
			octets, _ := m.Pack() // the id is right, all else is not
			_, _ = w.Write(append(octets[:4:4], bytes.Repeat([]byte{0xc0, 0x0c, 0xff}, 300)...))
			return
		case "huge.example":
			text("v=spf1 " + strings.Repeat("ip4:192.0.2.1 ", 500) + "-all")
		case "wide.example":
			text("v=spf1 include:%{i}.a.wide.example include:%{l}.b.wide.example include:c.%{d} -all")
		case "line.example":
			text("v=spf1 a/\n -all")
		case "circle.example":
			m.Answer = append(m.Answer, &dns.CNAME{Hdr: dns.RR_Header{Name: name, Rrtype: dns.TypeCNAME, Class: dns.ClassINET, Ttl: 60}, Target: name})
		default:
			m.Rcode = dns.RcodeNameError
		}
		_ = w.WriteMsg(m)
	}
	s := &dns.Server{PacketConn: conn, Handler: dns.HandlerFunc(answer)}
	go func() { _ = s.ActivateAndServe() }()
	t.Cleanup(func() { _ = s.Shutdown() })
	return conn.LocalAddr().String()
}
