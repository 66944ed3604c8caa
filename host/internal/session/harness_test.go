package session_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/posternmail/postern/host/internal/config"
	"github.com/posternmail/postern/host/internal/connector"
	"github.com/posternmail/postern/host/internal/envelope"
	"github.com/posternmail/postern/host/internal/pipeline"
	"github.com/posternmail/postern/host/internal/queue"
	"github.com/posternmail/postern/host/internal/session"
	"github.com/posternmail/postern/host/internal/tracking"
	"github.com/posternmail/postern/internal/logtest"
)

// spool keeps items in memory.
type spool struct {
	mu      sync.Mutex
	items   []*queue.Item
	commits int
	fail    error
	full    error // no room; of all sizes that are known with tooBig
	tooBig  int64
}

func (s *spool) RoomFor(size int64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if size < s.tooBig {
		return nil
	}
	return s.full
}

// fill the disk, from messages of a size on.
func (s *spool) fill(tooBig int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.full, s.tooBig = fmt.Errorf("%w: 7 MiB free", queue.ErrFull), tooBig
}

func (s *spool) NewBody() (queue.BodyWriter, error) { return &memoryBody{}, nil }

func (s *spool) Commit(items ...*queue.Item) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fail != nil {
		return s.fail
	}
	s.commits++
	s.items = append(s.items, items...)
	return nil
}

func (s *spool) all() []*queue.Item {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]*queue.Item(nil), s.items...)
}

// forget drops what was kept, for tests that go on for long.
func (s *spool) forget() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.items = nil
}

type memoryBody struct{ bytes.Buffer }

func (b *memoryBody) Finish() (*envelope.Body, error) { return envelope.MemoryBody(b.Bytes()), nil }
func (b *memoryBody) Abort()                          {}

// content of an item as it would be delivered, without the host's prefix.
func content(t testing.TB, item *queue.Item) string {
	t.Helper()
	body, err := io.ReadAll(item.Mail.Body.Reader())
	if err != nil {
		t.Fatal(err)
	}
	return string(item.Mail.Header) + "\r\n" + string(body)
}

// ledger keeps records in memory.
type ledger struct {
	mu      sync.Mutex
	records []tracking.Record
	full    bool
}

func (l *ledger) Full() bool { return l.full }

func (l *ledger) Write(r *tracking.Record) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.records = append(l.records, *r)
}

func (l *ledger) forget() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.records = nil
}

// wait for n records of an event.
func (l *ledger) wait(t testing.TB, event string, n int) []tracking.Record {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		var found []tracking.Record
		l.mu.Lock()
		for _, r := range l.records {
			if r.Event == event {
				found = append(found, r)
			}
		}
		l.mu.Unlock()
		if len(found) >= n {
			return found
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d records of %s, want %d", len(found), event, n)
		}
	}
}

// host is a receive connector with everything behind it in memory.
type host struct {
	t      testing.TB
	conn   *connector.Connector
	spool  *spool
	ledger *ledger
	tls    *connector.Certificates
	log    *logtest.Output
	deps   session.Deps
}

// setup of a host.
type setup struct {
	config  config.Config
	receive config.ReceiveConnector
	plan    *pipeline.Plan
	auth    func(user, password string) (bool, error)
	spool   *spool
	full    bool
	quiet   bool            // errors are expected
	said    *logtest.Output // takes the host's log from Info on; nil: errors go to standard error
}

func usual() setup {
	return setup{
		config: config.Config{
			Host: config.Host{
				Name: "edge.test", MaxHops: 30, OnPartialReject: "quarantine", Postmaster: "postmaster@ours.test",
				EventBudget: config.EventBudget{Connect: 10 * time.Second, Command: 10 * time.Second, Message: 10 * time.Second},
			},
			Queue:      config.Queue{ExpireAfter: 48 * time.Hour},
			Quarantine: config.Quarantine{ExpireAfter: 720 * time.Hour},
			AcceptedDomains: []config.AcceptedDomain{
				{Name: "ours.test", Type: config.Authoritative}, {Name: "*.sub.test", Type: config.InternalRelay},
				{Name: "bücher.test", Type: config.Authoritative},
			},
		},
		receive: config.ReceiveConnector{
			Name: "internet", Listen: []string{"127.0.0.1:0"}, Permissions: []string{"anonymous"}, TLS: "public", RequireHelo: true,
			Limits: config.Limits{
				MaxMessageSize: 1 << 20, MaxHeaderSize: 64 << 10, MaxRecipients: 5, MaxConnections: 5000, MaxPerSource: 20,
				MessageRatePerSource: 600, Timeout: time.Minute, InactivityTimeout: 20 * time.Second,
				MaxProtocolErrors: 5, MaxLogonFailures: 3,
			},
		},
	}
}

func start(t testing.TB, s setup) *host {
	t.Helper()
	return startWith(t, s, nil)
}

