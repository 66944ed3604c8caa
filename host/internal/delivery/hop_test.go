package delivery

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/posternmail/postern/host/internal/config"
	"github.com/posternmail/postern/host/internal/envelope"
	"github.com/posternmail/postern/host/internal/queue"
	"github.com/posternmail/postern/sdk/address"
)

// allExtensions of a modern next hop.
var allExtensions = []string{"PIPELINING", "SIZE 10000000", "8BITMIME", "SMTPUTF8", "DSN", "ENHANCEDSTATUSCODES"}

// hop is a next hop that says what a test tells it to, on a real socket.
type hop struct {
	t    *testing.T
	ln   net.Listener
	ext  []string
	lmtp bool
	tls  *tls.Config
	// replies by "GREETING", a verb, "RCPT <address>" or ".": a text without line end. "CLOSE" closes instead, "HANG"
	// says nothing, a text that starts with "RAW " is sent as it is.
	replies map[string]string
	// onCommand, if set, may take a command over by answering true.
	onCommand func(conn net.Conn, line string) bool

	mu       sync.Mutex
	conns    []net.Conn
	lines    []string // commands of all connections
	messages []string // as sent between DATA and the final dot, unstuffed
	wg       sync.WaitGroup
}

func newHop(t *testing.T, change func(*hop)) *hop {
	t.Helper()
	h := &hop{t: t, ext: allExtensions, replies: map[string]string{}}
	if change != nil {
		change(h)
	}
	if h.ln == nil {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		h.ln = ln
	}
	h.wg.Go(h.accept)
	t.Cleanup(h.stop)
	return h
}

var quietAddresses atomic.Int32

// quietAddress is a loopback address that nobody else in this process has. Nor do outgoing connections, which start
// at 127.0.0.1: a port that is free on it stays free.
func quietAddress() string { return fmt.Sprintf("127.0.7.%d", 1+quietAddresses.Add(1)%250) }

func (h *hop) addr() string { return h.ln.Addr().String() }

func (h *hop) port() int { return h.ln.Addr().(*net.TCPAddr).Port }

func (h *hop) accept() {
	for {
		conn, err := h.ln.Accept()
		if err != nil {
			return
		}
		h.mu.Lock()
		h.conns = append(h.conns, conn)
		h.mu.Unlock()
		h.wg.Go(func() { h.serve(conn) })
	}
}

func (h *hop) stop() {
	_ = h.ln.Close()
	h.closeConns()
	h.wg.Wait()
}

func (h *hop) closeConns() {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, c := range h.conns {
		_ = c.Close()
	}
}

func (h *hop) connections() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.conns)
}

func (h *hop) commands() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.lines)
}

func (h *hop) received() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.messages)
}

func (h *hop) command(prefix string) string {
	for _, l := range h.commands() {
		if strings.HasPrefix(l, prefix) {
			return l
		}
	}
	return ""
}

type hopSession struct {
	*hop
	conn   net.Conn
	r      *bufio.Reader
	rcpts  int
	secure bool
}

func (h *hop) serve(conn net.Conn) {
	defer conn.Close()
	s := &hopSession{hop: h, conn: conn, r: bufio.NewReader(conn)}
	if !s.say("GREETING", "220 hop.example ESMTP") {
		return
	}
	for {
		line, err := s.r.ReadString('\n')
		if err != nil {
			return
		}
		line = strings.TrimRight(line, "\r\n")
		h.mu.Lock()
		h.lines = append(h.lines, line)
		h.mu.Unlock()
		if h.onCommand != nil && h.onCommand(s.conn, line) {
			continue
		}
		if !s.handle(line) {
			return
		}
	}
}

// say the reply to key; false ends the session.
func (s *hopSession) say(key, normal string) bool {
	text, ok := s.replies[key]
	if !ok {
		text = normal
	}
	switch {
	case text == "CLOSE":
		return false
	case text == "HANG":
		_, _ = io.Copy(io.Discard, s.conn)
		return false
	case strings.HasPrefix(text, "RAW "):
		_, err := io.WriteString(s.conn, text[4:])
		return err == nil
	}
	_, err := io.WriteString(s.conn, text+"\r\n")
	return err == nil && !strings.HasPrefix(text, "421")
}

func (s *hopSession) handle(line string) bool {
	verb, _, _ := strings.Cut(strings.ToUpper(line), " ")
	switch verb {
	case "EHLO", "LHLO":
		return s.say(verb, s.keywords())
	case "STARTTLS":
		if !s.say(verb, "220 go ahead") || s.replies[verb] != "" {
			return s.replies[verb] != ""
		}
		conn := tls.Server(s.conn, s.hop.tls)
		if conn.Handshake() != nil {
			return false
		}
		s.conn, s.r, s.secure = conn, bufio.NewReader(conn), true
		return true
	case "MAIL":
		s.rcpts = 0
		return s.say(verb, "250 2.1.0 fine")
	case "RCPT":
		return s.rcpt(line)
	case "DATA":
		return s.data()
	case "QUIT":
		s.say(verb, "221 bye")
		return false
	case "AUTH":
		return s.auth(line)
	}
	return s.say(verb, "250 2.0.0 ok")
}

func (s *hopSession) keywords() string {
	ext := slices.Clone(s.ext)
	if s.hop.tls != nil && !s.secure {
		ext = append(ext, "STARTTLS")
	}
	if s.secure {
		ext = append(ext, "AUTH PLAIN LOGIN")
	}
	out := "250-hop.example\r\n"
	for _, e := range ext {
		out += "250-" + e + "\r\n"
	}
	return out + "250 HELP"
}

