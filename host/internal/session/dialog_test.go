package session_test

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/posternmail/postern/host/internal/envelope"
	"github.com/posternmail/postern/host/internal/queue"
	"github.com/posternmail/postern/host/internal/tracking"
)

const (
	sOK   = "S: 250 2.1.0 Sender OK"
	rOK   = "S: 250 2.1.5 Recipient OK"
	s354  = "S: 354 Start mail input; end with <CRLF>.<CRLF>"
	sOver = "S: 221 2.0.0 Service closing transmission channel"
)

// Each verb in each state, octet for octet.
func TestDialogs(t *testing.T) {
	tests := map[string][]string{
		"before the greeting": {
			"C: NOOP", "S: 250 2.0.0 OK", "C: RSET", "S: 250 2.0.0 Resetting",
			"C: MAIL FROM:<a@x.test>", "S: 503 5.5.2 Send hello first [id]",
			"C: RCPT TO:<b@ours.test>", "S: 503 5.5.2 Send hello first [id]",
			"C: DATA", "S: 503 5.5.2 Send hello first [id]",
			"C: HELP", "S: 503 5.5.2 Send hello first [id]",
			"C: QUIT", sOver,
		},
		"greeting": {
			"C: EHLO", "S: 501 5.5.4 Domain name required [id]", "C: HELO", "S: 501 5.5.4 Domain name required [id]",
			"C: HELO x.test", "S: 250 edge.test Hello [127.0.0.1]", "C: helo y.test", "S: 250 edge.test Hello [127.0.0.1]",
		},
		"sequence": {
			"C: HELO x", "S: 250 edge.test Hello [127.0.0.1]",
			"C: RCPT TO:<b@ours.test>", "S: 503 5.5.2 Need mail command [id]",
			"C: DATA", "S: 503 5.5.2 Need rcpt command [id]",
			"C: mail from:<a@x.test>", sOK, "C: MAIL FROM:<a@x.test>", "S: 503 5.5.1 Sender already specified [id]",
			"C: DATA", "S: 503 5.5.2 Need rcpt command [id]",
			"C: rcpt to:<b@ours.test>", rOK, "C: RSET", "S: 250 2.0.0 Resetting",
			"C: DATA", "S: 503 5.5.2 Need rcpt command [id]",
		},
		"a greeting ends the transaction": {
			"C: HELO x", "S: 250 edge.test Hello [127.0.0.1]", "C: MAIL FROM:<>", sOK, "C: RCPT TO:<b@ours.test>", rOK,
			"C: HELO x", "S: 250 edge.test Hello [127.0.0.1]", "C: RCPT TO:<b@ours.test>", "S: 503 5.5.2 Need mail command [id]",
		},
		"unknown": {
			"C: XYZZY", "S: 500 5.3.3 Unrecognized command [id]", "C: ", "S: 500 5.3.3 Unrecognized command [id]",
			"C: STARTTLSX", "S: 500 5.3.3 Unrecognized command [id]", "C: NOOPS", "S: 500 5.3.3 Unrecognized command [id]",
			"C: MAILFROM:<a@b>", "S: 500 5.3.3 Unrecognized command [id]",
			"C: GETX / HTTP/1.1", "S: 421 4.7.0 Too many errors on this connection, closing transmission channel [id]",
		},
		"counted": {
			"C: HELO x", "S: 250 edge.test Hello [127.0.0.1]",
			"C: VRFY joe", "S: 252 2.1.5 Cannot VRFY user", "C: VRFY joe", "S: 252 2.1.5 Cannot VRFY user",
			"C: EXPN list", "S: 502 5.3.3 Command not implemented [id]", "C: EXPN list", "S: 502 5.3.3 Command not implemented [id]",
			"C: VRFY joe", "S: 252 2.1.5 Cannot VRFY user",
			"C: VRFY joe", "S: 421 4.7.0 Too many errors on this connection, closing transmission channel [id]",
		},
		"help": {"C: HELO x", "S: 250 edge.test Hello [127.0.0.1]", "C: HELP", "S: 214 2.0.0 This server speaks SMTP as in RFC 5321"},
		"arguments": {
			"C: HELO x", "S: 250 edge.test Hello [127.0.0.1]",
			"C: RSET x", "S: 501 5.5.4 No argument is permitted [id]",
			"C: STARTTLS x", "S: 501 5.5.4 No argument is permitted [id]",
			"C: DATA x", "S: 501 5.5.4 DATA takes no arguments [id]",
			"C: NOOP anything at all", "S: 250 2.0.0 OK", "C: NOOP  ", "S: 250 2.0.0 OK",
		},
		"senders": {
			"C: HELO x", "S: 250 edge.test Hello [127.0.0.1]",
			"C: MAIL a@x.test", "S: 501 5.1.7 Invalid sender address [id]",
			"C: MAIL FROM:a@x.test", "S: 501 5.1.7 Invalid sender address [id]",
			"C: MAIL FROM:<a@x..test>", "S: 501 5.1.7 Invalid sender address [id]",
			"C: MAIL FROM:<a@x.test>SIZE=1", "S: 501 5.1.7 Invalid sender address [id]",
			"C: MAIL FROM:<a b@x.test>", "S: 501 5.1.7 Invalid sender address [id]",
			"C: MAIL FROM: <\"a b\"@x.test>  SIZE=1", sOK,
		},
		"parameters": {
			"C: HELO x", "S: 250 edge.test Hello [127.0.0.1]",
			"C: MAIL FROM:<a@x.test> FOO=BAR", "S: 555 5.5.4 Unsupported MAIL parameter [id]",
			"C: MAIL FROM:<a@x.test> SIZE=1048577", "S: 552 5.3.4 Message size exceeds fixed maximum message size [id]",
			"C: MAIL FROM:<a@x.test> SIZE=99999999999999999999", "S: 552 5.3.4 Message size exceeds fixed maximum message size [id]",
			"C: MAIL FROM:<a@x.test> SIZE=ten", "S: 501 5.5.4 Unable to parse SIZE as an integer [id]",
			"C: MAIL FROM:<a@x.test> BODY=BINARYMIME", "S: 504 5.5.4 BODY=BINARYMIME is not offered [id]",
			"C: MAIL FROM:<a@x.test> REQUIRETLS", "S: 530 5.7.10 REQUIRETLS needs TLS [id]",
			"C: MAIL FROM:<\xc3\xa4@x.test>", "S: 553 5.6.7 Sender address needs SMTPUTF8 [id]",
			"C: MAIL FROM:<\xc3\xa4@x.test> SMTPUTF8 BODY=8BITMIME SIZE=100 RET=HDRS ENVID=a+20b AUTH=<>", sOK,
			"C: RCPT TO:<b@ours.test> NOTIFY=NEVER,DELAY", "S: 501 5.5.4 Malformed NOTIFY parameter value [id]",
			"C: RCPT TO:<b@b\xc3\xbccher.test> NOTIFY=SUCCESS,FAILURE ORCPT=rfc822;b+2B@x.test", rOK,
			"C: RCPT TO:<b@xn--bcher-kva.test>", rOK,
		},
		"no SMTPUTF8": {
			"C: HELO x", "S: 250 edge.test Hello [127.0.0.1]", "C: MAIL FROM:<a@x.test>", sOK,
			"C: RCPT TO:<\xc3\xa4@ours.test>", "S: 553 5.6.7 Recipient address needs SMTPUTF8 [id]",
		},
		"relay": {
			"C: HELO x", "S: 250 edge.test Hello [127.0.0.1]", "C: MAIL FROM:<a@ours.test>", sOK,
			"C: RCPT TO:<b@elsewhere.test>", "S: 550 5.7.1 Unable to relay [id]",
			"C: RCPT TO:<b@evilours.test>", "S: 550 5.7.1 Unable to relay [id]",
			"C: RCPT TO:<b@ours.test.elsewhere.test>", "S: 550 5.7.1 Unable to relay [id]",
			"C: RCPT TO:<b@sub.test>", "S: 550 5.7.1 Unable to relay [id]",
			"C: RCPT TO:<b@[127.0.0.1]>", "S: 550 5.7.1 Unable to relay [id]",
			"C: RCPT TO:<\"b@elsewhere.test\"@ours.test>", rOK, "C: RCPT TO:<b%elsewhere.test@ours.test>", rOK,
			"C: RCPT TO:<@elsewhere.test:b@OURS.test>", rOK, "C: RCPT TO:<b@any.sub.test>", rOK, "C: RCPT TO:<Postmaster>", rOK,
			"C: RCPT TO:<c@ours.test>", "S: 452 4.5.3 Too many recipients [id]",
		},
		"recipients": {
			"C: HELO x", "S: 250 edge.test Hello [127.0.0.1]", "C: MAIL FROM:<>", sOK,
			"C: RCPT TO:<>", "S: 501 5.1.3 Invalid recipient address [id]",
			"C: RCPT TO:b@ours.test", "S: 501 5.1.3 Invalid recipient address [id]",
			"C: RCPT TO:<b@ours.test", "S: 501 5.1.3 Invalid recipient address [id]",
			"C: RCPT TO:<b@ours.test> X=Y", "S: 555 5.5.4 Unsupported RCPT parameter [id]",
			"C: RCPT TO: <b@ours.test>", rOK,
		},
		"auth without tls": {"C: EHLO x", "C: AUTH PLAIN AAAA", "S: 502 5.5.1 AUTH is not offered [id]"},
		"lines": {
			"C: NOOP \x00", "S: 500 5.5.2 NUL in command [id]", "C: NOOP \x07", "S: 500 5.5.2 Control character in command [id]",
			"C: NOOP a\rb", "S: 500 5.5.2 Bare carriage return in command [id]",
			"C: NOOP a\nNOOP", "S: 500 5.5.2 Bare line feed in command [id]", "S: 250 2.0.0 OK",
			"C: NOOP " + strings.Repeat("x", 2100), "S: 500 5.5.2 Line too long [id]", "C: NOOP", "S: 250 2.0.0 OK",
			"C: NOOP " + strings.Repeat("x", 100000), "S: 421 4.7.0 Too many errors on this connection, closing transmission channel [id]",
		},
	}
	for name, script := range tests {
		t.Run(name, func(t *testing.T) {
			c := start(t, usual()).dial()
			c.expect("220 edge.test ESMTP Postern")
			for _, l := range script {
				if l == "C: EHLO x" {
					c.send("EHLO x\r\n")
					c.reply()
					continue
				}
				c.dialog(l)
			}
			if strings.Contains(script[len(script)-1], "closing") {
				c.closed()
			}
		})
	}
}

