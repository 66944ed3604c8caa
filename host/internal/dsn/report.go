package dsn

import (
	"bytes"
	"fmt"
	"io"
	"mime"
	"net/netip"
	"strings"
	"unicode/utf8"

	"github.com/posternmail/postern/host/internal/envelope"
)

// dateLayout of RFC 5322 section 3.3.
const dateLayout = "Mon, 02 Jan 2006 15:04:05 -0700"

// report is one notification while it is written.
type report struct {
	Request
	id       string
	boundary string
	unicode  bool           // RFC 6533: global-delivery-status, and the message needs SMTPUTF8
	header   []byte         // of the original, as it is returned
	content  *envelope.Body // of the original; nil where only its header is returned
	eight    bool           // what is returned has octets over 127
}

func newReport(r Request, id string) *report {
	rep := &report{Request: r, id: id}
	m := r.Item.Mail
	// Only a sender that uses SMTPUTF8 itself can be expected to receive it.
	rep.unicode = m.Sender.SMTPUTF8 && (!allASCII(m.Sender.Address) || rep.unicodeRecipients() || hasEightBit(m.Header))
	rep.header = append(wholeLines(r.Item.Prefix), wholeLines(m.Header)...)
	rep.eight = hasEightBit(rep.header)
	size := m.Size() + int64(len(r.Item.Prefix))
	// RFC 3461 section 4.3: RET is about failures; other reports carry the headers.
	if r.Kind == Failure && m.Sender.Ret != "HDRS" && size <= maxOriginal && m.Body != nil {
		rep.content = m.Body
	}
	rep.examine()
	return rep
}

// eightBit reports whether some part has octets over 127.
func (r *report) eightBit() bool { return r.unicode || r.eight }

// examine reads the original once, for a boundary that it does not hold and for what kind of octets it has. A body that
// cannot be read, or that holds a lone CR or LF and so cannot be sent, is left out: that is no reason not to tell.
func (r *report) examine() {
	r.boundary = "=_" + strings.ReplaceAll(r.id, ".", "_")
	for bytes.Contains(r.header, []byte("--"+r.boundary)) {
		r.boundary += "_"
	}
	for r.content != nil {
		look := look{boundary: []byte("--" + r.boundary)}
		if _, err := io.Copy(&look, r.content.Reader()); err != nil || look.loose || look.afterCR {
			r.content = nil
			return
		}
		if !look.found {
			r.eight = r.eight || look.eight
			return
		}
		r.boundary += "_" // the header does not hold this one either
	}
}

// look is what is to be known of a body.
type look struct {
	boundary []byte
	tail     []byte // the end of what was seen, shorter than the boundary
	found    bool   // it holds the boundary
	eight    bool   // it has octets over 127
	loose    bool   // it has a CR or LF outside of a line end
	afterCR  bool
}

// Write implements io.Writer.
func (l *look) Write(p []byte) (int, error) {
	l.lineEnds(p)
	l.eight = l.eight || hasEightBit(p)
	keep := len(l.boundary) - 1
	across := append(l.tail, p[:min(len(p), keep)]...)
	l.found = l.found || bytes.Contains(across, l.boundary) || bytes.Contains(p, l.boundary)
	if len(p) >= keep {
		across = bytes.Clone(p[len(p)-keep:])
	}
	l.tail = across[max(len(across)-keep, 0):]
	return len(p), nil
}

// lineEnds looks for a CR or LF outside of a line end (RFC 5321 section 2.3.8).
func (l *look) lineEnds(p []byte) {
	if len(p) == 0 {
		return
	}
	if l.afterCR {
		l.loose = l.loose || p[0] != '\n'
		p = p[1:]
	}
	l.afterCR = len(p) > 0 && p[len(p)-1] == '\r'
	if l.afterCR {
		p = p[:len(p)-1]
	}
	l.loose = l.loose || !endsAreWhole(p)
}

func (r *report) unicodeRecipients() bool {
	for _, rcpt := range r.Recipients {
		if !allASCII(rcpt.Address) {
			return true
		}
	}
	return false
}

