package delivery

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"golang.org/x/net/idna"

	"github.com/posternmail/postern/host/internal/envelope"
	"github.com/posternmail/postern/sdk/address"
)

// groupSize is how many commands go out before their replies are read. The replies must fit into what the
// kernel buffers, or both sides would wait for the other to read (RFC 2920 section 3.1).
const groupSize = 50

// slowest transfer that is waited for, in octets a second.
const slowest = 10 << 10

// transaction is MAIL, RCPT and DATA for some of the recipients of an attempt.
type transaction struct {
	*attempt
	*client
	reused   bool // the connection was idle before: it may be dead
	eight    bool // BODY=8BITMIME
	rcpts    []*envelope.Recipient
	accepted []*envelope.Recipient
	tooMany  []*envelope.Recipient
	mail     envelope.Reply
	data     envelope.Reply
	answered int
}

// run does one transaction. It settles every recipient that it got an answer about. A failure means that the
// connection is of no more use.
func (t *transaction) run() *failure {
	if t.rcpts = t.suitable(); len(t.rcpts) == 0 {
		return nil
	}
	if fail := t.silence(); fail != nil {
		return fail
	}
	if t.dirty {
		if fail := t.reset(); fail != nil {
			return fail
		}
	}
	if fail := t.envelope(); fail != nil {
		return fail
	}
	switch {
	case !positive(t.mail):
		return t.notStarted()
	case len(t.accepted) == 0:
		return t.nobody()
	case t.data.Code/100 != 3:
		t.dirty = true
		return t.refused(t.accepted, t.data)
	}
	if fail := t.silence(); fail != nil {
		return fail
	}
	t.sent++
	return t.transfer()
}

// notStarted settles recipients of a hop that refused MAIL. If it took the DATA behind it, the connection is of no
// more use.
func (t *transaction) notStarted() *failure {
	fail := t.refused(t.rcpts, t.mail)
	if fail == nil && t.data.Code == 354 {
		return next(451, "4.5.0", "%s refused MAIL and took DATA", t.target)
	}
	return fail
}

// silence is a failure when the hop has said what it was not asked for: replies would be taken for others.
func (t *transaction) silence() *failure {
	if t.r.Buffered() == 0 {
		return nil
	}
	return t.lost(fmt.Errorf("%w: more replies than commands", errReply))
}

func positive(r envelope.Reply) bool { return r.Code/100 == 2 }

// refused settles recipients by a reply that is not the one hoped for.
func (t *transaction) refused(list []*envelope.Recipient, rep envelope.Reply) *failure {
	if !rep.Temporary() && !rep.Permanent() {
		return next(451, "4.5.0", "%s answered out of turn: %s", t.target, rep)
	}
	for _, r := range list {
		t.refuse(r, rep, t.client)
	}
	// Recipients that were too many for a transaction that came to nothing are not tried again in this attempt.
	return t.refuseTooMany()
}

func (t *transaction) refuseTooMany() *failure {
	for _, r := range t.tooMany {
		t.refuse(r, reply(452, "4.5.3", "too many recipients"), t.client)
	}
	t.tooMany = nil
	return nil
}

// nobody ends a transaction without recipients. Where DATA was pipelined and taken, RFC 2920 section 3.1 has us send
// the final dot alone.
func (t *transaction) nobody() *failure {
	t.dirty = true
	_ = t.refuseTooMany()
	if t.data.Code != 354 {
		return nil
	}
	if _, err := t.Conn.Write([]byte(".\r\n")); err != nil {
		return t.lost(err)
	}
	if _, err := t.reply(); err != nil {
		return t.lost(err)
	}
	return nil
}

func (t *transaction) reset() *failure {
	t.deadline(t.timeouts.Command)
	rep, err := t.command("RSET")
	switch {
	case err != nil:
		return t.lost(err)
	case !positive(rep):
		return next(451, "4.5.0", "%s refused RSET: %s", t.target, rep)
	}
	t.dirty = false
	return nil
}

// deadline for all that is read and written until the next one.
func (t *transaction) deadline(d time.Duration) { _ = t.Conn.SetDeadline(time.Now().Add(d)) }