func TestEHLO(t *testing.T) {
	s := usual()
	s.receive.Permissions = append(s.receive.Permissions, "users")
	s.auth = func(string, string) (bool, error) { return true, nil }
	c := start(t, s).dial()
	c.expect("220 edge.test ESMTP Postern")
	c.send("EHLO x\r\n")
	plain := []string{
		"250-edge.test Hello [127.0.0.1]", "250-SIZE 1048576", "250-PIPELINING", "250-8BITMIME", "250-SMTPUTF8", "250-CHUNKING",
		"250-DSN", "250-ENHANCEDSTATUSCODES", "250-STARTTLS", "250 LIMITS RCPTMAX=5",
	}
	if got := c.reply(); strings.Join(got, "|") != strings.Join(plain, "|") {
		t.Errorf("plain: %q", got)
	}
	c.startTLS()
	c.send("EHLO x\r\n")
	secure := append(append([]string(nil), plain[:8]...), "250-REQUIRETLS", "250-AUTH PLAIN LOGIN", "250 LIMITS RCPTMAX=5")
	if got := c.reply(); strings.Join(got, "|") != strings.Join(secure, "|") {
		t.Errorf("TLS: %q", got)
	}
}

// One write a group: RFC 2920. The replies of a pipelined group come together.
func TestPipelining(t *testing.T) {
	h := start(t, usual())
	c := h.hello()
	c.send("MAIL FROM:<a@x.test>\r\nRCPT TO:<b@ours.test>\r\nRCPT TO:<c@elsewhere.test>\r\nDATA\r\n")
	b := make([]byte, 4096)
	n, err := c.Read(b)
	if err != nil {
		t.Fatal(err)
	}
	if got := strings.Count(string(b[:n]), "\r\n"); got != 4 {
		t.Errorf("%d replies in the first segment: %q", got, b[:n])
	}
	c.send(simple + ".\r\nMAIL FROM:<>\r\nRCPT TO:<b@ours.test>\r\nDATA\r\n" + simple + ".\r\nQUIT\r\n")
	c.dialog("S: "+queuedSimple, sOK, rOK, s354, "S: "+queuedSimple, sOver)
	c.closed()
	if n := len(h.spool.all()); n != 2 {
		t.Errorf("%d items", n)
	}
}

