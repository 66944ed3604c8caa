package session_test

import (
	"crypto/tls"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/posternmail/postern/host/internal/tracking"
	"github.com/posternmail/postern/internal/logtest"
)

const sNoRoom = "S: 452 4.3.1 Insufficient system resources [id]"

// TestFullDiskRefusesAtMail: a client learns that there is no room before it sends a message in vain.
func TestFullDiskRefusesAtMail(t *testing.T) {
	s := usual()
	s.spool, s.said = &spool{}, &logtest.Output{}
	h := start(t, s)
	c := h.hello()
	h.spool.fill(1000)
	c.dialog("C: MAIL FROM:<a@x.test> SIZE=1000", sNoRoom, "C: MAIL FROM:<a@x.test> SIZE=999", sOK, "C: RSET", "S: 250 2.0.0 Resetting")
	c.envelope("b@ours.test")
	h.spool.fill(0)
	c.dialog("C: DATA", sNoRoom, "C: RSET", "S: 250 2.0.0 Resetting")
	for range 50 {
		c.dialog("C: MAIL FROM:<a@x.test>", sNoRoom)
	}
	if r := h.ledger.wait(t, tracking.Reject, 52); r[0].Command != "MAIL" || r[1].Command != "DATA" {
		t.Errorf("refused %q and %q", r[0].Command, r[1].Command)
	}
	if said := s.said.String(); said != "" {
		t.Errorf("a full disk, which the store tells of, is in the log for each message:\n%s", said)
	}
}

// TestFullDiskAtTheEnd: where the disk fills up while a message comes in, its client is told to try again.
func TestFullDiskAtTheEnd(t *testing.T) {
	s := usual()
	s.spool, s.said = &spool{}, &logtest.Output{}
	h := start(t, s)
	c := h.hello()
	c.envelope("b@ours.test")
	c.dialog("C: DATA", s354)
	h.spool.fill(0)
	h.spool.mu.Lock()
	h.spool.fail = h.spool.full
	h.spool.mu.Unlock()
	c.send(simple + ".\r\n")
	c.expect(sNoRoom[3:])
	if said := s.said.String(); said != "" {
		t.Errorf("in the log:\n%s", said)
	}
}

// TestChunksOnAFullDisk: BDAT is refused as DATA is, and the octets of the chunk are not taken for commands.
func TestChunksOnAFullDisk(t *testing.T) {
	s := usual()
	s.spool = &spool{}
	h := start(t, s)
	c := h.hello()
	c.envelope("b@ours.test")
	h.spool.fill(0)
	c.send("BDAT 6\r\nQUIT\r\nNOOP\r\n")
	c.dialog(sNoRoom, "S: 250 2.0.0 OK")
}

// TestOtherProtocol: a browser that was made to post mail commands to this server gets nowhere.
func TestOtherProtocol(t *testing.T) {
	const mail = "EHLO x\r\nMAIL FROM:<a@x.test>\r\nRCPT TO:<b@ours.test>\r\nDATA\r\n" + simple + ".\r\nQUIT\r\n"
	for _, line := range []string{"POST / HTTP/1.1", "get / HTTP/1.0", "CONNECT ours.test:25 HTTP/1.1", "Host: edge.test:25", "X-Field:"} {
		t.Run(line, func(t *testing.T) {
			s := usual()
			s.said = &logtest.Output{}
			h := start(t, s)
			c := h.dial()
			c.send(line + "\r\nContent-Length: 1000\r\n\r\n" + mail)
			c.dialog("S: 220 edge.test ESMTP Postern", "S: 421 4.7.0 This is an SMTP server, closing transmission channel [id]")
			c.closed()
			if kept := h.spool.all(); len(kept) > 0 {
				t.Errorf("%d messages were accepted", len(kept))
			}
			r := h.ledger.wait(t, tracking.Reject, 1)[0]
			verb, _, _ := strings.Cut(line, " ")
			if r.Command != strings.ToUpper(verb) || !strings.HasPrefix(r.Reply, "421 4.7.0 This is an SMTP server") {
				t.Errorf("ledger: %q %q", r.Command, r.Reply)
			}
			end := h.ledger.wait(t, tracking.Session, 1)[0]
			if end.Counts.End != "protocol" || end.Counts.Commands != 1 {
				t.Errorf("the session ended by %q after %d commands", end.Counts.End, end.Counts.Commands)
			}
			if said := s.said.String(); !strings.Contains(said, "does not speak SMTP") || !strings.Contains(said, end.Session) || !strings.Contains(said, "client=127.0.0.1:") {
				t.Errorf("log: %q", said)
			}
		})
	}
}

// TestHeaderLinesInASession: a header that comes as commands ends a session, too; a colon in an argument does not.
func TestHeaderLinesInASession(t *testing.T) {
	c := start(t, usual()).hello()
	c.dialog("C: NOOP a:b", "S: 250 2.0.0 OK", "C: XYZ a:b", "S: 500 5.3.3 Unrecognized command [id]", "C: MAIL FROM:<a@x.test>", sOK,
		"C: Subject: hello", "S: 421 4.7.0 This is an SMTP server, closing transmission channel [id]")
	c.closed()
}

// TestTooManyRecipientsForLong: a client may give all its recipients and send to the rest later, but not go on for ever.
func TestTooManyRecipientsForLong(t *testing.T) {
	s := usual()
	s.receive.Limits.Tarpit, s.receive.Limits.TarpitSet = 20*time.Millisecond, true
	h := start(t, s)
	c := h.hello()
	c.envelope("1@ours.test", "2@ours.test", "3@ours.test", "4@ours.test", "5@ours.test")
	give := func(n int) {
		t.Helper()
		go func() { _, _ = fmt.Fprint(c.Conn, strings.Repeat("RCPT TO:<more@ours.test>\r\n", n)) }()
	}
	give(1000)
	for range 1000 {
		c.expect("452 4.5.3 Too many recipients [id]")
	}
	c.message(simple)
	c.expect(queuedSimple)
	c.envelope("6@ours.test", "7@ours.test", "8@ours.test", "9@ours.test", "10@ours.test")
	begun := time.Now()
	give(6)
	for range 5 {
		c.expect("452 4.5.3 Too many recipients [id]")
	}
	c.expect("421 4.7.0 Too many errors on this connection, closing transmission channel [id]")
	c.closed()
	if took := time.Since(begun); took < 6*20*time.Millisecond {
		t.Errorf("it did not wait: %s", took)
	}
	if r := h.ledger.wait(t, tracking.Session, 1)[0]; r.Counts.End != "too-many-errors" {
		t.Errorf("end %q", r.Counts.End)
	}
}

// TestFailedHandshakeIsNamed: the log says whose handshake has failed, and in which session.
func TestFailedHandshakeIsNamed(t *testing.T) {
	s := usual()
	s.said = &logtest.Output{}
	h := start(t, s)
	c := h.hello()
	c.dialog("C: STARTTLS", "S: 220 2.0.0 Ready to start TLS")
	_ = tls.Client(c.Conn, &tls.Config{ServerName: "other.test"}).Handshake() // the certificate is not for that name
	_ = c.Close()
	end := h.ledger.wait(t, tracking.Session, 1)[0]
	said := s.said.String()
	for _, want := range []string{"TLS handshake failed", "connector=internet", "session=" + end.Session, "client=" + c.LocalAddr().String()} {
		if !strings.Contains(said, want) {
			t.Errorf("no %q in the log: %s", want, said)
		}
	}
}
