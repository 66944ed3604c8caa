package main

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"mime/quotedprintable"
	"net/mail"
	"strings"
	"time"

	"github.com/posternmail/postern/sdk"
	"github.com/posternmail/postern/sdk/address"
)

// Fields of a report and a manifest. They do not begin with X-Postern-, which receivers of Postern take out.
const (
	reportField   = "X-MS-Journal-Report" // always empty (MS-XJRNL section 2.1)
	setField      = "Postern-Journal-Set"
	partField     = "Postern-Journal-Part"
	messageField  = "Postern-Journal-Message"
	digestsField  = "Postern-Journal-Digests"
	sealField     = "Postern-Journal-Seal"
	manifestField = "Postern-Journal-Manifest"
	turnField     = "Postern-Journal-Turn"
)

// digests of a message, in hexadecimal SHA-256.
type digests struct {
	header string // fields of the block, without lines that are none; "none" in reports before version 0.3, where there were such lines
	body   string
	eight  bool // octets over 127
}

// eightBit finds octets over 127.
type eightBit bool

func (e *eightBit) Write(p []byte) (int, error) {
	*e = *e || eightBit(bytes.ContainsFunc(p, func(r rune) bool { return r > 127 }))
	return len(p), nil
}

// digestOf the message as it is included in the report.
func digestOf(ctx context.Context, e *sdk.RoutingEvent) (digests, error) {
	block := e.Headers.Block()
	d := digests{header: hexSum(block)}
	var eight eightBit
	_, _ = eight.Write(block)
	sum := sha256.New()
	body := e.Body()
	n, err := io.Copy(io.MultiWriter(sum, &eight), contextReader{ctx, body.Reader()})
	if err == nil && n != body.Size() {
		err = io.ErrUnexpectedEOF
	}
	d.body, d.eight = sumText(sum), bool(eight)
	return d, err
}

// contextReader ends with its context.
type contextReader struct {
	ctx context.Context
	io.Reader
}

func (r contextReader) Read(p []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	return r.Reader.Read(p)
}