func TestSTARTTLS(t *testing.T) {
	h := start(t, usual())
	c := h.hello()
	c.dialog("C: MAIL FROM:<a@x.test>", sOK, "C: STARTTLS", "S: 503 5.5.1 Not permitted during a mail transaction [id]", "C: RSET", "S: 250 2.0.0 Resetting")
	c.startTLS()
	// RFC 3207 section 4.2: all is forgotten.
	c.dialog("C: MAIL FROM:<a@x.test>", "S: 503 5.5.2 Send hello first [id]", "C: NOOP", "S: 250 2.0.0 OK",
		"C: STARTTLS", "S: 503 5.5.1 TLS is active already [id]", "C: EHLO x")
	c.reply()
	c.dialog("C: MAIL FROM:<a@x.test> REQUIRETLS", sOK, "C: RCPT TO:<b@ours.test>", rOK)
	c.message(simple)
	c.expect(queuedSimple)
	item := h.spool.all()[0]
	if !item.Mail.Sender.RequireTLS || item.Session.TLS == nil || !strings.Contains(string(item.Prefix), "with ESMTPS id ") || !strings.Contains(string(item.Prefix), "tls TLS_") {
		t.Errorf("prefix %q", item.Prefix)
	}
	c.dialog("C: QUIT", sOver)
}

// What is sent behind STARTTLS in the clear is never carried out, whichever way it arrives.
func TestSTARTTLSInjection(t *testing.T) {
	for _, behind := range []string{"NOOP\r\n", "MAIL FROM:<a@x.test>\r\n", "\x16\x03\x01", "x"} {
		h := start(t, usual())
		c := h.hello()
		c.send("STARTTLS\r\n" + behind)
		c.expect("554 5.5.1 Nothing may follow STARTTLS, closing transmission channel [id]")
		c.closed()
	}
}

func TestRequireTLSAndImplicitTLS(t *testing.T) {
	s := usual()
	s.receive.RequireTLS = true
	c := start(t, s).dial()
	c.expect("220 edge.test ESMTP Postern")
	c.dialog("C: EHLO x")
	c.reply()
	c.dialog("C: MAIL FROM:<>", "S: 530 5.7.0 Must issue a STARTTLS command first [id]", "C: NOOP", "S: 250 2.0.0 OK")
	c.startTLS()
	c.dialog("C: EHLO x")
	c.reply()
	c.envelope("b@ours.test")

	s = usual()
	s.receive.ImplicitTLS = true
	h := start(t, s)
	c = h.dial()
	secured := tls.Client(c.Conn, &tls.Config{InsecureSkipVerify: true, ServerName: "edge.test"})
	c.Conn = secured
	c.r.Reset(secured)
	c.expect("220 edge.test ESMTP Postern")
	c.send("EHLO x\r\n")
	for _, l := range c.reply() {
		if strings.Contains(l, "STARTTLS") {
			t.Error("STARTTLS offered over TLS")
		}
	}
	c.envelope("b@ours.test")
	c.message(simple)
	c.expect(queuedSimple)
	if tlsFacts := h.spool.all()[0].Session.TLS; tlsFacts == nil || tlsFacts.ServerName != "edge.test" {
		t.Errorf("TLS facts %+v", tlsFacts)
	}
}

