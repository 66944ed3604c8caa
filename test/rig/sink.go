package rig

import (
	"bufio"
	"bytes"
	"net"
	"strings"
	"sync"
	"testing"
)

// Sink is a next hop that keeps what it is sent.
type Sink struct {
	Addr string

	mu       sync.Mutex
	messages []Received
}

// Received is one message that a Sink has taken.
type Received struct {
	From    string   // the MAIL line
	To      []string // the RCPT lines
	Content string   // unstuffed
}

// StartSink starts a next hop that offers PIPELINING, SIZE, 8BITMIME, DSN and SMTPUTF8.
func StartSink(t testing.TB) *Sink {
	t.Helper()
	s := new(Sink)
	s.Addr = serve(t, s.serve)
	return s
}

// Messages are those taken so far.
func (s *Sink) Messages() []Received {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]Received{}, s.messages...)
}

func (s *Sink) serve(c net.Conn) {
	defer c.Close()
	r, w := bufio.NewReaderSize(c, 64<<10), bufio.NewWriter(c)
	reply := func(text string) { _, _ = w.WriteString(text + "\r\n") }
	reply("220 sink.example ESMTP")
	var m Received
	for {
		if r.Buffered() == 0 && w.Flush() != nil {
			return
		}
		line, err := r.ReadString('\n')
		if err != nil {
			return
		}
		line = strings.TrimSuffix(line, "\r\n")
		switch verb := strings.ToUpper(line); {
		case strings.HasPrefix(verb, "EHLO"):
			reply("250-sink.example\r\n250-PIPELINING\r\n250-SIZE\r\n250-8BITMIME\r\n250-DSN\r\n250 SMTPUTF8")
		case strings.HasPrefix(verb, "MAIL"):
			m = Received{From: line}
			reply("250 2.1.0 ok")
		case strings.HasPrefix(verb, "RCPT"):
			m.To = append(m.To, line)
			reply("250 2.1.5 ok")
		case verb == "DATA":
			reply("354 go")
			if w.Flush() != nil {
				return
			}
			content, err := readDots(r)
			if err != nil {
				return
			}
			m.Content = content
			s.mu.Lock()
			s.messages = append(s.messages, m)
			s.mu.Unlock()
			reply("250 2.0.0 taken")
		case verb == "QUIT":
			reply("221 bye")
			_ = w.Flush()
			return
		case verb == "RSET":
			reply("250 ok")
		default:
			reply("500 what is " + line) // nothing smuggled goes unnoticed
		}
	}
}

// readDots reads to the line with a single dot, which only CRLF ends, and takes the stuffing away.
func readDots(r *bufio.Reader) (string, error) {
	var b bytes.Buffer
	for {
		line, err := r.ReadBytes('\n')
		for err == nil && !bytes.HasSuffix(line, []byte("\r\n")) {
			var more []byte
			more, err = r.ReadBytes('\n')
			line = append(line, more...)
		}
		if err != nil {
			return "", err
		}
		if string(line) == ".\r\n" {
			return b.String(), nil
		}
		if line[0] == '.' {
			line = line[1:]
		}
		b.Write(line)
	}
}
