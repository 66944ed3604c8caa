package main

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"time"

	"github.com/posternmail/postern/sdk"
)

// handshake asks a proxy to connect to target. After it the connection is to the target, or shows what the target says
// among other text.
type handshake func(c *conversation, target netip.AddrPort) error

// kind of a proxy.
type kind struct {
	ask   handshake
	ports []int // where it is tried by default
}

// kinds by name, those of Exchange's open proxy test.
var kinds = map[string]*kind{
	"socks4":       {askSOCKS4, []int{1080, 1081}},
	"socks5":       {askSOCKS5, []int{1080, 1081}},
	"http_connect": {askConnect, []int{80, 3128, 6588}},
	"http_post":    {askPost, []int{80, 3128, 6588}},
	"telnet":       {askText("telnet %s %d\r\n"), []int{23}},
	"wingate":      {askText("%s:%d\r\n"), []int{23}},
	"cisco":        {askText("cisco\r\ntelnet %s %d\r\n"), []int{23}}, // the password that many were left with
}

// prober tests whether sources are open proxies.
type prober struct {
	config *OpenProxy
	banner string
	busy   chan struct{} // bounds the sources that are tested at once
}

const (
	maxProbed = 16       // sources at once; more are left for their next session
	maxSeen   = 8 << 10  // octets in which the greeting is looked for
	maxHeard  = 64 << 10 // octets of a conversation that are read at all: a line may have no end
)

func newProber(c *OpenProxy, hostName string) *prober {
	return &prober{config: c, banner: cmp.Or(c.Banner, hostName), busy: make(chan struct{}, maxProbed)}
}

// conversation with a proxy.
type conversation struct {
	net.Conn
	r *bufio.Reader
}

// probe tests the source of a session, and answers with the row that remembers the result.
func (a *Analysis) probe(ctx context.Context, e *sdk.DisconnectEvent, s *sourceState) []sdk.Write {
	p := a.prober
	select {
	case p.busy <- struct{}{}:
		defer func() { <-p.busy }()
	default:
		return nil
	}
	target := netip.AddrPortFrom(e.Session.Local.Addr, e.Session.LocalPort)
	if p.config.Target != "" {
		target = netip.MustParseAddrPort(p.config.Target)
	}
	e.Progress(p.config.Timeout + 2*time.Second)
	ctx, cancel := context.WithTimeout(ctx, p.config.Timeout)
	defer cancel()
	found, denied := p.test(ctx, s.ip, target)
	a.health.Report("tests for open proxies", denied)
	if denied != nil && found == "" {
		return nil // nothing is known of the source
	}
	s.proxyRow.Value.Open = found
	if s.proxyRow.Value.Open != "" {
		sdk.Logger(ctx).Info("open proxy found", "client", s.ip, "how", s.proxyRow.Value.Open)
	}
	return []sdk.Write{a.proxies.Put(s.proxyRow.Value, p.config.Every).At(s.key)}
}

// result of one test.
type result struct {
	found  string // how the source is open
	denied error  // this agent may not connect there, so the source was not tested
}

// test all kinds of proxy at once. The answer tells the first that was found open, or why one could not be tried.
func (p *prober) test(ctx context.Context, source netip.Addr, target netip.AddrPort) (found string, denied error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	tests := p.tests()
	results := make(chan result, len(tests))
	for _, t := range tests {
		go func() {
			var r result
			open, err := p.open(ctx, netip.AddrPortFrom(source, uint16(t.Ports[0])), kinds[t.Kind].ask, target)
			switch {
			case open:
				r.found = fmt.Sprintf("%s on port %d", t.Kind, t.Ports[0])
			case errors.Is(err, os.ErrPermission):
				r.denied = fmt.Errorf("port %d: %w; what the agent may reach is said in the sandbox of its block", t.Ports[0], err)
			}
			results <- r
		}()
	}
	for range tests {
		r := <-results
		if r.found != "" {
			return r.found, nil
		}
		denied = cmp.Or(denied, r.denied)
	}
	return "", denied
}

// tests with one port each.
func (p *prober) tests() (list []Test) {
	wanted := p.config.Tests
	if len(wanted) == 0 {
		for name, k := range kinds {
			wanted = append(wanted, Test{name, k.ports})
		}
	}
	for _, t := range wanted {
		for _, port := range t.Ports {
			list = append(list, Test{t.Kind, []int{port}})
		}
	}
	return list
}

// open reports whether the proxy at an address leads to the target: whether its greeting comes back. An error is that of
// connecting.
func (p *prober) open(ctx context.Context, proxy netip.AddrPort, ask handshake, target netip.AddrPort) (bool, error) {
	c, err := p.dial(ctx, proxy)
	if err != nil {
		return false, err
	}
	defer c.Close()
	stop := context.AfterFunc(ctx, func() { _ = c.Close() })
	defer stop()
	if err := ask(c, target); err != nil {
		return false, nil
	}
	return greets(c.r, p.banner), nil
}