func TestAuth(t *testing.T) {
	s := usual()
	s.receive.Permissions = []string{"users"}
	s.receive.ProtocolLog, s.quiet = true, true
	s.auth = func(user, password string) (bool, error) {
		if user == "broken" {
			return false, errors.New("disk")
		}
		return user == "joe" && password == "secret", nil
	}
	h := start(t, s)
	c := h.hello()
	c.dialog("C: MAIL FROM:<>", "S: 530 5.7.1 Client was not authenticated [id]",
		"C: AUTH PLAIN AGpvZQBzZWNyZXQ=", "S: 538 5.7.11 Encryption required for requested authentication mechanism [id]")
	c.startTLS()
	c.dialog("C: AUTH PLAIN AGpvZQBzZWNyZXQ=", "S: 503 5.5.2 Send hello first [id]", "C: EHLO x")
	c.reply()
	c.dialog(
		"C: AUTH", "S: 501 5.5.4 Mechanism required [id]",
		"C: AUTH CRAM-MD5", "S: 504 5.7.4 Unrecognized authentication type [id]",
		"C: AUTH PLAIN", "S: 334 ", "C: *", "S: 501 5.7.0 Authentication cancelled [id]",
		"C: AUTH PLAIN", "S: 334 ", "C: NOOP", "S: 501 5.5.2 Malformed authentication response [id]",
	)
	c = h.secure()
	c.dialog(
		"C: AUTH PLAIN ?", "S: 501 5.5.2 Invalid base64 [id]",
		"C: AUTH LOGIN", "S: 334 VXNlcm5hbWU6", "C: "+strings.Repeat("A", 13000), "S: 500 5.5.6 Authentication line too long [id]",
		"C: AUTH PLAIN AGJyb2tlbgB4", "S: 454 4.7.0 Temporary authentication failure [id]",
		// The right password of someone who wants to be someone else.
		"C: AUTH PLAIN eABqb2UAc2VjcmV0", "S: 535 5.7.8 Authentication unsuccessful [id]",
		"C: AUTH LOGIN am9l", "S: 334 UGFzc3dvcmQ6", "C: c2VjcmV0", "S: 235 2.7.0 Authentication successful",
		"C: AUTH PLAIN AGpvZQBzZWNyZXQ=", "S: 503 5.5.1 Already authenticated [id]",
		"C: MAIL FROM:<joe@ours.test>", sOK, "C: AUTH PLAIN AGpvZQBzZWNyZXQ=", "S: 503 5.5.1 Not permitted during a mail transaction [id]",
		// Users may relay.
		"C: RCPT TO:<b@elsewhere.test>", rOK,
	)
	c.message(simple)
	c.expect(queuedSimple)
	item := h.spool.all()[0]
	if item.Session.Auth == nil || item.Session.Auth.Identity != "joe" || item.Session.Trust != envelope.User || item.Mail.Traffic != envelope.Outbound {
		t.Errorf("session %+v, traffic %v", item.Session, item.Mail.Traffic)
	}
	if !strings.Contains(string(item.Prefix), "with ESMTPSA id ") {
		t.Errorf("prefix %q", item.Prefix)
	}
	c.dialog("C: QUIT", sOver)
	c.closed()
	h.ledger.wait(t, tracking.Session, 1)
	for deadline := time.Now().Add(5 * time.Second); !strings.Contains(h.log.String(), "AUTH LOGIN"); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("protocol log is empty")
		}
	}
	for _, secret := range []string{"c2VjcmV0", "AGpvZQ", "am9l"} {
		if strings.Contains(h.log.String(), secret) {
			t.Errorf("protocol log holds the secret %s", secret)
		}
	}
}

// secure dials, encrypts and greets.
func (h *host) secure() *client {
	c := h.hello()
	c.startTLS()
	c.dialog("C: EHLO client.test")
	c.reply()
	return c
}

func TestTooManyLogonFailures(t *testing.T) {
	s := usual()
	s.receive.Permissions = []string{"users"}
	s.auth = func(string, string) (bool, error) { return false, nil }
	c := start(t, s).secure()
	c.dialog("C: AUTH PLAIN AGpvZQBzZWNyZXQ=", "S: 535 5.7.8 Authentication unsuccessful [id]",
		"C: AUTH PLAIN AGpvZQBzZWNyZXQ=", "S: 535 5.7.8 Authentication unsuccessful [id]",
		"C: AUTH PLAIN AGpvZQBzZWNyZXQ=", "S: 421 4.7.0 Too many errors on this connection, closing transmission channel [id]")
	c.closed()
}