// lost is the failure of a connection before the message was complete.
func (t *transaction) lost(err error) *failure {
	f := next(451, "4.4.2", "connection to %s: %s", t.target, plainError(err))
	f.again = t.reused && t.answered == 0
	return f
}

// suitable are the open recipients of this transaction. Those that the hop cannot serve are settled.
func (t *transaction) suitable() []*envelope.Recipient {
	if rep := t.unfit(); !rep.IsZero() {
		for len(t.open) > 0 {
			t.refuse(t.open[0], rep, t.client)
		}
		return nil
	}
	limit := maxRecipients
	if t.ext.rcptMax > 0 {
		limit = min(limit, t.ext.rcptMax)
	}
	var out []*envelope.Recipient
	for _, r := range append([]*envelope.Recipient(nil), t.open...) {
		if len(out) == limit {
			break
		}
		if _, ok := t.path(r.Address); !ok {
			t.refuse(r, noUTF8(t.target), t.client)
			continue
		}
		out = append(out, r)
	}
	return out
}

func noUTF8(t target) envelope.Reply {
	return reply(550, "5.6.7", fmt.Sprintf("%s does not offer SMTPUTF8, which the message needs", t))
}

// unfit says what in the message the hop cannot take; the zero reply is nothing.
func (t *transaction) unfit() envelope.Reply {
	sender := &t.item.Mail.Sender
	if sender.RequireTLS && t.target.network == "tcp" && !(t.ext.requireTLS && t.verified) {
		return noRequireTLS(t.target, "is not secured").reply
	}
	if t.ext.size > 0 && t.content.size > t.ext.size {
		return reply(552, "5.3.4", fmt.Sprintf("message of %d octets is too big for %s, which takes %d", t.content.size, t.target, t.ext.size))
	}
	if _, ok := t.path(sender.Address); !ok || sender.SMTPUTF8 && t.content.headEight && !t.ext.utf8 {
		return noUTF8(t.target)
	}
	return t.checkEightBit()
}

// checkEightBit settles BODY. RFC 6152 section 3: where the hop does not offer 8BITMIME, a message that needs it must
// be converted or returned; we do not rewrite (it would break signatures), so it is returned.
func (t *transaction) checkEightBit() envelope.Reply {
	declared := t.item.Mail.Sender.BodyType == "8BITMIME"
	if t.ext.eightBit {
		// The content of large messages is not read for this: the promise to transmit 8 bits covers 7.
		t.eight = declared || t.content.eightBit || !t.content.eightKnown
		return envelope.Reply{}
	}
	eight, err := t.content.isEightBit()
	switch {
	case err != nil:
		return contentReply(err)
	case eight:
		return reply(550, "5.6.3", fmt.Sprintf("message has 8-bit content, %s does not offer 8BITMIME", t.target))
	}
	return envelope.Reply{}
}

// path writes m for a command. Where the hop lacks SMTPUTF8 a domain can still go as A-labels, a local part cannot.
func (t *transaction) path(m address.Mailbox) (string, bool) {
	switch {
	case m.IsASCII():
		return m.String(), true
	case t.ext.utf8:
		return m.String(), true
	}
	ascii, err := idna.Lookup.ToASCII(m.Domain)
	if err != nil {
		return "", false
	}
	m.Domain = ascii
	return m.String(), m.IsASCII()
}

// envelope sends MAIL, RCPT and DATA, in groups where the hop offers PIPELINING, and takes the replies.
func (t *transaction) envelope() *failure {
	lines := t.commands()
	window := 1
	if t.ext.pipelining {
		window = groupSize
	}
	for start := 0; start < len(lines); start += window {
		end := min(start+window, len(lines))
		if end == len(lines) && window == 1 && len(t.accepted) == 0 {
			return nil // DATA would be out of order
		}
		t.deadline(t.timeouts.Command)
		if _, err := t.Write([]byte(strings.Join(lines[start:end], ""))); err != nil {
			return t.lost(err)
		}
		for i := start; i < end; i++ {
			if fail := t.take(i); fail != nil {
				return fail
			}
		}
		if !positive(t.mail) {
			return nil
		}
	}
	return nil
}

