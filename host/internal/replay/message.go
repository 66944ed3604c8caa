package replay

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/mail"
	"net/netip"
	"net/textproto"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// Message to be replayed.
type Message struct {
	Name   string
	Client netip.AddrPort
	Helo   string
	From   string   // "" is the null sender
	To     []string // envelope recipients
	Raw    []byte   // as in the file
}

// Envelope that the operator gives; what is not given is taken from the file.
type Envelope struct {
	Client netip.Addr
	Helo   string
	From   *string
	To     []string
}

// Message makes a message of a file's content. The lines "X-Sender:" and "X-Receiver:" that the drop directory
// puts in front give the envelope and are not part of the message; else Return-Path, Delivered-To, From and To do.
func (e Envelope) Message(name string, raw []byte) (Message, error) {
	m := Message{Name: name, Client: netip.AddrPortFrom(e.Client, 25025), Helo: e.Helo, To: e.To, Raw: raw}
	sender, receivers, rest := replayEnvelope(raw)
	m.Raw = rest
	header := headerOf(rest)
	switch {
	case e.From != nil:
		m.From = *e.From
	case sender != nil:
		m.From = *sender
	default:
		m.From = firstAddress(header, "Return-Path", "From")
	}
	if len(m.To) == 0 {
		m.To = receivers
	}
	if len(m.To) == 0 {
		m.To = recipientsOf(header)
	}
	if len(m.To) == 0 {
		return m, fmt.Errorf("%s: nothing in it says for whom it is; name a recipient with --to", name)
	}
	return m, nil
}

// replayEnvelope cuts off the fields of the envelope that stand before all others.
func replayEnvelope(raw []byte) (sender *string, receivers []string, rest []byte) {
	rest = raw
	for {
		line, behind, found := bytes.Cut(rest, []byte("\n"))
		if !found {
			return sender, receivers, rest
		}
		name, value, _ := strings.Cut(strings.TrimRight(string(line), "\r"), ":")
		path, _, _ := strings.Cut(strings.TrimSpace(value), ">")
		path = strings.TrimPrefix(path, "<")
		switch strings.ToLower(name) {
		case "x-sender":
			sender = &path
		case "x-receiver":
			receivers = append(receivers, path)
		default:
			return sender, receivers, rest
		}
		rest = behind
	}
}

func headerOf(raw []byte) mail.Header {
	m, err := mail.ReadMessage(bytes.NewReader(raw))
	if err != nil {
		return mail.Header{} // an odd header is what a replay may be about
	}
	return m.Header
}

func firstAddress(h mail.Header, names ...string) string {
	for _, name := range names {
		if list := addressesOf(h, name); len(list) > 0 {
			return list[0]
		}
	}
	return ""
}

func recipientsOf(h mail.Header) []string {
	for _, names := range [][]string{{"Delivered-To"}, {"X-Original-To"}, {"To", "Cc"}} {
		var list []string
		for _, name := range names {
			list = append(list, addressesOf(h, name)...)
		}
		if len(list) > 0 {
			slices.Sort(list)
			return slices.Compact(list)
		}
	}
	return nil
}

func addressesOf(h mail.Header, name string) []string {
	var list []string
	for _, value := range h[textproto.CanonicalMIMEHeaderKey(name)] {
		parsed, err := mail.ParseAddressList(value)
		if err != nil {
			continue
		}
		for _, one := range parsed {
			list = append(list, one.Address)
		}
	}
	return list
}

