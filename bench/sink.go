package main

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"fmt"
	"maps"
	"net"
	"strings"
	"sync"
)

// sink is the next hop: it takes every message and checks the hash of its body.
type sink struct {
	l    net.Listener
	mu   sync.Mutex
	cond *sync.Cond
	got  int
	bad  int
	ids  map[string]int // how often each Message-ID came; nil: nobody asks
}

func newSink() (*sink, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	s := &sink{l: l}
	s.cond = sync.NewCond(&s.mu)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go s.serve(c)
		}
	}()
	return s, nil
}

// wait until n messages have arrived; an error tells of bodies that were not what was sent.
func (s *sink) wait(n int) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for s.got < n {
		s.cond.Wait()
	}
	if s.bad > 0 || s.got > n {
		return fmt.Errorf("the sink got %d messages for %d, %d with a wrong hash", s.got, n, s.bad)
	}
	return nil
}

func (s *sink) serve(c net.Conn) {
	defer c.Close()
	r, w := bufio.NewReaderSize(c, 64<<10), bufio.NewWriter(c)
	reply := func(text string) { w.WriteString(text + "\r\n") }
	reply("220 sink ESMTP")
	for {
		if r.Buffered() == 0 && w.Flush() != nil {
			return
		}
		line, err := r.ReadString('\n')
		if err != nil {
			return
		}
		switch verb := strings.ToUpper(strings.TrimSpace(line)); {
		case strings.HasPrefix(verb, "EHLO"):
			reply("250-sink\r\n250-PIPELINING\r\n250-SIZE 0\r\n250-8BITMIME\r\n250-DSN\r\n250 SMTPUTF8")
		case verb == "DATA":
			reply("354 go")
			if w.Flush() != nil || s.take(r) != nil {
				return
			}
			reply("250 2.0.0 taken")
		case verb == "QUIT":
			reply("221 bye")
			w.Flush()
			return
		default:
			reply("250 2.0.0 ok")
		}
	}
}

// take reads one message and counts it.
func (s *sink) take(r *bufio.Reader) error {
	hash, id, sum, inBody := "", "", sha256.New(), false
	for {
		line, err := r.ReadSlice('\n')
		if err != nil {
			return err
		}
		switch {
		case string(line) == ".\r\n":
			s.count(id, inBody && hash == fmt.Sprintf("%x", sum.Sum(nil)))
			return nil
		case inBody:
			sum.Write(bytes.TrimPrefix(line, []byte(".")))
		case string(line) == "\r\n":
			inBody = true
		default:
			if v, ok := strings.CutPrefix(string(line), "X-Body-SHA256: "); ok {
				hash = strings.TrimSpace(v)
			}
			if v, ok := strings.CutPrefix(string(line), "Message-ID: "); ok {
				id = strings.TrimSpace(v)
			}
		}
	}
}

func (s *sink) count(id string, good bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.got++
	if s.ids != nil {
		s.ids[id]++
	}
	if !good {
		s.bad++
	}
	s.cond.Broadcast()
}

// arrived is how often each message has come so far.
func (s *sink) arrived() map[string]int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return maps.Clone(s.ids)
}