func TestBDAT(t *testing.T) {
	h := start(t, usual())
	c := h.hello()
	c.envelope("b@ours.test")
	head, body := "Message-ID: <1@x.test>\r\n\r\n", ".\r\n..\r\n\x00\r\nend without line end"
	c.send("BDAT 10\r\n" + head[:10] + "BDAT 17\r\n" + head[10:] + body[:1] + "RCPT TO:<b@ours.test>\r\nDATA\r\nNOOP\r\n")
	c.dialog("S: 250 2.6.0 10 octets received", "S: 250 2.6.0 17 octets received", "S: 503 5.5.1 Not permitted between BDAT chunks [id]",
		"S: 503 5.5.1 Not permitted between BDAT chunks [id]", "S: 250 2.0.0 OK")
	c.send(fmt.Sprintf("BDAT 0\r\nBDAT %d LAST\r\n%s", len(body)-1, body[1:]))
	c.dialog("S: 250 2.6.0 0 octets received", "S: "+queuedSimple)
	if got := content(t, h.spool.all()[0]); got != head+body+"\r\n" {
		t.Errorf("content %q", got)
	}
	// RSET in the middle, and a transaction after it.
	c.envelope("b@ours.test")
	c.send("BDAT 3\r\nabcRSET\r\n")
	c.dialog("S: 250 2.6.0 3 octets received", "S: 250 2.0.0 Resetting")
	// Out of sequence: the chunk is no command.
	c.send("BDAT 6\r\nNOOP\r\n")
	c.dialog("S: 503 5.5.2 Need rcpt command [id]", "C: NOOP", "S: 250 2.0.0 OK")
	c.envelope("b@ours.test")
	c.message(simple)
	c.expect(queuedSimple)
}

func TestBDATRefused(t *testing.T) {
	tests := map[string]struct{ chunks, reply string }{
		"bare LF":  {"BDAT 3\r\na\nb", "554 5.6.11 Bare line feed in message [id]"},
		"bare CR":  {"BDAT 2 LAST\r\na\r", "554 5.6.11 Bare carriage return in message [id]"},
		"too much": {"BDAT 1048577\r\na: b\r\n\r\n" + strings.Repeat("a", 1<<20-7), "552 5.3.4 Message size exceeds fixed maximum message size [id]"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			h := start(t, usual())
			c := h.hello()
			c.envelope("b@ours.test")
			c.send(test.chunks)
			c.expect(test.reply)
			// RFC 3030 section 4.2: what is on its way already is read and refused.
			c.send("BDAT 6 LAST\r\nNOOP\r\n")
			c.dialog("S: 503 5.5.2 Need rcpt command [id]")
			c.envelope("b@ours.test")
			c.message(simple)
			c.expect(queuedSimple)
			if n := len(h.spool.all()); n != 1 {
				t.Errorf("%d items", n)
			}
		})
	}
	for _, line := range []string{"BDAT", "BDAT x", "BDAT -1", "BDAT 5 LAS", "BDAT 99999999999999999999"} {
		c := start(t, usual()).hello()
		c.envelope("b@ours.test")
		c.dialog("C: "+line, "S: 501 5.5.4 Malformed BDAT, closing transmission channel [id]")
		c.closed()
	}
	c := start(t, usual()).hello()
	c.envelope("b@ours.test")
	c.dialog("C: BDAT 4000000000", "S: 552 5.3.4 Message size exceeds fixed maximum message size [id]")
	c.closed()
}

// An ambiguous message ends the session; the reply names the fault.
func TestAmbiguousMessage(t *testing.T) {
	tests := map[string]struct{ message, reply string }{
		"LF":          {"a: b\r\n\r\nx\ny\r\n.\r\nNOOP\r\n", "554 5.6.11 Bare line feed in message [id]"},
		"CR":          {"a: b\r\n\r\nx\ry\r\n.\r\nNOOP\r\n", "554 5.6.11 Bare carriage return in message [id]"},
		"LF.LF":       {"a: b\r\n\r\nx\n.\nMAIL FROM:<a@x.test>\r\n", "554 5.6.11 Bare line feed in message [id]"},
		"in header":   {"a: b\n\r\nx\r\n.\r\n", "554 5.6.11 Bare line feed in message [id]"},
		"CRLF.LF":     {"a: b\r\n\r\nx\r\n.\nMAIL FROM:<a@x.test>\r\n", "554 5.6.11 Bare line feed in message [id]"},
		"CRLF.CRCRLF": {"a: b\r\n\r\nx\r\n.\r\r\nMAIL FROM:<a@x.test>\r\n", "554 5.6.11 Bare carriage return in message [id]"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			h := start(t, usual())
			c := h.hello()
			c.envelope("b@ours.test")
			c.dialog("C: DATA", s354)
			c.send(test.message)
			c.expect(test.reply)
			c.closed()
			if n := len(h.spool.all()); n != 0 {
				t.Errorf("%d items", n)
			}
			if r := h.ledger.wait(t, tracking.Session, 1)[0]; r.Counts.End != "protocol" {
				t.Errorf("end %q", r.Counts.End)
			}
		})
	}
}

// Refused messages are read to their end, and the session goes on.
func TestRefusedMessages(t *testing.T) {
	hops := strings.Repeat("Received: from x by y; Mon, 1 Jan 2024 00:00:00 +0000\r\n", 31)
	tests := map[string]struct{ message, reply string }{
		"size":        {"a: b\r\n\r\n" + strings.Repeat(strings.Repeat("x", 70)+"\r\n", 15000), "552 5.3.4 Message size exceeds fixed maximum message size [id]"},
		"header size": {strings.Repeat("a: "+strings.Repeat("x", 70)+"\r\n", 1000) + "\r\nx\r\n", "552 5.3.4 Header size exceeds fixed maximum size [id]"},
		"header line": {"a: " + strings.Repeat("x", 996) + "\r\n\r\nx\r\n", "554 5.6.0 Header line longer than 998 octets [id]"},
		"header fold": {" via evil\r\na: b\r\n\r\nx\r\n", "554 5.6.0 Message header begins with white space [id]"},
		"header NUL":  {"a: \x00\r\n\r\nx\r\n", "554 5.6.0 NUL in message header [id]"},
		"hops":        {hops + "\r\nx\r\n", "554 5.4.6 Hop count exceeded - possible mail loop [id]"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			h := start(t, usual())
			c := h.hello()
			c.envelope("b@ours.test")
			c.message(test.message)
			c.expect(test.reply)
			c.envelope("b@ours.test")
			c.message(simple)
			c.expect(queuedSimple)
		})
	}
}

