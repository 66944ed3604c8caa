package wire

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"time"

	"github.com/posternmail/postern/host/internal/envelope"
	"github.com/posternmail/postern/sdk/address"
)

// errLong is a line longer than it may be; it has been read to its end.
var errLong = errors.New("line too long")

// Read gives go-smtp one line.
func (c *Conn) Read(p []byte) (n int, err error) {
	defer func() {
		if v := recover(); v != nil {
			c.crashed(v)
			n, err = 0, io.EOF
		}
	}()
	if len(c.pending) == 0 {
		if !c.next() {
			return 0, io.EOF
		}
	}
	n = copy(p, c.pending)
	c.pending = c.pending[n:]
	return n, nil
}

// next finds the next line for go-smtp and carries out on the way what is not go-smtp's. False: the connection is over.
func (c *Conn) next() bool {
	for !c.down.Load() {
		if len(c.fed) > 0 {
			c.swallow = c.fed[0].swallow
			c.hand(c.fed[0].line)
			c.fed = c.fed[1:]
			return true
		}
		if c.secret {
			return c.nextSecret()
		}
		if c.nextCommand() {
			return true
		}
	}
	return false
}

// hand gives go-smtp a line without its line end.
func (c *Conn) hand(line string) {
	c.line = append(append(c.line[:0], line...), "\r\n"...)
	c.pending = c.line
}

// nextSecret hands on the answer to a 334, which is no command and is never logged.
func (c *Conn) nextSecret() bool {
	c.secret = false
	line, err := c.readLine(maxSecret)
	if err != nil && err != errLong {
		c.lost(err)
		return false
	}
	c.log('<', "***")
	text, fault := lineText(line)
	switch {
	case err == errLong:
		// RFC 4954 section 4: "If the client sends ... a line longer than 12288 octets": 500, and the exchange is over.
		c.answer = Answer{Reply: envelope.Reply{Code: 500, Enhanced: "5.5.6", Text: "Authentication line too long"}}
		c.hand("*")
	case fault != "":
		c.answer = Answer{Reply: envelope.Reply{Code: 501, Enhanced: "5.5.2", Text: fault}}
		c.hand("*")
	default:
		c.hand(text)
	}
	return true
}

// nextCommand reads a command and has it judged. True: go-smtp is to see it.
func (c *Conn) nextCommand() bool {
	c.answer = Answer{}
	c.cmd = Command{}
	line, err := c.readLine(maxCommand)
	if err != nil && err != errLong {
		c.lost(err)
		return false
	}
	c.cmd = parseCommand(line)
	if err == errLong {
		c.cmd = Command{Fault: "Line too long"}
	}
	c.logCommand()
	switch {
	case c.cmd.Fault != "":
		a, _ := c.judge.Command(&c.cmd)
		c.say(a)
		return false
	case c.cmd.Verb == "BDAT":
		return c.bdat()
	}
	a, pass := c.judge.Command(&c.cmd)
	if !pass {
		c.say(a)
		return false
	}
	if c.cmd.Verb == "STARTTLS" {
		c.startTLS()
		return false
	}
	c.answer = a
	if len(c.fed) > 0 {
		// Something that the client did not send must come first.
		c.fed = append(c.fed, fed{line: c.plain()})
		return false
	}
	c.hand(c.plain())
	return true
}

// parseCommand takes a line apart: a verb of letters, and what follows one blank.
func parseCommand(line []byte) Command {
	text, fault := lineText(line)
	if fault != "" {
		return Command{Fault: fault}
	}
	// RFC 5321 section 4.1.1: trailing white space before CRLF is tolerated.
	text = strings.TrimRight(text, " \t")
	verb, arg, _ := strings.Cut(text, " ")
	c := Command{Verb: strings.ToUpper(verb), Arg: strings.TrimSpace(arg), Line: text}
	switch c.Verb {
	case "MAIL":
		c.parsePath("FROM:")
	case "RCPT":
		c.parsePath("TO:")
	}
	return c
}

// parsePath reads the path of MAIL and RCPT. Blanks before it are no part of the grammar, but common.
func (c *Command) parsePath(keyword string) {
	if len(c.Arg) < len(keyword) || !strings.EqualFold(c.Arg[:len(keyword)], keyword) {
		c.PathErr = address.ErrSyntax
		return
	}
	c.Path, c.params, c.PathErr = address.ParsePath(strings.TrimLeft(c.Arg[len(keyword):], " \t"))
	if c.PathErr == nil && c.params != "" && c.params[0] != ' ' {
		c.PathErr = address.ErrSyntax
	}
}

