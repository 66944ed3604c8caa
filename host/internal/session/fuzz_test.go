package session_test

import (
	"bytes"
	"io"
	"net"
	"regexp"
	"strings"
	"testing"
	"time"
)

// states are what a client can have said before the octets of a fuzzer.
var states = []string{
	"",
	"EHLO x\r\n",
	"EHLO x\r\nMAIL FROM:<a@x.test>\r\n",
	"EHLO x\r\nMAIL FROM:<a@x.test>\r\nRCPT TO:<b@ours.test>\r\n",
	"EHLO x\r\nMAIL FROM:<a@x.test>\r\nRCPT TO:<b@ours.test>\r\nDATA\r\n",
	"EHLO x\r\nMAIL FROM:<a@x.test>\r\nRCPT TO:<b@ours.test>\r\nBDAT 4\r\na: b",
	"EHLO x\r\nMAIL FROM:<a@x.test>\r\nRCPT TO:<b@ours.test>\r\nBDAT 8\r\na: b\r\n\r\n",
}

var replyLine = regexp.MustCompile(`^[2-5][0-9][0-9][ -][^\r\n\x00]*$`)

// FuzzSession sends octets in every state. Whatever they are: replies are well formed, the session ends when the client
// does, nothing is kept that a next hop could misread, and nothing is accepted that was not answered 250.
func FuzzSession(f *testing.F) {
	for state := range states {
		for _, s := range []string{
			"NOOP\r\n", "HELO x\r\n", "EHLO\r\n", "MAIL FROM:<>\r\n", "RCPT TO:<\"a b\"@ours.test> NOTIFY=NEVER\r\n", "DATA\r\n", "BDAT 3 LAST\r\nabc",
			"RSET\r\n", "HELP\r\n", "VRFY a\r\n", "EXPN a\r\n", "STARTTLS\r\n", "STARTTLS\r\nNOOP\r\n", "AUTH PLAIN AAAA\r\n", "QUIT\r\nNOOP\r\n", ".\r\n",
			"a: b\r\n\r\nc\r\n.\r\n", "x\n.\nMAIL FROM:<e@x.test>\r\n", "\x00\r\n", strings.Repeat("x", 3000) + "\r\n", "BDAT 99999999999\r\n", "BDAT -1\r\n",
			"\x16\x03\x01\x02\x00\x01", "GET / HTTP/1.0\r\n\r\n", "\r\n", "\n\n", ".\r", "BDAT 2\r\n\r\nBDAT 2 LAST\r\n\r\n",
		} {
			f.Add(uint8(state), []byte(s))
		}
	}
	s := usual()
	s.quiet = true
	h := start(f, s)
	f.Fuzz(func(t *testing.T, state uint8, octets []byte) {
		h.spool.forget()
		c, err := net.Dial("tcp", h.conn.Addrs()[0].String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(20 * time.Second))
		said := make(chan []byte, 1)
		go func() {
			b, _ := io.ReadAll(c)
			said <- b
		}()
		_, _ = io.WriteString(c, states[int(state)%len(states)])
		_, _ = c.Write(octets)
		_ = c.(*net.TCPConn).CloseWrite()
		got := <-said
		lines := bytes.Split(got, []byte("\r\n"))
		for _, l := range lines[:len(lines)-1] {
			if !replyLine.Match(l) {
				t.Fatalf("reply %q to %q", l, octets)
			}
		}
		if len(lines[len(lines)-1]) > 0 {
			t.Fatalf("half a reply %q", lines[len(lines)-1])
		}
		kept := h.spool.all()
		if promised := bytes.Count(got, []byte("Queued mail for delivery")); promised > len(kept) {
			t.Fatalf("%d promised, %d kept of %q", promised, len(kept), octets)
		}
		for _, item := range kept {
			if lone(content(t, item)) {
				t.Fatalf("kept %q", content(t, item))
			}
		}
		h.ledger.forget()
	})
}
