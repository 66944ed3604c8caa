package main

import (
	"bufio"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/posternmail/postern/sdk/agentpb"
	"github.com/posternmail/postern/sdk/agenttest"
)

// serve accepts connections on loopback until the test ends.
func serve(t *testing.T, handle func(net.Conn, *bufio.Reader)) netip.AddrPort {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				_ = c.SetDeadline(time.Now().Add(20 * time.Second))
				handle(c, bufio.NewReader(c))
			}()
		}
	}()
	return netip.MustParseAddrPort(l.Addr().String())
}

// smtp greets as this host does.
func smtp(c net.Conn, _ *bufio.Reader) {
	_, _ = io.WriteString(c, "220 edge.example ESMTP Postern\r\n")
}

// join lets two connections talk.
func join(c net.Conn, r *bufio.Reader, to netip.AddrPort) {
	out, err := net.Dial("tcp", to.String())
	if err != nil {
		return
	}
	defer out.Close()
	go func() { _, _ = io.Copy(out, r) }()
	_, _ = io.Copy(c, out)
}

// route says where a fake proxy really connects to when it is asked for an address.
type route func(netip.AddrPort) netip.AddrPort

// openProxy of a kind, for anybody.
func openProxy(kind string, to route) func(net.Conn, *bufio.Reader) {
	switch kind {
	case "socks4":
		return func(c net.Conn, r *bufio.Reader) {
			var b [9]byte
			if _, err := io.ReadFull(r, b[:]); err != nil || b[0] != 4 || b[1] != 1 || b[8] != 0 {
				return
			}
			_, _ = c.Write([]byte{0, 90, 0, 0, 0, 0, 0, 0})
			join(c, r, to(netip.AddrPortFrom(netip.AddrFrom4([4]byte(b[4:8])), binary.BigEndian.Uint16(b[2:4]))))
		}
	case "socks5":
		return func(c net.Conn, r *bufio.Reader) { openSOCKS5(c, r, to) }
	case "http_connect":
		return func(c net.Conn, r *bufio.Reader) {
			line, _ := r.ReadString('\n')
			_, _ = r.ReadString('\n')
			_, _ = io.WriteString(c, "HTTP/1.1 200 Connection established\r\nVia: x\r\n\r\n")
			join(c, r, to(target(line, "CONNECT ")))
		}
	case "http_post":
		return func(c net.Conn, r *bufio.Reader) {
			line, _ := r.ReadString('\n')
			_, _ = io.WriteString(c, "HTTP/1.0 502 the server talks nonsense:\r\n\r\n")
			join(c, r, to(target(strings.Replace(line, "/ ", " ", 1), "POST http://")))
		}
	case "telnet", "cisco":
		return func(c net.Conn, r *bufio.Reader) {
			_, _ = io.WriteString(c, "\xff\xfb\x01User Access Verification\r\nPassword: ")
			if kind == "cisco" {
				if password, _ := r.ReadString('\n'); password != "cisco\r\n" {
					return
				}
			}
			line, _ := r.ReadString('\n')
			_, _ = io.WriteString(c, "router>Trying ...\r\n")
			join(c, r, to(target(strings.Replace(strings.TrimPrefix(line, "telnet "), " ", ":", 1), "")))
		}
	}
	return func(c net.Conn, r *bufio.Reader) {
		_, _ = io.WriteString(c, "WinGate>")
		line, _ := r.ReadString('\n')
		join(c, r, to(target(line, "")))
	}
}

func openSOCKS5(c net.Conn, r *bufio.Reader, to route) {
	var hello [3]byte
	if _, err := io.ReadFull(r, hello[:]); err != nil || hello != [3]byte{5, 1, 0} {
		return
	}
	_, _ = c.Write([]byte{5, 0})
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return
	}
	b := make([]byte, map[byte]int{1: 4, 4: 16}[head[3]]+2)
	if _, err := io.ReadFull(r, b); err != nil {
		return
	}
	ip, _ := netip.AddrFromSlice(b[:len(b)-2])
	_, _ = c.Write([]byte("\x05\x00\x00\x03\x04host\x00\x19"))
	join(c, r, to(netip.AddrPortFrom(ip, binary.BigEndian.Uint16(b[len(b)-2:]))))
}

