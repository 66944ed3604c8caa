package wire

import (
	"strconv"
	"strings"
	"time"

	"github.com/posternmail/postern/host/internal/envelope"
)

// Replies of the wire itself.
var (
	internalError = envelope.Reply{Code: 421, Enhanced: "4.3.0", Text: "Internal error, closing transmission channel"}
	tooLarge      = envelope.Reply{Code: 552, Enhanced: "5.3.4", Text: "Message size exceeds fixed maximum message size"}
	timedOut      = envelope.Reply{Code: 421, Enhanced: "4.4.1", Text: "Connection timed out"}
	shuttingDown  = envelope.Reply{Code: 421, Enhanced: "4.3.2", Text: "Service shutting down, closing transmission channel"}
)

// goSMTP says the refusals of go-smtp v0.25.1 with the codes of RFC 5321 section 4.3.2 and 4.2.4, RFC 4954 section 6 and
// the texts of this server. A refusal stays one. What is not in the table goes out as it is.
var goSMTP = map[string]envelope.Reply{
	"Please introduce yourself first.":                {Code: 503, Enhanced: "5.5.2", Text: "Send hello first"},
	"Domain/address argument required for HELO":       {Code: 501, Enhanced: "5.5.4", Text: "Domain name required"},
	"Was expecting MAIL arg syntax of FROM:<address>": {Code: 501, Enhanced: "5.1.7", Text: "Invalid sender address"},
	"Was expecting RCPT arg syntax of TO:<address>":   {Code: 501, Enhanced: "5.1.3", Text: "Invalid recipient address"},
	"Unknown MAIL FROM argument":                      {Code: 555, Enhanced: "5.5.4", Text: "Unsupported MAIL parameter"},
	"Unknown RCPT TO argument":                        {Code: 555, Enhanced: "5.5.4", Text: "Unsupported RCPT parameter"},
	"Missing MAIL FROM command.":                      {Code: 503, Enhanced: "5.5.2", Text: "Need mail command"},
	"Missing RCPT TO command.":                        {Code: 503, Enhanced: "5.5.2", Text: "Need rcpt command"},
	"DATA command should not have any arguments":      {Code: 501, Enhanced: "5.5.4", Text: "DATA takes no arguments"},
	"BINARYMIME is not implemented":                   {Code: 504, Enhanced: "5.5.4", Text: "BODY=BINARYMIME is not offered"},
	"Malformed AUTH parameter value":                  {Code: 501, Enhanced: "5.5.4", Text: "Malformed AUTH parameter"},
	"Malformed AUTH parameter mailbox":                {Code: 501, Enhanced: "5.5.4", Text: "Malformed AUTH parameter"},
	"Already authenticated":                           {Code: 503, Enhanced: "5.5.1", Text: "Already authenticated"},
	"Missing parameter":                               {Code: 501, Enhanced: "5.5.4", Text: "Mechanism required"},
	"Invalid base64 data":                             {Code: 501, Enhanced: "5.5.2", Text: "Invalid base64"},
	"Negotiation cancelled":                           {Code: 501, Enhanced: "5.7.0", Text: "Authentication cancelled"},
	"Internal server error":                           internalError,
}

// Write takes a reply of go-smtp, which writes a line a call.
func (c *Conn) Write(p []byte) (int, error) {
	if len(p) < 6 {
		return len(p), nil
	}
	if p[3] == '-' {
		// Only EHLO has more lines than one, and those are the session's.
		return len(p), nil
	}
	if a := c.answer; p[0] < '4' && p[0] == '0'+byte(a.Reply.Code/100) && !c.swallow && !c.down.Load() {
		// What go-smtp says is not looked at.
		c.answer = Answer{}
		c.agreed(a)
		return len(p), nil
	}
	code, err := strconv.Atoi(string(p[:3]))
	if err == nil {
		c.finish(parseReply(code, strings.TrimRight(string(p[4:]), "\r\n")))
	}
	return len(p), nil
}

// agreed says what was to be said if go-smtp agrees.
func (c *Conn) agreed(a Answer) {
	defer c.survive()
	c.say(a)
}

// parseReply takes the enhanced code from the text.
func parseReply(code int, text string) envelope.Reply {
	r := envelope.Reply{Code: code, Text: text}
	word, rest, ok := strings.Cut(text, " ")
	if ok && len(word) >= 5 && word[1] == '.' && word[0] == byte('0'+code/100) {
		r.Enhanced, r.Text = word, rest
	}
	return r
}

