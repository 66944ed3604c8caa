package main

import (
	"bufio"
	"crypto/tls"
	"fmt"
	"net"
	"os"
	"time"
)

// idleMemory prints what 1,000 connections that have said EHLO and wait cost the host, plain and with TLS.
func idleMemory() error {
	for _, secure := range []bool{false, true} {
		perConn, err := idleRun(secure)
		if err != nil {
			return err
		}
		fmt.Printf("| idle connection, TLS %v | %.1f KB |\n", secure, perConn/1024)
	}
	return nil
}

func idleRun(secure bool) (float64, error) {
	const n = 1000
	dir, err := os.MkdirTemp("/tmp", "bench")
	if err != nil {
		return 0, err
	}
	defer os.RemoveAll(dir)
	srv, err := startPostern(dir, cell{server: "postern", size: -1}, 1)
	if err != nil {
		return 0, err
	}
	defer srv.stop()
	var conns []net.Conn
	defer func() {
		for _, c := range conns {
			c.Close()
		}
	}()
	for i := 0; i < 50; i++ { // what the first connections allocate once is not theirs
		c, err := idleConn(srv.addr, secure)
		if err != nil {
			return 0, err
		}
		conns = append(conns, c)
	}
	host := srv.pids()[0]
	time.Sleep(3 * time.Second)
	before := pssBytes(host)
	for i := 0; i < n; i++ {
		c, err := idleConn(srv.addr, secure)
		if err != nil {
			return 0, err
		}
		conns = append(conns, c)
	}
	time.Sleep(3 * time.Second)
	return float64(pssBytes(host)-before) / n, nil
}

func idleConn(addr string, secure bool) (net.Conn, error) {
	c, err := net.Dial("tcp", addr)
	if err != nil {
		return nil, err
	}
	r := bufio.NewReader(c)
	say := func(line, code string) error {
		if _, err := c.Write([]byte(line + "\r\n")); err != nil {
			return err
		}
		return expect(r, code)
	}
	if err := expect(r, "220"); err != nil {
		return nil, err
	}
	if err := say("EHLO idle.example", "250"); err != nil || !secure {
		return c, err
	}
	if err := say("STARTTLS", "220"); err != nil {
		return nil, err
	}
	t := tls.Client(c, &tls.Config{InsecureSkipVerify: true}) // the host's certificate is made at its first start
	c, r = t, bufio.NewReader(t)
	return c, say("EHLO idle.example", "250")
}
