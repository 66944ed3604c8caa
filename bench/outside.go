package main

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"strings"
	"time"

	"github.com/miekg/dns"
)

// slowResolver is a DNS server that takes its time. Every domain sends from here (SPF) and has a policy (DMARC).
func slowResolver(delay time.Duration) (addr string, err error) {
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	answer := func(w dns.ResponseWriter, q *dns.Msg) {
		time.Sleep(delay)
		m, name := new(dns.Msg).SetReply(q), q.Question[0].Name
		text := "v=spf1 ip4:127.0.0.0/8 -all"
		if strings.HasPrefix(name, "_dmarc.") {
			text = "v=DMARC1; p=none"
		}
		if q.Question[0].Qtype == dns.TypeTXT {
			m.Answer = []dns.RR{&dns.TXT{Hdr: dns.RR_Header{Name: name, Rrtype: dns.TypeTXT, Class: dns.ClassINET, Ttl: 60}, Txt: []string{text}}}
		}
		_ = w.WriteMsg(m)
	}
	go func() { _ = (&dns.Server{PacketConn: conn, Handler: dns.HandlerFunc(answer)}).ActivateAndServe() }()
	return conn.LocalAddr().String(), nil
}

// slowScanner speaks clamd's protocol over TCP and finds every message clean, in its time: one scan for each session at once.
func slowScanner(delay time.Duration) (addr string, err error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go scanSession(conn, delay)
		}
	}()
	return l.Addr().String(), nil
}

func scanSession(conn net.Conn, delay time.Duration) {
	defer conn.Close()
	in := bufio.NewReader(conn)
	for n := 1; ; n++ {
		command, err := in.ReadString(0)
		if err != nil {
			return
		}
		reply := ""
		switch strings.Trim(command, "z\x00") {
		case "IDSESSION":
			n--
			continue
		case "PING":
			reply = "PONG"
		case "VERSION":
			reply = "ClamAV 1.0.0/27000/" + time.Now().UTC().Format(time.ANSIC)
		case "INSTREAM":
			if drainStream(in) != nil {
				return
			}
			time.Sleep(delay)
			reply = "stream: OK"
		default:
			reply = "UNKNOWN COMMAND"
		}
		if _, err := fmt.Fprintf(conn, "%d: %s\x00", n, reply); err != nil {
			return
		}
	}
}

// drainStream reads the chunks of one INSTREAM to the empty one.
func drainStream(in io.Reader) error {
	for {
		var n uint32
		if err := binary.Read(in, binary.BigEndian, &n); err != nil || n == 0 {
			return err
		}
		if _, err := io.CopyN(io.Discard, in, int64(n)); err != nil {
			return err
		}
	}
}
