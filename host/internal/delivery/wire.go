package delivery

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"net"
	"strings"
	"unicode/utf8"

	"github.com/posternmail/postern/host/internal/envelope"
)

// Bounds of what a next hop may answer. RFC 5321 section 4.5.3.1.5 has 512 octets for a reply line.
const (
	maxReplyLine  = 4096
	maxReplyLines = 256
	maxReplyText  = 1000 // kept of a reply
)

// Errors of a next hop that does not speak SMTP.
var (
	errReplyLine  = errors.New("reply line is too long")
	errReplyLines = errors.New("reply has too many lines")
	errReply      = errors.New("reply is not SMTP")
)

// wire is one connection to a next hop, as go-smtp's client sees it: each Read gives it one line, so that nothing
// it has not asked for stays in its buffers, and both can speak in turn. It also does what the client cannot: HELO
// where EHLO is not wanted, and going on after STARTTLS as if newly greeted.
type wire struct {
	net.Conn // TCP, Unix or TLS
	r        *bufio.Reader
	inject   []byte // shown to the client before the next line
	rest     []byte // of a line that the client's buffer did not hold
	lines    int    // since the last write
	helo     bool   // EHLO goes out as HELO
	hello    bool   // the reply being read lists keywords
}

func newWire(conn net.Conn) *wire {
	return &wire{Conn: conn, r: bufio.NewReaderSize(conn, maxReplyLine)}
}

// Read implements net.Conn with one line, or a part of one.
func (w *wire) Read(p []byte) (int, error) {
	if len(w.rest) == 0 {
		if len(w.inject) > 0 {
			w.rest, w.inject = w.inject, nil
		} else if err := w.nextLine(); err != nil {
			return 0, err
		}
	}
	n := copy(p, w.rest)
	w.rest = w.rest[n:]
	return n, nil
}

func (w *wire) nextLine() error {
	line, err := w.line()
	if err != nil {
		return err
	}
	if w.hello {
		line = upperKeyword(line)
	}
	w.rest = append(w.rest[:0], line...)
	return nil
}

// upperKeyword: EHLO keywords are not case-sensitive (RFC 5321 section 2.4), the client's map of them is.
func upperKeyword(line []byte) []byte {
	if len(line) < 4 {
		return line
	}
	end := bytes.IndexAny(line[4:], " =\r\n")
	if end < 0 {
		return line
	}
	return append(append(append([]byte(nil), line[:4]...), bytes.ToUpper(line[4:4+end])...), line[4+end:]...)
}

// line reads one line with its end. It is valid until the next read.
func (w *wire) line() ([]byte, error) {
	if w.lines++; w.lines > maxReplyLines {
		return nil, errReplyLines
	}
	line, err := w.r.ReadSlice('\n')
	if errors.Is(err, bufio.ErrBufferFull) {
		return nil, errReplyLine
	}
	return line, err
}

// Write implements net.Conn.
func (w *wire) Write(p []byte) (int, error) {
	w.lines = 0
	w.hello = bytes.HasPrefix(p, []byte("EHLO ")) || bytes.HasPrefix(p, []byte("LHLO "))
	if w.helo && bytes.HasPrefix(p, []byte("EHLO ")) {
		p = append([]byte("HELO "), p[5:]...)
	}
	return w.Conn.Write(p)
}

// restart puts conn, a TLS connection over the old one, in its place, for a client that will wait for a greeting.
func (w *wire) restart(conn net.Conn) {
	w.Conn = conn
	w.r.Reset(conn)
	w.inject = []byte("220 again\r\n")
}

// reply reads one reply. Of several lines the texts are joined by spaces.
func (w *wire) reply() (envelope.Reply, error) {
	w.lines = 0
	var text strings.Builder
	for {
		line, err := w.line()
		if err != nil {
			return envelope.Reply{}, err
		}
		line = bytes.TrimRight(line, "\r\n")
		code, more, ok := replyCode(line)
		if !ok {
			return envelope.Reply{}, fmt.Errorf("%w: %.40q", errReply, line)
		}
		if len(line) > 4 && text.Len() < maxReplyText {
			if text.Len() > 0 {
				text.WriteByte(' ')
			}
			text.Write(line[4:])
		}
		if !more {
			return newReply(code, text.String()), nil
		}
	}
}

// replyCode reads "250 " and "250-" (RFC 5321 section 4.2); the separator may be missing at the end of the line.
func replyCode(line []byte) (code int, more, ok bool) {
	if len(line) < 3 || line[0] < '2' || line[0] > '5' || line[1] < '0' || line[1] > '9' || line[2] < '0' || line[2] > '9' {
		return 0, false, false
	}
	code = int(line[0]-'0')*100 + int(line[1]-'0')*10 + int(line[2]-'0')
	if len(line) == 3 {
		return code, false, true
	}
	return code, line[3] == '-', line[3] == '-' || line[3] == ' '
}

// newReply takes the enhanced code (RFC 2034) out of text where its class agrees with code. What is kept is one
// printable line.
func newReply(code int, text string) envelope.Reply {
	r := envelope.Reply{Code: code, Text: printable(text)}
	word, rest, _ := strings.Cut(r.Text, " ")
	if isEnhanced(word) && word[0] == byte('0'+code/100) {
		r.Enhanced = word
		r.Text = strings.TrimSpace(strings.ReplaceAll(" "+rest, " "+word+" ", " ")) // each line repeats it
	}
	return r
}

func isEnhanced(s string) bool {
	parts := strings.Split(s, ".")
	if len(parts) != 3 || len(parts[0]) != 1 {
		return false
	}
	for _, p := range parts {
		if len(p) < 1 || len(p) > 3 || strings.Trim(p, "0123456789") != "" {
			return false
		}
	}
	return true
}

// printable replaces what is no text by question marks and bounds the length.
func printable(s string) string {
	clean := func(r rune) rune {
		if r < ' ' || r == 0x7f || r == utf8.RuneError {
			return '?'
		}
		return r
	}
	s = strings.Map(clean, s)
	if len(s) > maxReplyText {
		s = strings.ToValidUTF8(s[:maxReplyText], "")
	}
	return strings.TrimSpace(s)
}
