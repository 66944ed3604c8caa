package main

import (
	"bufio"
	"bytes"
	"io"
	"net"
	"net/netip"
	"testing"
)

// spoken is a connection on which everything has been said already.
type spoken struct {
	net.Conn
	heard io.Writer
}

func (s spoken) Write(p []byte) (int, error) { return s.heard.Write(p) }

// FuzzProxyAnswers: what is tested answers as it likes, and is read to an end.
func FuzzProxyAnswers(f *testing.F) {
	f.Add([]byte("\x05\x00\x05\x00\x00\x03\xffx"))
	f.Add([]byte("\x00\x5a\x00\x00\x00\x00\x00\x00220 here"))
	f.Add([]byte("HTTP/1.0 200 ok\r\nA: b\r\n\r\n220 here ESMTP\r\n"))
	f.Fuzz(func(t *testing.T, answer []byte) {
		target := netip.MustParseAddrPort("192.0.2.1:25")
		for _, ask := range []handshake{askSOCKS4, askSOCKS5, askConnect, askPost, askText("telnet %s %d\r\n")} {
			c := &conversation{Conn: spoken{heard: io.Discard}, r: bufio.NewReader(bytes.NewReader(answer))}
			if ask(c, target) == nil && greets(c.r, "here") && !bytes.Contains(answer, []byte("here")) {
				t.Errorf("%q greets", answer)
			}
		}
	})
}
