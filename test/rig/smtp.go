package rig

import (
	"bufio"
	"crypto/tls"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"
)

// Client is a raw SMTP client: it sends what it is told and shows what came back, octet for octet.
type Client struct {
	t    testing.TB
	Conn net.Conn
	r    *bufio.Reader
}

// Dial connects to the host and reads nothing yet.
func (h *Host) Dial() *Client {
	h.t.Helper()
	c, err := net.Dial("tcp", h.Addr)
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() { _ = c.Close() })
	return &Client{t: h.t, Conn: c, r: bufio.NewReader(c)}
}

// Greeted connects, reads the banner and says EHLO.
func (h *Host) Greeted() *Client {
	h.t.Helper()
	c := h.Dial()
	c.Want("220 ")
	c.Send("EHLO client.example")
	c.Want("250")
	return c
}

// Send writes a line.
func (c *Client) Send(format string, args ...any) {
	c.t.Helper()
	c.Raw(fmt.Sprintf(format, args...) + "\r\n")
}

// Raw writes octets as they are.
func (c *Client) Raw(s string) {
	c.t.Helper()
	if _, err := c.Conn.Write([]byte(s)); err != nil {
		c.t.Fatalf("sending %q: %v", s, err)
	}
}

// Reply reads one reply with all its lines, without the last line end.
func (c *Client) Reply() string {
	c.t.Helper()
	s, err := c.reply()
	if err != nil {
		c.t.Fatalf("reading a reply: %v (so far %q)", err, s)
	}
	return s
}

func (c *Client) reply() (string, error) {
	_ = c.Conn.SetReadDeadline(time.Now().Add(Patience()))
	var b strings.Builder
	for {
		line, err := c.r.ReadString('\n')
		b.WriteString(line)
		if err != nil {
			return b.String(), err
		}
		if len(line) < 4 || line[3] != '-' {
			return strings.TrimSuffix(b.String(), "\r\n"), nil
		}
	}
}

// Want reads a reply that must start with prefix.
func (c *Client) Want(prefix string) string {
	c.t.Helper()
	got := c.Reply()
	if !strings.HasPrefix(got, prefix) {
		c.t.Fatalf("got %q, want %q...", got, prefix)
	}
	return got
}

// Do sends a line and reads a reply that must start with prefix.
func (c *Client) Do(line, prefix string) string {
	c.t.Helper()
	c.Send("%s", line)
	return c.Want(prefix)
}

// WantClosed reads to the end of the connection, which must come.
func (c *Client) WantClosed() {
	c.t.Helper()
	if s, err := c.reply(); err == nil {
		c.t.Fatalf("got %q, want the connection closed", s)
	}
}

// StartTLS encrypts the connection, whatever certificate the host shows.
func (c *Client) StartTLS() {
	c.t.Helper()
	c.Do("STARTTLS", "220")
	secured := tls.Client(c.Conn, &tls.Config{InsecureSkipVerify: true})
	if err := secured.Handshake(); err != nil {
		c.t.Fatalf("STARTTLS: %v", err)
	}
	c.Conn, c.r = secured, bufio.NewReader(secured)
}

// Message sends a whole message and answers with the reply to the final dot.
func (c *Client) Message(from, to, content string) string {
	c.t.Helper()
	c.Do("MAIL FROM:<"+from+">", "250")
	c.Do("RCPT TO:<"+to+">", "250")
	return c.Data(content)
}

// Data sends DATA and content, dot-stuffed and ended, and answers with the reply.
func (c *Client) Data(content string) string {
	c.t.Helper()
	c.Do("DATA", "354")
	content = strings.ReplaceAll("\r\n"+content, "\r\n.", "\r\n..")[2:]
	if !strings.HasSuffix(content, "\r\n") {
		content += "\r\n"
	}
	c.Raw(content + ".\r\n")
	return c.Reply()
}

// TryDial reports why nobody takes a connection at the host's address; nil when somebody does.
func (h *Host) TryDial() error {
	c, err := net.Dial("tcp", h.Addr)
	if err == nil {
		_ = c.Close()
	}
	return err
}
