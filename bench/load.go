package main

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"math/rand"
	"net"
	"strings"
	"sync"
	"sync/atomic"
)

// load is the traffic of one run.
type load struct {
	messages      int
	clients       int
	perConnection int
}

// message makes the nth message of a run: its body's SHA-256 stands in a header field, so that the sink can
// check what arrives without knowing what was sent.
func message(n, size int) []byte {
	rnd := rand.New(rand.NewSource(int64(n)))
	var body bytes.Buffer
	for body.Len() < size {
		line := make([]byte, 38)
		rnd.Read(line)
		body.WriteString(hex.EncodeToString(line))
		body.WriteString("\r\n")
	}
	sum := sha256.Sum256(body.Bytes())
	return []byte(fmt.Sprintf("From: <load@sender.example>\r\nTo: <sink@example.org>\r\nSubject: message %d\r\n"+
		"Message-ID: <%d@load.example>\r\nDate: Sun, 22 Nov 2026 06:00:00 +0000\r\nX-Body-SHA256: %x\r\n\r\n%s.\r\n", n, n, sum, body.String()))
}

// send drives the server at addr with the whole load. Every message must be answered 250.
func (l load) send(addr string, size int) error {
	// A few bodies are enough: making them is not what is measured.
	var bodies [][]byte
	for i := 0; i < 64; i++ {
		bodies = append(bodies, message(i, size))
	}
	var (
		next  atomic.Int64
		wg    sync.WaitGroup
		first = make(chan error, l.clients)
	)
	for i := 0; i < l.clients; i++ {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for {
				from := next.Add(int64(l.perConnection)) - int64(l.perConnection)
				if from >= int64(l.messages) {
					return
				}
				n := min(l.perConnection, l.messages-int(from))
				if err := session(addr, bodies, int(from), n); err != nil {
					first <- err
					return
				}
			}
		}()
	}
	wg.Wait()
	select {
	case err := <-first:
		return err
	default:
		return nil
	}
}

// session sends n messages over one connection, a command at a time as smtp-source does.
func session(addr string, bodies [][]byte, from, n int) error {
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		return err
	}
	defer conn.Close()
	r := bufio.NewReader(conn)
	if err := expect(r, "220"); err != nil {
		return err
	}
	steps := []string{"EHLO load.example\r\n|250"}
	for i := 0; i < n; i++ {
		steps = append(steps, "MAIL FROM:<load@sender.example>\r\n|250", "RCPT TO:<sink@example.org>\r\n|250", "DATA\r\n|354",
			string(bodies[(from+i)%len(bodies)])+"|250")
	}
	steps = append(steps, "QUIT\r\n|221")
	for _, step := range steps {
		i := strings.LastIndexByte(step, '|')
		if _, err := conn.Write([]byte(step[:i])); err != nil {
			return err
		}
		if err := expect(r, step[i+1:]); err != nil {
			return err
		}
	}
	return nil
}

func expect(r *bufio.Reader, code string) error {
	for {
		line, err := r.ReadString('\n')
		if err != nil {
			return err
		}
		if !strings.HasPrefix(line, code) {
			return fmt.Errorf("got %q, want %s", strings.TrimSpace(line), code)
		}
		if line[3] != '-' {
			return nil
		}
	}
}