// What passes, passes octet for octet.
func TestContent(t *testing.T) {
	tests := map[string]string{
		"dots":         "a: b\r\n\r\n.\r\n..\r\n.x\r\n...\r\n",
		"NUL and long": "a: b\r\n\r\n\x00\xff" + strings.Repeat("x", 5000) + "\r\n",
		"8-bit header": "a: \xff\xc3\xa4\r\n\r\n\r\n",
		"no header":    "\r\nbody\r\n",
		"no body":      "a: b\r\n\r\n",
		"folded":       "a: b\r\n c\r\n\td\r\n\r\nx\r\n",
		"998":          "a: " + strings.Repeat("x", 995) + "\r\n\r\nx\r\n",
		"hops":         strings.Repeat("Received: from x by y\r\n", 30) + "\r\nx\r\n",
		"large":        "a: b\r\n\r\n" + strings.Repeat(".stuffed line of some length\r\n", 10000),
	}
	for name, text := range tests {
		t.Run(name, func(t *testing.T) {
			h := start(t, usual())
			c := h.hello()
			c.envelope("b@ours.test")
			c.dialog("C: DATA", s354)
			stuffed := strings.ReplaceAll("\r\n"+text, "\r\n.", "\r\n..")[2:]
			c.send(stuffed + ".\r\n")
			c.expect("250 2.6.0 [id] Queued mail for delivery")
			if got := content(t, h.spool.all()[0]); got != text {
				t.Errorf("content differs: %d octets, want %d", len(got), len(text))
			}
		})
	}
	t.Run("no empty line", func(t *testing.T) {
		h := start(t, usual())
		c := h.hello()
		c.envelope("b@ours.test")
		c.message("a: b\r\n")
		c.expect("250 2.6.0 [id] Queued mail for delivery")
		if m := h.spool.all()[0].Mail; string(m.Header) != "a: b\r\n" || m.Body.Size() != 0 {
			t.Errorf("header %q, body of %d", m.Header, m.Body.Size())
		}
	})
}

func TestHeaderFirewall(t *testing.T) {
	message := "X-Postern-A: 1\r\n folded\r\nSubject: x\r\nx-postern-scl: 9\r\nX-Other: 1\r\n\r\nX-Postern-B: body\r\n"
	h := start(t, usual())
	c := h.hello()
	c.envelope("b@ours.test")
	c.message(message)
	c.expect("250 2.6.0 [id] Queued mail for delivery")
	m := h.spool.all()[0].Mail
	if string(m.Header) != "Subject: x\r\nX-Other: 1\r\n" {
		t.Errorf("header %q", m.Header)
	}
	if !strings.HasPrefix(string(m.OriginalHeader), "X-Postern-A") {
		t.Errorf("original header %q", m.OriginalHeader)
	}
	s := usual()
	s.receive.Permissions = []string{"own_servers"}
	s.receive.Remote = prefixes("127.0.0.0/8")
	h = start(t, s)
	c = h.hello()
	c.envelope("b@elsewhere.test")
	c.message(message)
	c.expect("250 2.6.0 [id] Queued mail for delivery")
	if m := h.spool.all()[0].Mail; string(m.Header) != string(m.OriginalHeader) {
		t.Errorf("header of an own server %q", m.Header)
	}
}

// own_servers on a connector that is open to all trusts nobody.
func TestOwnServersNeedsNames(t *testing.T) {
	s := usual()
	s.receive.Permissions = []string{"own_servers", "anonymous"}
	c := start(t, s).hello()
	c.dialog("C: MAIL FROM:<a@x.test>", sOK, "C: RCPT TO:<b@elsewhere.test>", "S: 550 5.7.1 Unable to relay [id]")
	s.config.Host.InternalSMTPServers = prefixes("127.0.0.1/32")
	c = start(t, s).hello()
	c.dialog("C: MAIL FROM:<a@x.test>", sOK, "C: RCPT TO:<b@elsewhere.test>", rOK)
}