// dial an address, through the proxy that this server itself needs.
func (p *prober) dial(ctx context.Context, to netip.AddrPort) (*conversation, error) {
	address := to.String()
	if p.config.Through != nil {
		address = p.config.Through.Address
	}
	var d net.Dialer
	conn, err := d.DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	if deadline, ok := ctx.Deadline(); ok {
		_ = conn.SetDeadline(deadline)
	}
	c := &conversation{conn, bufio.NewReader(io.LimitReader(conn, maxHeard))}
	if p.config.Through == nil {
		return c, nil
	}
	if err := kinds[p.config.Through.Kind].ask(c, to); err != nil {
		_ = conn.Close()
		return nil, fmt.Errorf("through %s: %w", address, err)
	}
	return c, nil
}

// greets reports whether the greeting with the text comes, other text before it or not.
func greets(r io.Reader, banner string) bool {
	var seen []byte
	chunk := make([]byte, 1024)
	for len(seen) < maxSeen {
		n, err := r.Read(chunk)
		seen = append(seen, chunk[:n]...)
		for line := range bytes.SplitSeq(seen, []byte("\n")) {
			if i := bytes.Index(line, []byte("220")); i >= 0 && bytes.Contains(line[i:], []byte(banner)) {
				return true
			}
		}
		if err != nil {
			return false
		}
	}
	return false
}

var errRefused = errors.New("the proxy refuses")

// askSOCKS4: version, CONNECT, port, address, an empty user; the answer's second octet is 90.
func askSOCKS4(c *conversation, target netip.AddrPort) error {
	if !target.Addr().Is4() {
		return fmt.Errorf("%w: SOCKS 4 has IPv4 only", errRefused)
	}
	b := binary.BigEndian.AppendUint16([]byte{4, 1}, target.Port())
	b = append(append(b, target.Addr().AsSlice()...), 0)
	if _, err := c.Write(b); err != nil {
		return err
	}
	var answer [8]byte
	if _, err := io.ReadFull(c.r, answer[:]); err != nil {
		return err
	}
	if answer[0] != 0 || answer[1] != 90 {
		return errRefused
	}
	return nil
}

// askSOCKS5 (RFC 1928): no authentication, CONNECT.
func askSOCKS5(c *conversation, target netip.AddrPort) error {
	var choice [2]byte
	if _, err := c.Write([]byte{5, 1, 0}); err != nil {
		return err
	}
	if _, err := io.ReadFull(c.r, choice[:]); err != nil {
		return err
	}
	if choice != [2]byte{5, 0} {
		return errRefused
	}
	kind := byte(1) // IPv4
	if target.Addr().Is6() {
		kind = 4
	}
	b := append([]byte{5, 1, 0, kind}, target.Addr().AsSlice()...)
	if _, err := c.Write(binary.BigEndian.AppendUint16(b, target.Port())); err != nil {
		return err
	}
	return readSOCKS5(c.r)
}

// readSOCKS5 reads the reply with the address in it (RFC 1928 section 6).
func readSOCKS5(r *bufio.Reader) error {
	var head [5]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return err
	}
	if head[0] != 5 || head[1] != 0 {
		return errRefused
	}
	rest := map[byte]int{1: 3, 4: 15, 3: int(head[4])}[head[3]] // one octet of the address has been read
	_, err := r.Discard(rest + 2)
	return err
}

// askConnect (RFC 9110 section 9.3.6).
func askConnect(c *conversation, target netip.AddrPort) error {
	if _, err := fmt.Fprintf(c, "CONNECT %s HTTP/1.0\r\n\r\n", target); err != nil {
		return err
	}
	status, err := c.r.ReadString('\n')
	if err != nil {
		return err
	}
	words := strings.Fields(status)
	if len(words) < 2 || !strings.HasPrefix(words[0], "HTTP/") || !strings.HasPrefix(words[1], "2") {
		return errRefused
	}
	for {
		line, err := c.r.ReadString('\n')
		if err != nil || strings.TrimSpace(line) == "" {
			return err
		}
	}
}

// askPost has an HTTP proxy hand a body to a mail server, which answers amid its complaints.
func askPost(c *conversation, target netip.AddrPort) error {
	const body = "QUIT\r\n"
	_, err := fmt.Fprintf(c, "POST http://%s/ HTTP/1.0\r\nContent-Type: text/plain\r\nContent-Length: %d\r\n\r\n%s", target, len(body), body)
	return err
}

// askText types the target where somebody could: a command, with the target's address and port in it.
func askText(format string) handshake {
	return func(c *conversation, target netip.AddrPort) error {
		_, err := fmt.Fprintf(c, format, target.Addr(), target.Port())
		return err
	}
}