// finish turns a reply of go-smtp into the one that is written.
func (c *Conn) finish(r envelope.Reply) {
	defer c.survive()
	if c.down.Load() {
		return // nobody is left to hear it
	}
	if c.swallow {
		c.swallow = false
		return
	}
	a := c.answer
	c.answer = Answer{}
	switch {
	case r.Code == 334:
		// RFC 4954 section 4: what follows is no command.
		c.secret = true
		a = Answer{Reply: r}
	case a.Reply.IsZero() || (a.Reply.Code < 400) != (r.Code < 400):
		a = Answer{Reply: c.ours(r)}
	}
	c.say(a)
}

// ours replaces a reply of go-smtp by the one of this server.
func (c *Conn) ours(r envelope.Reply) envelope.Reply {
	if r.Text == "Unable to parse SIZE as an integer" && c.cmd.declaresMuch() {
		return tooLarge
	}
	if known, ok := goSMTP[r.Text]; ok && r.Code >= 400 {
		return known
	}
	return r
}

// declaresMuch reports whether SIZE is a number, which go-smtp reads only up to 32 bits.
func (c *Command) declaresMuch() bool {
	for _, p := range strings.Fields(c.params) {
		key, value, _ := strings.Cut(p, "=")
		if strings.EqualFold(key, "SIZE") {
			return value != "" && strings.Trim(value, "0123456789") == ""
		}
	}
	return false
}

// Say writes an answer of the session outside of a command: the greeting.
func (c *Conn) Say(a Answer) { c.say(a) }

// say writes an answer.
func (c *Conn) say(a Answer) {
	if a.Reply.Code >= 400 {
		a = c.refusal(a)
	}
	if a.Tarpit > 0 {
		_ = c.Flush()
		c.pause(a.Tarpit)
	}
	if !a.Reply.IsZero() {
		c.put(a)
	}
	if !a.Close {
		return
	}
	if a.End == "" {
		a.End = EndDropped
	}
	_ = c.Flush()
	c.end(a.End)
	if a.End != EndQuit {
		c.linger()
	}
}

// refusal has a refusal completed.
func (c *Conn) refusal(a Answer) Answer {
	c.judge.Refuse(&c.cmd, &a)
	return a
}

// pause waits, in pieces, so that a shutdown need not wait for it.
func (c *Conn) pause(d time.Duration) {
	const piece = 100 * time.Millisecond
	for ; d > 0 && !c.down.Load() && !c.hurry.Load(); d -= piece {
		time.Sleep(min(d, piece))
	}
}

// put adds a reply to the output.
func (c *Conn) put(a Answer) {
	c.mu.Lock()
	defer c.mu.Unlock()
	start := len(c.out)
	if len(a.Lines) > 0 {
		c.out = appendLine(c.out, a.Reply.Code, '-', "", a.Reply.Text)
		for _, l := range a.Lines[:len(a.Lines)-1] {
			c.out = appendLine(c.out, a.Reply.Code, '-', "", l)
		}
		c.out = appendLine(c.out, a.Reply.Code, ' ', "", a.Lines[len(a.Lines)-1])
	} else {
		c.out = appendLine(c.out, a.Reply.Code, ' ', a.Reply.Enhanced, a.Reply.Text)
	}
	if c.protocol != nil {
		for _, l := range strings.Split(strings.TrimSuffix(string(c.out[start:]), "\r\n"), "\r\n") {
			c.protocol('>', l)
		}
	}
}

// appendLine writes one line of a reply. Line ends and other controls in a text become blanks: a text may quote
// what a client or an agent said.
func appendLine(b []byte, code int, sep byte, enhanced, text string) []byte {
	b = strconv.AppendInt(b, int64(code), 10)
	b = append(b, sep)
	if enhanced != "" {
		b = append(b, enhanced...)
		b = append(b, ' ')
	}
	for i := 0; i < len(text); i++ {
		if text[i] < ' ' || text[i] == 0x7f {
			b = append(b, ' ')
		} else {
			b = append(b, text[i])
		}
	}
	return append(b, "\r\n"...)
}

// Flush writes what is to be said to the network.
func (c *Conn) Flush() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.out) == 0 || c.fail != nil {
		return c.fail
	}
	_ = c.conn.SetWriteDeadline(time.Now().Add(c.opt.Inactivity))
	_, c.fail = c.conn.Write(c.out)
	if cap(c.out) > 1024 {
		c.out = nil
	}
	c.out = c.out[:0]
	return c.fail
}

// Waiting says that something begins that may take long: replies that are ready go out after a short while. The
// function it returns is called when it is over.
func (c *Conn) Waiting() (over func()) {
	c.mu.Lock()
	idle := len(c.out) == 0
	c.mu.Unlock()
	if idle {
		return func() {}
	}
	t := time.AfterFunc(patience, func() { _ = c.Flush() })
	return func() { t.Stop() }
}