// lineText checks the octets of a line and takes its line end off. RFC 5321 section 2.3.8: CR and LF stand only together.
func lineText(line []byte) (text, fault string) {
	body, ok := bytes.CutSuffix(line, []byte("\r\n"))
	if !ok {
		return "", "Bare line feed in command"
	}
	for _, b := range body {
		switch {
		case b == '\r':
			return "", "Bare carriage return in command"
		case b == 0:
			return "", "NUL in command"
		case b < ' ' && b != '\t', b == 0x7f:
			return "", "Control character in command"
		}
	}
	return string(body), ""
}

// plain is the command as go-smtp shall see it. The path of MAIL and RCPT, which the session takes from Command, is
// replaced by one that go-smtp's parser understands. One that is wrong goes as it is: go-smtp may have a reason to
// refuse that comes first, and if not the session has.
func (c *Conn) plain() string {
	if c.cmd.PathErr != nil {
		return c.cmd.Line
	}
	switch c.cmd.Verb {
	case "MAIL":
		if c.cmd.Path.IsNull() {
			return "MAIL FROM:<>" + c.cmd.params
		}
		return "MAIL FROM:<a@b>" + c.cmd.params
	case "RCPT":
		return "RCPT TO:<a@b>" + c.cmd.params
	}
	if c.cmd.Arg == "" {
		return c.cmd.Verb
	}
	return c.cmd.Verb + " " + c.cmd.Arg
}

// logCommand writes the command to the protocol log, without the initial response of AUTH.
func (c *Conn) logCommand() {
	if c.protocol == nil {
		return
	}
	line := c.cmd.Line
	if c.cmd.Fault != "" {
		line = "(" + c.cmd.Fault + ")"
	}
	if c.cmd.Verb == "AUTH" {
		mechanism, _, more := strings.Cut(c.cmd.Arg, " ")
		line = "AUTH " + mechanism
		if more {
			line += " ***"
		}
	}
	c.protocol('<', line)
}

// readLine reads a line with its line end, of at most limit octets. It is valid until the next read.
func (c *Conn) readLine(limit int) ([]byte, error) {
	scanned, dropped := 0, 0
	for {
		b := c.in.unread()
		if i := bytes.IndexByte(b[scanned:], '\n'); i >= 0 {
			n := scanned + i + 1
			c.in.take(n)
			if dropped+n > limit {
				return nil, errLong
			}
			return b[:n], nil
		}
		scanned = len(b)
		if scanned > limit {
			dropped += scanned
			c.in.take(scanned)
			scanned = 0
		}
		if dropped > maxOverlong {
			return nil, io.ErrUnexpectedEOF
		}
		if err := c.fill(); err != nil {
			return nil, err
		}
	}
}

// fill waits for the client, after everything has been said to it.
func (c *Conn) fill() error {
	if c.down.Load() {
		return io.EOF
	}
	if err := c.Flush(); err != nil {
		return err
	}
	deadline := time.Now().Add(c.opt.Inactivity)
	if !c.body.moving && c.until.Before(deadline) {
		deadline = c.until
	}
	if !c.body.until.IsZero() && c.body.until.Before(deadline) {
		deadline = c.body.until
	}
	_ = c.conn.SetReadDeadline(deadline)
	if c.hurry.Load() && !c.judge.Busy() {
		return errShutdown
	}
	err := c.in.fill(c.conn)
	if err != nil && isTimeout(err) && c.hurry.Load() && time.Now().Before(deadline) {
		if !c.judge.Busy() {
			return errShutdown
		}
		_ = c.conn.SetReadDeadline(deadline)
		err = c.in.fill(c.conn)
	}
	return err
}

// errShutdown ends an idle connection.
var errShutdown = errors.New("shutting down")

// lost ends the connection after a failed read and says so where there is anyone left to hear it.
func (c *Conn) lost(err error) {
	c.cmd = Command{}
	switch {
	case c.down.Load():
		c.end(EndDropped)
	case err == errShutdown:
		c.say(Answer{Reply: shuttingDown, Close: true, End: EndShutdown})
	case isTimeout(err):
		c.say(Answer{Reply: timedOut, Close: true, End: EndTimeout})
	case errors.Is(err, io.ErrUnexpectedEOF):
		c.end(EndProtocol)
	default:
		c.end(EndGone)
	}
}