// wholeLines is b with each line ended by CRLF and no other CR or LF.
func wholeLines(b []byte) []byte {
	if endsAreWhole(b) {
		return bytes.Clone(b)
	}
	var out []byte
	for line := range bytes.Lines(b) {
		line = bytes.ReplaceAll(bytes.TrimRight(line, "\r\n"), []byte("\r"), []byte(" "))
		out = append(append(out, line...), "\r\n"...)
	}
	return out
}

func endsAreWhole(b []byte) bool {
	pairs := bytes.Count(b, []byte("\r\n"))
	return bytes.Count(b, []byte("\r")) == pairs && bytes.Count(b, []byte("\n")) == pairs
}

func hasEightBit(b []byte) bool {
	return bytes.IndexFunc(b, func(c rune) bool { return c > 0x7f }) >= 0
}

// headerBlock of the notification.
func (r *report) headerBlock() []byte {
	var b bytes.Buffer
	line := func(format string, args ...any) { fmt.Fprintf(&b, format+"\r\n", args...) }
	line("Date: %s", r.Now.Format(dateLayout))
	line("From: %s <%s>", "Mail Delivery System", r.Postmaster)
	line("To: <%s>", r.Item.Mail.Sender.Address)
	line("Subject: %s", r.subject())
	line("Message-ID: <%s@%s>", r.id, r.Host)
	if id := messageID(r.Item.Mail.Header); id != "" {
		line("In-Reply-To: %s", id)
		line("References: %s", id)
	}
	line("Auto-Submitted: auto-replied") // RFC 3834 section 5
	line("MIME-Version: 1.0")
	line("Content-Type: multipart/report; report-type=%s;\r\n\tboundary=%q", r.statusType(), r.boundary)
	if r.eightBit() {
		line("Content-Transfer-Encoding: 8bit")
	}
	return b.Bytes()
}

// statusType: RFC 6533 section 4 has a type of its own for reports in UTF-8.
func (r *report) statusType() string {
	if r.unicode {
		return "global-delivery-status"
	}
	return "delivery-status"
}

var subjects = map[Kind]string{
	Failure:  "Undeliverable",
	Delay:    "Delayed",
	Success:  "Delivered",
	Relayed:  "Relayed",
	Expanded: "Delivered to a group",
}

func (r *report) subject() string {
	s := subjects[r.Kind]
	original := field(r.Item.Mail.Header, "Subject")
	if words, err := new(mime.WordDecoder).DecodeHeader(original); err == nil {
		original = words
	}
	if original = clean(original, true); original == "" {
		return s
	}
	if len(original) > 200 {
		original = strings.ToValidUTF8(original[:200], "") + "..."
	}
	return s + ": " + foldWords(mime.QEncoding.Encode("utf-8", original))
}

// foldWords puts the encoded words of a long subject on lines of their own (RFC 2047 section 2).
func foldWords(s string) string { return strings.ReplaceAll(s, "?= =?", "?=\r\n\t=?") }

// messageID of the original, if it is fit to be repeated.
func messageID(header []byte) string {
	id := field(header, "Message-ID")
	if len(id) < 3 || len(id) > 500 || id[0] != '<' || id[len(id)-1] != '>' || strings.ContainsFunc(id, func(c rune) bool { return c <= ' ' || c > '~' }) {
		return ""
	}
	return id
}

// field is the unfolded value of the first field called name; "" when there is none.
func field(header []byte, name string) string {
	var value []byte
	found := false
	for line := range bytes.Lines(header) {
		if folded := len(line) > 0 && (line[0] == ' ' || line[0] == '\t'); found && folded {
			value = append(append(value, ' '), bytes.TrimSpace(line)...)
			continue
		}
		if found {
			break
		}
		if len(line) > len(name) && line[len(name)] == ':' && strings.EqualFold(string(line[:len(name)]), name) {
			found = true
			value = append(value, bytes.TrimSpace(line[len(name)+1:])...)
		}
	}
	return string(value)
}

// inMemory is the size in bytes up to which a notification is made in memory. A larger one is the original's octets with
// others around them.
const inMemory = 64 << 10