func hexSum(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

func sumText(h hash.Hash) string { return hex.EncodeToString(h.Sum(nil)) }

// report i of a set: MS-XJRNL section 2.1, multipart/mixed of the envelope and the message.
func (j *Journal) report(e *sdk.RoutingEvent, s set, i int, m digests) sdk.Spawn {
	envelope := envelopePart(e, chip(s.recipients, j.Recipients, i))
	boundary := fmt.Sprintf("=_journal_%s_%d", s.id, i+1)
	encoding := "7bit"
	if m.eight {
		encoding = "8bit"
	}
	part := fmt.Sprintf("%d of %d", i+1, s.parts)
	values := fmt.Sprintf("envelope=%s;\r\n header=%s;\r\n body=%s", hexSum([]byte(envelope)), m.header, m.body)
	var b bytes.Buffer
	j.common(&b, s.to, e.Time, fmt.Sprintf("%s.%d", s.id, i+1))
	field(&b, "Subject", rawSubject(e))
	field(&b, "Content-Type", "multipart/mixed;\r\n boundary=\""+boundary+"\"")
	field(&b, "Content-Transfer-Encoding", encoding)
	field(&b, reportField, "")
	field(&b, setField, s.id)
	field(&b, partField, part)
	field(&b, messageField, e.TrackingID)
	field(&b, digestsField, values)
	if j.Key != "" {
		field(&b, sealField, seal(j.Key, s.id, part, e.TrackingID, values))
	}
	fmt.Fprintf(&b, "\r\n--%s\r\n%s\r\n--%s\r\nContent-Type: message/rfc822\r\nContent-Transfer-Encoding: %s\r\n\r\n",
		boundary, textPart(envelope), boundary, encoding)
	return sdk.Spawn{
		Recipients: []address.Mailbox{s.to}, Before: b.Bytes(), IncludeOriginal: true,
		After: []byte("\r\n--" + boundary + "--\r\n"), Durable: true,
	}
}

// common fields of reports and manifests.
func (j *Journal) common(b *bytes.Buffer, to address.Mailbox, at time.Time, id string) {
	field(b, "From", "<"+j.from.String()+">")
	field(b, "To", "<"+to.String()+">")
	field(b, "Date", at.UTC().Format("Mon, 2 Jan 2006 15:04:05 -0700"))
	field(b, "Message-ID", "<journal."+id+"@"+j.host.Name+">")
	field(b, "MIME-Version", "1.0")
}

func field(b *bytes.Buffer, name, value string) {
	b.WriteString(name + ":")
	if value != "" {
		b.WriteString(" " + value)
	}
	b.WriteString("\r\n")
}

// seal of a report.
func seal(key string, values ...string) string {
	mac := hmac.New(sha256.New, []byte(key))
	for _, v := range values {
		v = strings.Join(strings.Fields(v), " ") // as if unfolded
		fmt.Fprintf(mac, "%d:%s", len(v), v)
	}
	return hex.EncodeToString(mac.Sum(nil))
}

// rawSubject is the field of the message as it stands, unless that could not stand in another one.
func rawSubject(e *sdk.RoutingEvent) string {
	for f := range e.Headers.All("Subject") {
		raw := strings.TrimSpace(string(f.Raw))
		for line := range strings.SplitSeq(raw, "\r\n") {
			if len(line) > 900 || strings.ContainsAny(line, "\r\n\x00") || strings.TrimSpace(line) == "" {
				return "(the subject is in the message)"
			}
		}
		return raw
	}
	return ""
}

// chip i of the recipients.
func chip(all []sdk.EnvelopeRecipient, size, i int) []sdk.EnvelopeRecipient {
	return all[i*size : min(len(all), (i+1)*size)]
}

// envelopePart follows the grammar of MS-XJRNL section 2.1.
func envelopePart(e *sdk.RoutingEvent, recipients []sdk.EnvelopeRecipient) string {
	var b strings.Builder
	line := func(name, value string) { b.WriteString(name + ": " + oneLine(value) + "\r\n") }
	sender, behalf := senders(e)
	line("Sender", sender.String())
	if !behalf.IsNull() {
		line("On-Behalf-Of", behalf.String())
	}
	line("Subject", e.Message.Subject)
	line("Message-ID", e.Message.MessageID)
	seen := addressed(e)
	for _, r := range recipients {
		name, value := recipientKind(e, r, seen), r.String()
		switch {
		case !r.ExpandedFrom.IsNull():
			value += ", Expanded: " + r.ExpandedFrom.String()
		case !r.Original.IsNull() && r.Original.Key() != r.Key():
			value += ", Forwarded: " + r.Original.String()
		}
		line(name, value)
	}
	return b.String()
}

// oneLine takes out what would begin another line.
func oneLine(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || r == 0x85 || r == 0x2028 || r == 0x2029 {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(s, "\uFFFD"))
}

// senders are the author's agent and, where they differ, the author.
func senders(e *sdk.RoutingEvent) (sender, behalf address.Mailbox) {
	from := e.Message.From
	if from.IsNull() {
		return e.Sender.Mailbox, from
	}
	if list := mailboxes(e, "Sender"); len(list) > 0 && list[0].Key() != from.Key() {
		return list[0], from
	}
	return from, address.Mailbox{}
}

func mailboxes(e *sdk.RoutingEvent, name string) []address.Mailbox {
	var all []address.Mailbox
	for f := range e.Headers.All(name) {
		list, err := mail.ParseAddressList(f.Text())
		if err != nil {
			continue
		}
		for _, a := range list {
			if m, err := address.Parse(a.Address); err == nil {
				all = append(all, m)
			}
		}
	}
	return all
}

// addressed recipients by key, where the header can be trusted: mail of a user who authenticated.
func addressed(e *sdk.RoutingEvent) map[string]string {
	if e.Session.Trust != sdk.User {
		return nil
	}
	seen := map[string]string{}
	for _, name := range []string{"Cc", "To"} {
		for _, m := range mailboxes(e, name) {
			seen[m.Key()] = name
		}
	}
	return seen
}

// recipientKind is Recipient where the header cannot be trusted.
func recipientKind(e *sdk.RoutingEvent, r sdk.EnvelopeRecipient, seen map[string]string) string {
	if seen == nil {
		return "Recipient"
	}
	for _, m := range []address.Mailbox{r.ExpandedFrom, r.Original, r.Mailbox} {
		if kind := seen[m.Key()]; kind != "" && !m.IsNull() {
			return kind
		}
	}
	return "Bcc"
}

// textPart is a text/plain part that any transport keeps as it is.
func textPart(text string) string {
	plain := !strings.ContainsFunc(text, func(r rune) bool { return r > 126 })
	for line := range strings.SplitSeq(text, "\r\n") {
		plain = plain && len(line) < 900
	}
	if plain {
		return "Content-Type: text/plain; charset=utf-8\r\nContent-Transfer-Encoding: 7bit\r\n\r\n" + text
	}
	var b strings.Builder
	w := quotedprintable.NewWriter(&b)
	_, err := io.WriteString(w, text)
	if err = errors.Join(err, w.Close()); err != nil { // a strings.Builder takes everything
		return err.Error()
	}
	return "Content-Type: text/plain; charset=utf-8\r\nContent-Transfer-Encoding: quoted-printable\r\n\r\n" + b.String()
}