// target of a line such as "CONNECT 192.0.2.1:25 HTTP/1.0".
func target(line, before string) netip.AddrPort {
	word, _, _ := strings.Cut(strings.TrimSpace(strings.TrimPrefix(line, before)), " ")
	ap, _ := netip.ParseAddrPort(word)
	return ap
}

func straight(to netip.AddrPort) netip.AddrPort { return to }

// Each kind of proxy is found open, and told from servers that merely answer.
func TestProbes(t *testing.T) {
	host := serve(t, smtp)
	other := serve(t, func(c net.Conn, _ *bufio.Reader) { _, _ = io.WriteString(c, "220 another.example ESMTP\r\n") })
	refusing := serve(t, func(c net.Conn, r *bufio.Reader) {
		_, _ = io.WriteString(c, "HTTP/1.0 403 no\r\n\r\n")
		_, _ = r.ReadString('\n')
	})
	for name := range kinds {
		t.Run(name, func(t *testing.T) {
			proxy := serve(t, openProxy(name, straight))
			ask := func(at, to netip.AddrPort) string {
				p := newProber(&OpenProxy{Timeout: 10 * time.Second, Tests: []Test{{name, []int{int(at.Port())}}}}, "edge.example")
				ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
				defer cancel()
				found, denied := p.test(ctx, at.Addr(), to)
				if denied != nil {
					t.Error(denied)
				}
				return found
			}
			if got, want := ask(proxy, host), fmt.Sprintf("%s on port %d", name, proxy.Port()); got != want {
				t.Errorf("got %q, want %q", got, want)
			}
			for what, at := range map[string][2]netip.AddrPort{
				"to another host": {proxy, other}, "a server that refuses": {refusing, host},
				"a mail server": {other, host}, "nobody": {netip.MustParseAddrPort("127.0.0.1:1"), host},
			} {
				if got := ask(at[0], at[1]); got != "" {
					t.Errorf("%s: found %q", what, got)
				}
			}
		})
	}
}

// A tarpit costs the time that is configured and no more.
func TestProbeEnds(t *testing.T) {
	silent := serve(t, func(c net.Conn, r *bufio.Reader) { _, _ = io.Copy(io.Discard, r) })
	p := newProber(&OpenProxy{Tests: []Test{{"socks5", []int{int(silent.Port())}}, {"telnet", []int{int(silent.Port())}}}}, "edge.example")
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if got, denied := p.test(ctx, silent.Addr(), silent); got != "" || denied != nil {
		t.Errorf("found %q, %v", got, denied)
	}
}

func TestTestsByDefault(t *testing.T) {
	p := newProber(&OpenProxy{}, "edge.example")
	if n := len(p.tests()); n != 13 {
		t.Errorf("%d tests", n)
	}
}

// The agent tests a source after its session, through the proxy that it needs itself, and rates what it found. It tests
// nobody twice within the time.
func TestOpenProxyIsRated(t *testing.T) {
	host := serve(t, smtp)
	theirs := serve(t, openProxy("http_connect", func(netip.AddrPort) netip.AddrPort { return host }))
	asked := make(chan netip.AddrPort, 10)
	ours := serve(t, openProxy("socks5", func(to netip.AddrPort) netip.AddrPort {
		asked <- to
		return theirs
	}))
	a := start(t, offline+fmt.Sprintf(`
min_messages = 1
open_proxy {
  timeout = "10s"
  through {
    kind    = "socks5"
    address = %q
  }
  test "http_connect" {
    ports = [3128]
  }
}`, ours))
	s := func() *agenttest.Session {
		return a.From("192.0.2.7").With(func(s *agentpb.Session) { s.Commands = 1 })
	}
	s().Disconnect("quit").WantVerdict("continue")
	if to := <-asked; to.String() != "192.0.2.7:3128" {
		t.Errorf("asked for %s", to)
	}
	if got := row(a, "proxies", "192.0.2.7"); got != `{"open":"http_connect on port 3128"}` {
		t.Errorf("proxies %s", got)
	}
	s().Disconnect("quit")
	before := len(asked)
	o := message(s(), "").WantContinue().WantReason(reasonBlocked)
	if !strings.Contains(data(o), "open_proxy 9.0 (http_connect on port 3128)") || len(asked) != before {
		t.Errorf("data %q", data(o))
	}
}