// body of the notification.
func (r *report) body() *envelope.Body {
	var b bytes.Buffer
	part := func(contentType, description string, eight bool) {
		fmt.Fprintf(&b, "--%s\r\nContent-Type: %s\r\nContent-Description: %s\r\n", r.boundary, contentType, description)
		if eight {
			b.WriteString("Content-Transfer-Encoding: 8bit\r\n")
		}
		b.WriteString("\r\n")
	}
	charset := "us-ascii"
	if r.unicode {
		charset = "utf-8"
	}
	part("text/plain; charset="+charset, "Notification", r.unicode)
	b.Write(r.text())
	b.WriteString("\r\n")
	part("message/"+r.statusType(), "Delivery report", r.unicode)
	b.Write(r.status())
	b.WriteString("\r\n")
	part(r.originalType(), "Original message", r.eight)
	b.Write(r.header)
	end := fmt.Appendf(nil, "\r\n--%s--\r\n", r.boundary)
	if r.content == nil {
		return envelope.MemoryBody(append(b.Bytes(), end...))
	}
	b.WriteString("\r\n")
	whole := envelope.BodyAround(b.Bytes(), r.content, end)
	if whole.Size() > inMemory {
		return whole
	}
	octets, err := io.ReadAll(whole.Reader())
	if err != nil {
		return whole // it could be read a moment ago: the store tries again
	}
	return envelope.MemoryBody(octets)
}

// originalType: RFC 6522 section 4 and RFC 6533 section 4.
func (r *report) originalType() string {
	switch {
	case r.unicode && r.content != nil:
		return "message/global"
	case r.unicode:
		return "message/global-headers"
	case r.content != nil:
		return "message/rfc822"
	}
	return "text/rfc822-headers"
}

var openings = map[Kind]string{
	Failure:  "Your message could not be delivered to the following recipients.",
	Delay:    "Your message has not been delivered to the following recipients yet.\r\nThis is a warning only: you need not send it again.",
	Success:  "Your message has been delivered to the following recipients.",
	Relayed:  "Your message has been passed on for the following recipients, to a system\r\nthat will not tell whether it was delivered.",
	Expanded: "Your message has been delivered to the members of the following groups.",
}

// text is for people.
func (r *report) text() []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, "This is the mail system at %s.\r\n\r\n%s\r\n", r.Host, openings[r.Kind])
	if r.Kind == Delay && !r.RetryUntil.IsZero() {
		fmt.Fprintf(&b, "Delivery will be tried until %s.\r\n", r.RetryUntil.Format(dateLayout))
	}
	for _, rcpt := range r.Recipients {
		fmt.Fprintf(&b, "\r\n<%s>\r\n", clean(rcpt.Address.String(), r.unicode))
		if !rcpt.Reply.IsZero() {
			b.WriteString(wrap(clean(told(rcpt).String(), r.unicode)))
		}
	}
	return b.Bytes()
}

// told is the reply as a stranger may read it. Why a next hop could not be reached is the host's own word, with
// addresses and errors of the inside: the ledger has it, the sender is told what kind of trouble it was.
func told(rcpt *envelope.Recipient) envelope.Reply {
	reply := rcpt.Reply
	if rcpt.Remote != "" || !reply.Temporary() {
		return reply
	}
	reply.Text = "The next hop cannot be reached"
	switch reply.Enhanced {
	case "4.4.2":
		reply.Text = "The connection to the next hop was lost"
	case "4.4.3", "4.4.4":
		reply.Text = "The next hop cannot be found"
	case "4.7.5":
		reply.Text = "The next hop cannot be reached securely"
	}
	return reply
}

// longestWord in octets keeps a line below 998 (RFC 5322 section 2.1.1).
const longestWord = 900

// wrap puts words on lines of about 72 characters, indented. A word that is longer than a line may be is parted.
func wrap(s string) string {
	var b strings.Builder
	width := 0
	add := func(word string) {
		switch {
		case width == 0:
			b.WriteString("    ")
		case width+len(word) > 68:
			b.WriteString("\r\n    ")
			width = 0
		default:
			b.WriteByte(' ')
			width++
		}
		b.WriteString(word)
		width += len(word)
	}
	for _, word := range strings.Fields(s) {
		for len(word) > longestWord {
			n := longestWord
			for !utf8.RuneStart(word[n]) {
				n--
			}
			add(word[:n])
			word = word[n:]
		}
		add(word)
	}
	return b.String() + "\r\n"
}