func TestReceived(t *testing.T) {
	h := start(t, usual())
	c := h.dial()
	c.expect("220 edge.test ESMTP Postern")
	c.dialog("C: HELO not_a_domain!", "S: 250 edge.test Hello [127.0.0.1]")
	c.envelope("b@ours.test")
	c.message(simple)
	reply := c.line()
	item := h.spool.all()[0]
	want := "Received: from [127.0.0.1] ([127.0.0.1])\r\n\tby edge.test ([127.0.0.1])\r\n\twith SMTP id " + item.ID + "\r\n\tfor <b@ours.test>;\r\n\t"
	if !strings.HasPrefix(string(item.Prefix), want) || !strings.HasSuffix(string(item.Prefix), "\r\n") {
		t.Errorf("prefix %q, want %q", item.Prefix, want)
	}
	if !strings.Contains(reply, "["+item.ID+"]") || item.Message != item.ID || item.Origin != queue.OriginSMTP {
		t.Errorf("reply %q for item %s", reply, item.ID)
	}
	c.dialog("C: EHLO client.test")
	c.reply()
	c.envelope("b@ours.test", "c@ours.test")
	c.message(simple)
	c.expect(queuedSimple)
	two := string(h.spool.all()[1].Prefix)
	if strings.Contains(two, "for <") || !strings.Contains(two, "from client.test ([127.0.0.1])") || !strings.Contains(two, "with ESMTP id") {
		t.Errorf("prefix %q", two)
	}
	c.dialog("C: MAIL FROM:<a@x.test> SMTPUTF8", sOK, "C: RCPT TO:<\xc3\xa4@ours.test>", rOK)
	c.message(simple)
	c.expect(queuedSimple)
	if three := string(h.spool.all()[2].Prefix); !strings.Contains(three, "with UTF8SMTP id") || !strings.Contains(three, "for <\xc3\xa4@ours.test>") {
		t.Errorf("prefix %q", three)
	}
}

func TestEnvelopeReachesTheItem(t *testing.T) {
	h := start(t, usual())
	c := h.hello()
	c.dialog(`C: MAIL FROM:<"a b"@X.test> SIZE=100 BODY=8BITMIME RET=HDRS ENVID=a+20b AUTH=e+3Dmc2@x.test`, sOK,
		`C: RCPT TO:<"a\"b"@OURS.test> NOTIFY=SUCCESS,DELAY ORCPT=rfc822;c+2B@x.test`, rOK, "C: RCPT TO:<postmaster> NOTIFY=NEVER", rOK)
	c.message(simple)
	c.expect(queuedSimple)
	m := h.spool.all()[0].Mail
	s := m.Sender
	if s.Address.Local != "a b" || s.Address.Domain != "x.test" || s.Size != 100 || s.BodyType != "8BITMIME" || s.Ret != "HDRS" || s.EnvID != "a b" || s.Auth != "e=mc2@x.test" {
		t.Errorf("sender %+v", s)
	}
	r := m.Recipients[0]
	if r.Address.Local != `a"b` || r.Address.Domain != "ours.test" || r.Notify != envelope.NotifySuccess|envelope.NotifyDelay || r.ORCPT != "rfc822;c+@x.test" || r.Index != 0 {
		t.Errorf("recipient %+v", r)
	}
	if p := m.Recipients[1]; p.Address.String() != "postmaster@ours.test" || p.Notify != envelope.NotifyNever || p.Index != 1 {
		t.Errorf("postmaster %+v", p)
	}
}

func TestStoreFails(t *testing.T) {
	for err, reply := range map[error]string{
		syscall.ENOSPC:       "452 4.3.1 Insufficient system resources [id]",
		queue.ErrFull:        "452 4.3.1 Insufficient system resources [id]",
		errors.New("broken"): "451 4.3.0 Message could not be kept, try again later [id]",
	} {
		s := usual()
		s.spool, s.quiet = &spool{fail: err}, true
		h := start(t, s)
		c := h.hello()
		c.envelope("b@ours.test")
		c.message(simple)
		c.expect(reply)
		c.dialog("C: NOOP", "S: 250 2.0.0 OK")
	}
}

func TestTimeouts(t *testing.T) {
	s := usual()
	s.receive.Limits.InactivityTimeout = 50 * time.Millisecond
	h := start(t, s)
	c := h.hello()
	c.expect("421 4.4.1 Connection timed out [id]")
	c.closed()
	if r := h.ledger.wait(t, tracking.Session, 1)[0]; r.Counts.End != "timeout" {
		t.Errorf("end %q", r.Counts.End)
	}
	// The whole connection has a limit too, but a body that moves is not cut.
	s = usual()
	s.receive.Limits.Timeout = 300 * time.Millisecond
	c = start(t, s).hello()
	c.envelope("b@ours.test")
	c.dialog("C: DATA", s354)
	for range 10 {
		c.send("x: y\r\n")
		time.Sleep(50 * time.Millisecond)
	}
	c.send("\r\n.\r\n")
	c.expect("250 2.6.0 [id] Queued mail for delivery")
	c.expect("421 4.4.1 Connection timed out [id]")
	c.closed()
}

func TestLimits(t *testing.T) {
	s := usual()
	s.receive.Limits.MaxConnections = 2
	h := start(t, s)
	h.hello()
	second := h.hello()
	third := h.dial()
	third.expect("421 4.3.2 The maximum number of concurrent connections has exceeded a limit, closing transmission channel [id]")
	third.closed()
	second.dialog("C: QUIT", sOver)
	second.closed()
	h.ledger.wait(t, tracking.Session, 2)
	h.hello()

	s = usual()
	s.receive.Limits.MaxPerSource, s.receive.Limits.MessageRatePerSource, s.receive.Limits.PerSourceSet = 1, 2, true
	h = start(t, s)
	c := h.hello()
	h.dial().expect("421 4.3.2 The maximum number of concurrent connections has exceeded a limit, closing transmission channel [id]")
	for range 2 {
		c.envelope("b@ours.test")
		c.message(simple)
		c.expect(queuedSimple)
	}
	c.dialog("C: MAIL FROM:<>", "S: 421 4.4.2 Message submission rate for this client has exceeded the configured limit [id]")
	c.closed()
	if st := h.conn.Stats(); st.Accepted != 2 || st.Refused != 1 || st.Total != 2 {
		t.Errorf("stats %+v", st)
	}
}