func (s *hopSession) rcpt(line string) bool {
	addr := line[strings.Index(line, "<")+1 : strings.Index(line, ">")]
	key := "RCPT " + addr
	if _, ok := s.replies[key]; !ok {
		key = "RCPT"
	}
	if text := s.replies[key]; text == "" || strings.HasPrefix(text, "2") {
		s.rcpts++
	}
	return s.say(key, "250 2.1.5 fine")
}

func (s *hopSession) data() bool {
	normal := "354 go"
	if s.rcpts == 0 {
		normal = "503 5.5.1 no recipients"
	}
	if !s.say("DATA", normal) {
		return false
	}
	if text, ok := s.replies["DATA"]; s.rcpts == 0 && !ok || ok && !strings.HasPrefix(text, "354") {
		return true
	}
	var msg strings.Builder
	for {
		line, err := s.r.ReadString('\n')
		if err != nil {
			return false
		}
		if line == ".\r\n" {
			break
		}
		msg.WriteString(strings.TrimPrefix(line, "."))
	}
	s.mu.Lock()
	s.messages = append(s.messages, msg.String())
	s.mu.Unlock()
	n := 1
	if s.lmtp {
		n = s.rcpts
	}
	for i := range n {
		key := "."
		if _, ok := s.replies[fmt.Sprintf(". %d", i)]; ok {
			key = fmt.Sprintf(". %d", i)
		}
		if !s.say(key, "250 2.0.0 queued") {
			return false
		}
	}
	return true
}

func (s *hopSession) auth(line string) bool {
	if strings.HasPrefix(line, "AUTH LOGIN") {
		_, _ = io.WriteString(s.conn, "334 UGFzc3dvcmQ6\r\n")
		word, err := s.r.ReadString('\n')
		if err != nil {
			return false
		}
		s.mu.Lock()
		s.lines = append(s.lines, strings.TrimSpace(word))
		s.mu.Unlock()
	}
	return s.say("AUTH", "235 2.7.0 welcome")
}

// testItem is a message of size about 200 octets for the recipients.
func testItem(rcpts ...string) *queue.Item {
	m := &envelope.Mail{
		ID:     "m1",
		Sender: envelope.Sender{Address: mailbox("sender@source.example")},
		Header: []byte("Subject: test\r\nFrom: sender@source.example\r\n"),
		Body:   envelope.MemoryBody([]byte("Hello\r\n.dot\r\n..dots\r\n\r\nend\r\n")),
	}
	for _, r := range rcpts {
		m.AddRecipient(&envelope.Recipient{Address: mailbox(r)})
	}
	return &queue.Item{ID: "0123456789abcdef.1", Message: "m1", Mail: m, Prefix: []byte("Received: by us\r\n"),
		Routed: true, Hop: "out/x.example", Received: time.Now(), Expires: time.Now().Add(time.Hour)}
}

const testContent = "Received: by us\r\nSubject: test\r\nFrom: sender@source.example\r\n\r\nHello\r\n.dot\r\n..dots\r\n\r\nend\r\n"

func mailbox(s string) address.Mailbox {
	m, err := address.Parse(s)
	if err != nil {
		panic(err)
	}
	return m
}

// testDelivery has one send connector, "out".
func testDelivery(t *testing.T, sc config.SendConnector, change ...func(*Options)) *Delivery {
	t.Helper()
	sc.Name = "out"
	o := Options{
		Config: &config.Config{Host: config.Host{Name: "edge.test.example"}, SendConnectors: []config.SendConnector{sc}},
		Logger: hclog.NewNullLogger(),
		Timeouts: Timeouts{Connect: 5 * time.Second, Command: 5 * time.Second, Data: 5 * time.Second,
			Block: 5 * time.Second, Dot: 5 * time.Second},
	}
	for _, c := range change {
		c(&o)
	}
	d, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(d.Close)
	return d
}

func shortTimeouts(o *Options) {
	d := 150 * time.Millisecond
	o.Timeouts = Timeouts{Connect: d, Command: d, Data: d, Block: d, Dot: d}
}

func deliver(t *testing.T, d *Delivery, item *queue.Item) []Result {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	return d.Deliver(ctx, item)
}

func one(t *testing.T, d *Delivery, item *queue.Item) Result {
	t.Helper()
	res := deliver(t, d, item)
	if len(res) != 1 {
		t.Fatalf("%d results, want 1: %v", len(res), res)
	}
	return res[0]
}

var stateNames = map[envelope.RecipientState]string{envelope.Pending: "pending", envelope.Delivered: "delivered",
	envelope.Relayed: "relayed", envelope.Failed: "failed"}

func want(t *testing.T, got Result, state envelope.RecipientState, text string) {
	t.Helper()
	if got.State != state || !strings.Contains(got.Reply.String(), text) {
		t.Errorf("got %s %q, want %s with %q", stateNames[got.State], got.Reply, stateNames[state], text)
	}
}

// authority issues certificates for tests and writes its own to a file.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	file string
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test CA"}, IsCA: true,
		BasicConstraintsValid: true, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, _ := x509.ParseCertificate(der)
	file := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
	return &authority{cert, key, file}
}

// serverTLS has a certificate for names.
func (a *authority) serverTLS(t *testing.T, names ...string) *tls.Config {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "hop"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour)}
	for _, n := range names {
		if ip := net.ParseIP(n); ip != nil {
			tmpl.IPAddresses = append(tmpl.IPAddresses, ip)
		} else {
			tmpl.DNSNames = append(tmpl.DNSNames, n)
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, a.cert, &key.PublicKey, a.key)
	if err != nil {
		t.Fatal(err)
	}
	return &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}}
}