// Files finds the messages in paths: a file is one message, or many where it is an mbox; of a folder all files
// in it and below. fn is called for each.
func Files(paths []string, fn func(name string, raw []byte) error) error {
	for _, path := range paths {
		err := filepath.WalkDir(path, func(file string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() {
				return err
			}
			return readMessages(file, fn)
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// maxMbox bounds a message of an mbox.
const maxMbox = 256 << 20

func readMessages(path string, fn func(name string, raw []byte) error) error {
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	defer file.Close()
	lines := bufio.NewReader(file)
	start, err := lines.Peek(5)
	if err != nil && !errors.Is(err, io.EOF) {
		return fmt.Errorf("%s: %w", path, err)
	}
	if string(start) == "From " {
		return readMbox(path, lines, fn)
	}
	raw, err := io.ReadAll(lines)
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return fn(path, raw)
}

// readMbox splits at lines that begin with "From " behind an empty line (RFC 4155), and takes one ">" off quoted
// ones.
func readMbox(path string, lines *bufio.Reader, fn func(name string, raw []byte) error) error {
	var raw []byte
	number, empty := 0, true
	done := func() error {
		number++
		return fn(fmt.Sprintf("%s:%d", path, number), raw)
	}
	for first := true; ; first = false {
		line, err := lines.ReadBytes('\n')
		if err != nil && !errors.Is(err, io.EOF) {
			return fmt.Errorf("%s: %w", path, err)
		}
		ended := errors.Is(err, io.EOF)
		if empty && bytes.HasPrefix(line, []byte("From ")) {
			if !first {
				if err := done(); err != nil {
					return err
				}
			}
			raw, line = nil, nil
		}
		empty = len(bytes.TrimRight(line, "\r\n")) == 0
		if bytes.HasPrefix(bytes.TrimLeft(line, ">"), []byte("From ")) && len(line) > 0 && line[0] == '>' {
			line = line[1:]
		}
		if raw = append(raw, line...); len(raw) > maxMbox {
			return fmt.Errorf("%s: message %d is larger than %d bytes", path, number+1, maxMbox)
		}
		if ended {
			return done()
		}
	}
}

// send speaks to the connector like any client and notes the dialog. A refusal is no error.
func (m Message) send(ctx context.Context, addr net.Addr, report *Report) error {
	conn, err := new(net.Dialer).DialContext(ctx, addr.Network(), addr.String())
	if err != nil {
		return err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Now()) })
	defer stop()
	if _, err := io.WriteString(conn, proxyHeader(m.Client, addr)); err != nil {
		return err
	}
	c := &client{text: textproto.NewConn(conn), report: report}
	report.Result, err = c.talk(m)
	if errors.Is(err, io.EOF) {
		return nil // closed by the host, which its last reply has said
	}
	return err
}

// proxyHeader names the client as a load balancer would (PROXY protocol, version 1).
func proxyHeader(client netip.AddrPort, local net.Addr) string {
	family, to := "TCP4", "127.0.0.1"
	if client.Addr().Is6() {
		family, to = "TCP6", "::1"
	}
	port := 25
	if tcp, ok := local.(*net.TCPAddr); ok {
		port = tcp.Port
	}
	return fmt.Sprintf("PROXY %s %s %s %d %d\r\n", family, client.Addr(), to, client.Port(), port)
}

// client is the client's side of the dialog.
type client struct {
	text   *textproto.Conn
	report *Report
}

// Results of a Report.
const (
	accepted = "accepted"
	refused  = "refused"
	putOff   = "put off"
)

// talk answers with the result for the message.
func (c *client) talk(m Message) (string, error) {
	if code, err := c.read("(connect)"); err != nil || code != 220 {
		return resultOf(code), err
	}
	mailFrom := "MAIL FROM:<" + m.From + ">" + m.parameters()
	for _, line := range []string{"EHLO " + m.Helo, mailFrom} {
		if code, err := c.command(line); err != nil || code != 250 {
			return resultOf(code), c.quit(err)
		}
	}
	result, some := refused, false
	for _, to := range m.To {
		code, err := c.command("RCPT TO:<" + to + ">")
		if err != nil {
			return resultOf(code), err
		}
		some = some || code/100 == 2
		result = resultOf(code)
	}
	if !some {
		return result, c.quit(nil)
	}
	if code, err := c.command("DATA"); err != nil || code != 354 {
		return resultOf(code), c.quit(err)
	}
	if err := c.content(m.Raw); err != nil {
		return refused, err
	}
	code, err := c.read("(message)")
	return resultOf(code), c.quit(err)
}

// parameters that the message needs.
func (m Message) parameters() string {
	p := ""
	if !isASCII(string(m.Raw)) {
		p += " BODY=8BITMIME"
	}
	if !isASCII(m.From) || slices.ContainsFunc(m.To, func(to string) bool { return !isASCII(to) }) {
		p += " SMTPUTF8"
	}
	return p
}

func isASCII(s string) bool {
	for i := range len(s) {
		if s[i] >= 0x80 {
			return false
		}
	}
	return true
}

// content sends the message with CRLF for each line end of the file and a dot doubled at the start of a line (RFC
// 5321 section 4.5.2).
func (c *client) content(raw []byte) error {
	w := c.text.DotWriter()
	if _, err := w.Write(raw); err != nil {
		return err
	}
	return w.Close()
}

func (c *client) command(line string) (int, error) {
	if strings.ContainsAny(line, "\r\n") {
		return 0, fmt.Errorf("%q cannot be sent: it has a line end", line)
	}
	if err := c.text.PrintfLine("%s", line); err != nil {
		return 0, err
	}
	return c.read(line)
}

func (c *client) read(command string) (int, error) {
	code, text, err := c.text.ReadResponse(0)
	if err != nil {
		return code, err
	}
	last := text[strings.LastIndexByte(text, '\n')+1:]
	c.report.Dialog = append(c.report.Dialog, Exchange{Command: command, Reply: fmt.Sprintf("%d %s", code, last)})
	return code, nil
}

// quit ends the session, unless it has ended by err.
func (c *client) quit(err error) error {
	if err != nil {
		return err
	}
	if err := c.text.PrintfLine("QUIT"); err != nil {
		return nil // the host has closed after its last reply
	}
	_, _, _ = c.text.ReadResponse(221)
	return nil
}

func resultOf(code int) string {
	switch code / 100 {
	case 2, 3:
		return accepted
	case 4:
		return putOff
	}
	return refused
}