// take reads the reply to command i: 0 is MAIL, the last is DATA.
func (t *transaction) take(i int) *failure {
	if i == len(t.rcpts)+1 {
		_ = t.Conn.SetReadDeadline(time.Now().Add(t.timeouts.Data))
	}
	rep, err := t.reply()
	if err != nil {
		return t.lost(err)
	}
	if rep.Code == 421 {
		// The hop is closing. Who has no answer yet gets it elsewhere or later.
		f := next(421, rep.Enhanced, "%s", rep.Text)
		f.again = t.reused && t.answered == 0
		return f
	}
	t.answered++
	switch i {
	case 0:
		t.mail = rep
	case len(t.rcpts) + 1:
		t.data = rep
	default:
		return t.took(t.rcpts[i-1], rep)
	}
	return nil
}

// took files the reply to one RCPT.
func (t *transaction) took(r *envelope.Recipient, rep envelope.Reply) *failure {
	switch {
	case !positive(t.mail):
	case positive(rep):
		t.accepted = append(t.accepted, r)
	case isTooMany(rep):
		t.tooMany = append(t.tooMany, r)
	case rep.Temporary(), rep.Permanent():
		t.refuse(r, rep, t.client)
	default:
		return next(451, "4.5.0", "%s answered out of turn: %s", t.target, rep)
	}
	return nil
}

// isTooMany: RFC 5321 section 4.5.3.1.10 has 452 for too many recipients, and lets 552 mean the same. They are sent
// in another transaction. The same codes also mean a full disk.
func isTooMany(r envelope.Reply) bool {
	if r.Code != 452 && r.Code != 552 {
		return false
	}
	return strings.HasSuffix(r.Enhanced, ".5.3") ||
		r.Enhanced == "" && strings.Contains(strings.ToLower(r.Text), "too many recipients")
}

// transfer sends the message and settles the accepted recipients.
func (t *transaction) transfer() *failure {
	if fail := t.body(); fail != nil {
		return fail
	}
	_ = t.Conn.SetReadDeadline(time.Now().Add(t.timeouts.Dot))
	if t.connector.LMTP == "" {
		rep, err := t.reply()
		if err != nil {
			return t.inDoubt(t.accepted, err)
		}
		return t.finish(t.accepted, rep)
	}
	// RFC 2033 section 4.2: one reply for each RCPT that was taken, in order.
	var closing *failure
	for i, r := range t.accepted {
		rep, err := t.reply()
		if err != nil {
			return t.inDoubt(t.accepted[i:], err)
		}
		if fail := t.finish([]*envelope.Recipient{r}, rep); fail != nil {
			closing = fail
		}
	}
	return closing
}

// body writes the message.
func (t *transaction) body() *failure {
	var err error
	w := &blockWriter{t: t, until: time.Now().Add(t.timeouts.Block + time.Duration(t.content.size/slowest)*time.Second)}
	if t.content.wire != nil {
		_, err = w.Write(t.content.wire)
	} else {
		var eight bool
		err = t.content.stuff(w, &eight)
	}
	switch {
	case err == nil:
		return nil
	case w.failed:
		return t.early(err)
	}
	// The message itself is at fault. Without its final dot the hop keeps nothing of it.
	for _, r := range t.accepted {
		t.refuse(r, contentReply(err), t.client)
	}
	return &failure{reply: contentReply(err)}
}

// blockWriter gives each block its time (RFC 5321 section 4.5.3.2.5), and the whole message a bound.
type blockWriter struct {
	t      *transaction
	until  time.Time
	failed bool
}

// Write implements io.Writer.
func (b *blockWriter) Write(p []byte) (int, error) {
	deadline := time.Now().Add(b.t.timeouts.Block)
	if b.until.Before(deadline) {
		deadline = b.until
	}
	_ = b.t.Conn.SetWriteDeadline(deadline)
	n, err := b.t.Conn.Write(p)
	b.failed = err != nil
	return n, err
}