func TestTarpit(t *testing.T) {
	s := usual()
	s.receive.Limits.Tarpit, s.receive.Limits.TarpitSet = 300*time.Millisecond, true
	c := start(t, s).hello()
	c.send("NOOP\r\nXYZZY\r\n")
	began := time.Now()
	c.expect("250 2.0.0 OK")
	c.expect("500 5.3.3 Unrecognized command [id]")
	if time.Since(began) < 200*time.Millisecond {
		t.Error("not delayed")
	}
}

func TestRemote(t *testing.T) {
	s := usual()
	s.receive.Remote = prefixes("192.0.2.0/24")
	c := start(t, s).dial()
	c.expect("554 5.7.1 Client address is not permitted here [id]")
	c.dialog("C: QUIT", sOver)
	c.closed()
}

func TestProxy(t *testing.T) {
	v2 := "\r\n\r\n\x00\r\nQUIT\n\x21\x11\x00\x0c\xc0\x00\x02\x63\xc0\x00\x02\x01\x04\xd2\x00\x19"
	for name, header := range map[string]string{
		"v1": "PROXY TCP4 192.0.2.99 192.0.2.1 1234 25\r\n", "v1, IPv6": "PROXY TCP6 2001:db8::99 2001:db8::1 1234 25\r\n", "v2": v2,
	} {
		for _, early := range []string{"", "EHLO x\r\n"} {
			s := usual()
			s.receive.ProxyFrom = prefixes("127.0.0.0/8")
			h := start(t, s)
			c := h.dial()
			c.send(header + early)
			c.expect("220 edge.test ESMTP Postern")
			if early == "" {
				c.send("EHLO x\r\n")
			}
			c.reply()
			c.envelope("b@ours.test")
			c.message(simple)
			c.expect(queuedSimple)
			got := h.spool.all()[0].Session
			if a := got.Client.String(); a != "192.0.2.99:1234" && a != "[2001:db8::99]:1234" {
				t.Errorf("%s: client %s", name, a)
			}
			if got.Peer.Addr().String() != "127.0.0.1" {
				t.Errorf("%s: peer %s", name, got.Peer)
			}
		}
	}
	s := usual()
	s.receive.ProxyFrom = prefixes("127.0.0.0/8")
	c := start(t, s).dial()
	c.send("EHLO x\r\n")
	c.closed()
}

// A client that has gone before the commit gets nothing kept: it will send again.
func TestPeerGone(t *testing.T) {
	h := start(t, usual())
	c := h.hello()
	c.envelope("b@ours.test")
	c.dialog("C: DATA", s354)
	c.send(strings.Repeat("x: y\r\n", 10))
	_ = c.Conn.(*net.TCPConn).SetLinger(0)
	_ = c.Close()
	h.ledger.wait(t, tracking.Session, 1)
	if n := len(h.spool.all()); n != 0 {
		t.Errorf("%d items", n)
	}
	// The end of data arrives with the end of the connection.
	c = h.hello()
	c.envelope("b@ours.test")
	c.dialog("C: DATA", s354)
	c.send(simple + ".\r\n")
	_ = c.Close()
	h.ledger.wait(t, tracking.Session, 2)
	// With QUIT behind it the client has said all it had to.
	c = h.hello()
	before := len(h.spool.all())
	c.send("MAIL FROM:<>\r\nRCPT TO:<b@ours.test>\r\n")
	c.dialog(sOK, rOK, "C: DATA", s354)
	c.send(simple + ".\r\nQUIT\r\n")
	_ = c.Conn.(*net.TCPConn).CloseWrite()
	c.expect(queuedSimple)
	c.dialog(sOver)
	if n := len(h.spool.all()) - before; n != 1 {
		t.Errorf("%d items", n)
	}
}

func TestShutdown(t *testing.T) {
	h := start(t, usual())
	idle, busy := h.hello(), h.hello()
	busy.envelope("b@ours.test")
	done := make(chan struct{})
	go func() {
		defer close(done)
		time.Sleep(100 * time.Millisecond)
		busy.message(simple)
		busy.expect(queuedSimple)
		busy.expect("421 4.3.2 Service shutting down, closing transmission channel [id]")
		busy.closed()
	}()
	time.Sleep(20 * time.Millisecond)
	go func() { _ = h.conn.Shutdown(t.Context()) }()
	idle.expect("421 4.3.2 Service shutting down, closing transmission channel [id]")
	idle.closed()
	<-done
	if _, err := net.Dial("tcp", h.conn.Addrs()[0].String()); err == nil {
		t.Error("still listening")
	}
	if n := len(h.spool.all()); n != 1 {
		t.Errorf("%d items", n)
	}
}

func TestWithoutHelo(t *testing.T) {
	s := usual()
	s.receive.RequireHelo = false
	h := start(t, s)
	c := h.dial()
	c.expect("220 edge.test ESMTP Postern")
	c.envelope("b@ours.test")
	c.message(simple)
	c.expect(queuedSimple)
}

func TestBanner(t *testing.T) {
	s := usual()
	s.receive.Banner = "mail.test at your service"
	start(t, s).dial().expect("220 mail.test at your service")
}