// status is for programs: RFC 3464 section 2.
func (r *report) status() []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, "Reporting-MTA: dns; %s\r\n", r.Host)
	if id := r.Item.Mail.Sender.EnvID; id != "" {
		fmt.Fprintf(&b, "Original-Envelope-Id: %s\r\n", clean(id, r.unicode))
	}
	if helo := r.Item.Session.Helo; helo != "" {
		fmt.Fprintf(&b, "Received-From-MTA: dns; %s\r\n", clean(helo, r.unicode))
	}
	fmt.Fprintf(&b, "Arrival-Date: %s\r\n", r.Item.Received.Format(dateLayout))
	for _, rcpt := range r.Recipients {
		b.WriteString("\r\n")
		r.recipient(&b, rcpt)
	}
	return b.Bytes()
}

// recipient writes the fields of RFC 3464 section 2.3.
func (r *report) recipient(b *bytes.Buffer, rcpt *envelope.Recipient) {
	if kind, addr, ok := strings.Cut(rcpt.ORCPT, ";"); ok && len(kind)+len(r.address(addr)) <= longestWord {
		fmt.Fprintf(b, "Original-Recipient: %s; %s\r\n", kind, r.address(addr))
	}
	kind := "rfc822"
	if !rcpt.Address.IsASCII() {
		kind = "utf-8"
	}
	fmt.Fprintf(b, "Final-Recipient: %s; %s\r\n", kind, r.address(rcpt.Address.String()))
	fmt.Fprintf(b, "Action: %s\r\nStatus: %s\r\n", r.Kind, r.statusCode(rcpt))
	if name := remoteName(rcpt.Remote); name != "" {
		fmt.Fprintf(b, "Remote-MTA: dns; %s\r\n", clean(name, r.unicode))
	}
	if !rcpt.Reply.IsZero() {
		kind := "smtp" // what a mail system has said, RFC 3464 section 2.3.6
		if rcpt.Remote == "" {
			kind = "x-postern"
		}
		fmt.Fprintf(b, "Diagnostic-Code: %s; %s\r\n", kind, fold(clean(told(rcpt).String(), r.unicode)))
	}
	fmt.Fprintf(b, "Last-Attempt-Date: %s\r\n", r.Now.Format(dateLayout))
	if r.Kind == Delay && !r.RetryUntil.IsZero() {
		fmt.Fprintf(b, "Will-Retry-Until: %s\r\n", r.RetryUntil.Format(dateLayout))
	}
}

// remoteName of "mx.example [192.0.2.1]:25" or "192.0.2.1:25"; a path is nobody's business.
func remoteName(remote string) string {
	if strings.HasPrefix(remote, "/") {
		return ""
	}
	name, _, named := strings.Cut(remote, " ")
	if ap, err := netip.ParseAddrPort(name); err == nil && !named {
		return "[" + ap.Addr().String() + "]"
	}
	return name
}

// address in a report that is not in UTF-8 stands as utf-8-addr-xtext (RFC 6533 section 3).
func (r *report) address(s string) string {
	if r.unicode {
		return clean(s, true)
	}
	var b strings.Builder
	for _, c := range clean(s, true) {
		if c > 0x7f {
			fmt.Fprintf(&b, `\x{%X}`, c)
		} else {
			b.WriteRune(c)
		}
	}
	return b.String()
}

// statusCode is the enhanced code of the reply, or a plain one of the right class.
func (r *report) statusCode(rcpt *envelope.Recipient) string {
	class := map[Kind]byte{Failure: '5', Delay: '4'}[r.Kind]
	if class == 0 {
		class = '2'
	}
	if e := rcpt.Reply.Enhanced; e != "" && (e[0] == class || r.Kind == Failure && e[0] == '4') {
		return e
	}
	return string(class) + ".0.0"
}

// fold breaks a long value between words.
func fold(s string) string {
	return strings.TrimSpace(strings.ReplaceAll(strings.TrimRight(wrap(s), "\r\n"), "\r\n    ", "\r\n\t"))
}

// clean is s on one line, without what is no text; without unicode in US-ASCII.
func clean(s string, unicode bool) string {
	return strings.TrimSpace(strings.Map(func(c rune) rune {
		if c < ' ' || c == 0x7f || c == '\ufffd' || c > 0x7f && !unicode {
			return '?'
		}
		return c
	}, s))
}
