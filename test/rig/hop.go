package rig

import (
	"bufio"
	"io"
	"net"
	"strings"
	"testing"
)

// StartHop starts a next hop that answers each command, and the dot behind each message, as it is told; "" is what servers
// usually say. It keeps nothing.
func StartHop(t testing.TB, answer func(line string) string) (addr string) {
	t.Helper()
	return serve(t, func(c net.Conn) { converse(c, answer) })
}

// serve accepts connections at a loopback address until the test ends.
func serve(t testing.TB, handle func(net.Conn)) (addr string) {
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
			go handle(c)
		}
	}()
	return l.Addr().String()
}

func converse(c net.Conn, answer func(line string) string) {
	defer c.Close()
	content := false
	_, _ = io.WriteString(c, "220 next.example\r\n")
	for lines := bufio.NewScanner(c); lines.Scan(); {
		line := strings.TrimSuffix(lines.Text(), "\r")
		if content && line != "." {
			continue
		}
		content = strings.HasPrefix(line, "DATA")
		reply := answer(line)
		switch {
		case reply != "":
		case content:
			reply = "354 go on"
		case line == ".":
			reply = "250 2.0.0 taken"
		case strings.HasPrefix(line, "QUIT"):
			reply = "221 bye"
		default:
			reply = "250 fine"
		}
		if _, err := io.WriteString(c, reply+"\r\n"); err != nil {
			return
		}
	}
}