// early looks for the reply of a hop that closed before it had the whole message. The final dot was not sent, so
// nothing is in doubt.
func (t *transaction) early(err error) *failure {
	_ = t.Conn.SetReadDeadline(time.Now().Add(time.Second))
	rep, readErr := t.reply()
	if readErr != nil || rep.Code == 421 || !rep.Temporary() && !rep.Permanent() {
		return t.lost(err)
	}
	for _, r := range t.accepted {
		t.refuse(r, rep, t.client)
	}
	return next(451, "4.4.2", "connection to %s closed after %s", t.target, rep)
}

// finish settles recipients by the reply to the final dot.
func (t *transaction) finish(list []*envelope.Recipient, rep envelope.Reply) *failure {
	if rep.Code/100 == 3 {
		return t.inDoubt(list, fmt.Errorf("%w: %s", errReply, rep))
	}
	for _, r := range list {
		switch {
		case !positive(rep):
			t.refuse(r, rep, t.client)
		case t.ext.dsn:
			t.settle(r, envelope.Delivered, rep, t.client).Passed = true
		case t.connector.LMTP != "":
			t.settle(r, envelope.Delivered, rep, t.client) // LMTP is final delivery (RFC 2033 section 1)
		default:
			t.settle(r, envelope.Relayed, rep, t.client)
		}
	}
	if rep.Code == 421 {
		return next(421, rep.Enhanced, "%s", rep.Text)
	}
	return nil
}

// inDoubt settles recipients whose message the hop may or may not have.
func (t *transaction) inDoubt(list []*envelope.Recipient, err error) *failure {
	rep := reply(451, "4.4.2", fmt.Sprintf("no reply to the final dot from %s: %s", t.target, plainError(err)))
	for _, r := range list {
		t.settle(r, envelope.Pending, rep, t.client).InDoubt = true
	}
	return &failure{reply: rep, elsewhere: true}
}

// commands are the lines from MAIL to DATA.
func (t *transaction) commands() []string {
	lines := make([]string, 0, len(t.rcpts)+2)
	lines = append(lines, t.mailCommand())
	for _, r := range t.rcpts {
		lines = append(lines, t.rcptCommand(r))
	}
	return append(lines, "DATA\r\n")
}

func (t *transaction) mailCommand() string {
	s := &t.item.Mail.Sender
	path, _ := t.path(s.Address)
	var b strings.Builder
	b.WriteString("MAIL FROM:<" + path + ">")
	if t.ext.sizeParam {
		b.WriteString(" SIZE=" + strconv.FormatInt(t.content.size, 10))
	}
	if t.eight {
		b.WriteString(" BODY=8BITMIME")
	}
	if t.needsUTF8() {
		b.WriteString(" SMTPUTF8")
	}
	if s.RequireTLS && t.ext.requireTLS && t.verified {
		b.WriteString(" REQUIRETLS")
	}
	if t.ext.dsn {
		writeParam(&b, "RET", s.Ret)
		writeParam(&b, "ENVID", xtext(s.EnvID))
	}
	if t.ext.auth {
		writeParam(&b, "AUTH", authParam(s.Auth))
	}
	b.WriteString("\r\n")
	return b.String()
}

// authParam: RFC 4954 section 5; "<>" stands as it is.
func authParam(s string) string {
	if s == "<>" {
		return s
	}
	return xtext(s)
}

// needsUTF8 of a hop that offers it: an address or a header that is not US-ASCII (RFC 6531 section 3.4).
func (t *transaction) needsUTF8() bool {
	if !t.ext.utf8 {
		return false
	}
	s := &t.item.Mail.Sender
	if !s.Address.IsASCII() || s.SMTPUTF8 && t.content.headEight {
		return true
	}
	for _, r := range t.rcpts {
		if !r.Address.IsASCII() {
			return true
		}
	}
	return false
}

func (t *transaction) rcptCommand(r *envelope.Recipient) string {
	path, _ := t.path(r.Address)
	var b strings.Builder
	b.WriteString("RCPT TO:<" + path + ">")
	if t.ext.dsn {
		writeParam(&b, "NOTIFY", notifyWords(r.Notify))
		writeParam(&b, "ORCPT", orcptParam(r.ORCPT, t.needsUTF8()))
	}
	b.WriteString("\r\n")
	return b.String()
}
