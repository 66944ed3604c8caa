package session_test

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
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

// FuzzBDAT cuts a message into chunks anywhere: it is kept octet for octet with a line end at its end, or refused for a
// CR or LF that stands alone, and the session goes on.
func FuzzBDAT(f *testing.F) {
	for _, m := range []string{simple, "", "\r\n", "a: b\r\n\r\n.\r\n..\r\nx", "a\nb", "a\r", "a: b\r\n\r\n\r", "a: b\r\n\r\nx\r\r\n", "\r\nx"} {
		f.Add([]byte(m), uint64(1))
		f.Add([]byte(m), uint64(99))
	}
	s := usual()
	s.quiet = true
	s.receive.Limits.MaxProtocolErrors = 0
	h := start(f, s)
	f.Fuzz(func(t *testing.T, message []byte, seed uint64) {
		if bytes.IndexByte(message, 0) >= 0 || len(message) > 60<<10 {
			return // NUL and long lines in a header are refused for what they are
		}
		h.spool.forget()
		h.ledger.forget()
		h.t = t
		c := h.hello()
		c.envelope("b@ours.test")
		r := rand.New(rand.NewPCG(seed, seed))
		var talk []byte
		chunks := 0
		for rest := message; ; chunks++ {
			n := r.IntN(len(rest) + 1)
			if r.IntN(3) == 0 || chunks > 50 {
				talk = append(talk, fmt.Sprintf("BDAT %d LAST\r\n%s", len(rest), rest)...)
				break
			}
			talk = append(talk, fmt.Sprintf("BDAT %d\r\n%s", n, rest[:n])...)
			rest = rest[n:]
		}
		c.send(string(talk))
		refused, last := false, ""
		for range chunks + 1 {
			last = c.line()
			refused = refused || last[0] != '2'
		}
		c.dialog("C: NOOP", "S: 250 2.0.0 OK", "C: QUIT", sOver)
		_ = c.Close()
		kept := h.spool.all()
		switch {
		case refused && len(kept) > 0:
			t.Fatalf("refused and kept %q", message)
		case refused && !lone(string(message)) && !indented(message) && len(message) < 900:
			t.Fatalf("%q: %s", message, last)
		case !refused:
			if got, want := content(t, kept[0]), ended(string(message)); got != want {
				t.Fatalf("%q kept as %q", message, got)
			}
		}
	})
}

// indented reports whether the header begins with white space, which is refused.
func indented(m []byte) bool { return len(m) > 0 && (m[0] == ' ' || m[0] == '\t') }

// ended is a message as DATA would have brought it: its last line ended, and an empty line behind the header.
func ended(m string) string {
	if m != "" && !strings.HasSuffix(m, "\r\n") {
		m += "\r\n"
	}
	if !strings.HasPrefix(m, "\r\n") && !strings.Contains(m, "\r\n\r\n") {
		m += "\r\n"
	}
	return m
}