// startWith starts a host with a store of one's own; nil: the setup's.
func startWith(t testing.TB, s setup, store session.Spool) *host {
	t.Helper()
	s.config.Host.DataDir = t.TempDir()
	s.config.TLS = map[string]config.TLS{"public": {Name: "public"}}
	logger := hclog.New(&hclog.LoggerOptions{Level: hclog.Error, Output: os.Stderr})
	if s.said != nil {
		logger = hclog.New(&hclog.LoggerOptions{Level: hclog.Info, Output: s.said})
	}
	if s.quiet {
		logger.SetLevel(hclog.Off)
	}
	h := &host{t: t, spool: s.spool, ledger: &ledger{full: s.full}, log: &logtest.Output{}}
	if h.spool == nil {
		h.spool = &spool{}
	}
	if store == nil {
		store = h.spool
	}
	var err error
	if h.tls, err = connector.LoadCertificates(&s.config, logger); err != nil {
		t.Fatal(err)
	}
	p := pipeline.New(pipeline.Options{Host: s.config.Host, Accepted: s.config.AcceptedDomains, Logger: logger, NewID: queue.NewID})
	if s.plan != nil {
		p.SetPlan(s.plan)
	}
	h.deps = session.Deps{
		Pipeline: p, Store: store, Ledger: h.ledger, Config: &s.config, Authenticate: s.auth, Logger: logger,
	}
	o := connector.Options{Config: s.receive, Host: s.config.Host, TLS: h.tls.Config(s.receive.TLS), Session: h.deps, Logger: logger}
	if s.receive.ProtocolLog {
		o.Protocol = h.log
	}
	if h.conn, err = connector.New(o); err != nil {
		t.Fatal(err)
	}
	if err := h.conn.Listen(); err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- h.conn.Serve() }()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		if err := h.conn.Shutdown(ctx); err != nil {
			t.Error(err)
		}
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	return h
}

// client is a raw socket.
type client struct {
	t testing.TB
	net.Conn
	r *bufio.Reader
}

func (h *host) dial() *client {
	h.t.Helper()
	c, err := net.Dial("tcp", h.conn.Addrs()[0].String())
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() { _ = c.Close() })
	_ = c.SetDeadline(time.Now().Add(30 * time.Second))
	return &client{t: h.t, Conn: c, r: bufio.NewReader(c)}
}

// hello dials, reads the banner and greets.
func (h *host) hello() *client {
	h.t.Helper()
	c := h.dial()
	c.expect("220 edge.test ESMTP Postern")
	c.send("EHLO client.test\r\n")
	c.reply()
	return c
}

func (c *client) send(s string) {
	c.t.Helper()
	if _, err := io.WriteString(c.Conn, s); err != nil {
		c.t.Fatalf("sending %q: %v", s, err)
	}
}

// line reads one line without its end.
func (c *client) line() string {
	c.t.Helper()
	l, err := c.r.ReadString('\n')
	if err != nil {
		c.t.Fatalf("reading: %v (got %q)", err, l)
	}
	if !strings.HasSuffix(l, "\r\n") {
		c.t.Fatalf("line %q does not end with CRLF", l)
	}
	return strings.TrimSuffix(l, "\r\n")
}

// reply reads a whole reply.
func (c *client) reply() []string {
	c.t.Helper()
	var lines []string
	for {
		l := c.line()
		lines = append(lines, l)
		if len(l) < 4 || l[3] != '-' {
			return lines
		}
	}
}

// expect reads one line that is want; "[id]" in want stands for any id.
func (c *client) expect(want string) string {
	c.t.Helper()
	got := c.line()
	if masked := mask(got); masked != want {
		c.t.Fatalf("got %q, want %q", got, want)
	}
	return got
}

// mask replaces the id in brackets.
func mask(line string) string {
	i := strings.LastIndex(line, "[")
	j := strings.LastIndex(line, "]")
	if i < 0 || j < i || j-i < 17 || strings.ContainsAny(line[i+1:j], " :") {
		return line
	}
	return line[:i] + "[id]" + line[j+1:]
}

// dialog sends and expects in turn: "C: " is sent with CRLF, "S: " expected.
func (c *client) dialog(script ...string) {
	c.t.Helper()
	for _, l := range script {
		switch {
		case strings.HasPrefix(l, "C: "):
			c.send(l[3:] + "\r\n")
		case strings.HasPrefix(l, "S: "):
			c.expect(l[3:])
		default:
			c.t.Fatalf("no script line: %q", l)
		}
	}
}

// closed expects the end of the connection.
func (c *client) closed() {
	c.t.Helper()
	rest, err := io.ReadAll(c.r)
	var netErr net.Error
	if errors.As(err, &netErr) && netErr.Timeout() {
		c.t.Fatal("connection is still open")
	}
	if len(rest) > 0 {
		c.t.Fatalf("more was said: %q", rest)
	}
}

// startTLS upgrades the connection.
func (c *client) startTLS() {
	c.t.Helper()
	c.dialog("C: STARTTLS", "S: 220 2.0.0 Ready to start TLS")
	t := tls.Client(c.Conn, &tls.Config{InsecureSkipVerify: true})
	if err := t.Handshake(); err != nil {
		c.t.Fatal(err)
	}
	c.Conn, c.r = t, bufio.NewReader(t)
}

// begin a transaction.
func (c *client) envelope(rcpts ...string) {
	c.t.Helper()
	c.dialog("C: MAIL FROM:<a@x.test>", "S: 250 2.1.0 Sender OK")
	for _, r := range rcpts {
		c.dialog("C: RCPT TO:<"+r+">", "S: 250 2.1.5 Recipient OK")
	}
}

const simple = "From: a@x.test\r\nTo: b@ours.test\r\nMessage-ID: <1@x.test>\r\nSubject: hello\r\n\r\nbody\r\n"

const queuedSimple = "250 2.6.0 <1@x.test> [id] Queued mail for delivery"

// message sends a message after the envelope.
func (c *client) message(text string) {
	c.t.Helper()
	c.dialog("C: DATA", "S: 354 Start mail input; end with <CRLF>.<CRLF>")
	c.send(text + ".\r\n")
}

func prefixes(s ...string) (p []netip.Prefix) {
	for _, x := range s {
		p = append(p, netip.MustParsePrefix(x))
	}
	return p
}
