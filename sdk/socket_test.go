package sdk

import (
	"bytes"
	"crypto/sha256"
	"io"
	"net"
	"path/filepath"
	"testing"
	"time"
)

// accepted is both ends of a connection, the first of them quiet.
func accepted(t *testing.T) (ours, theirs net.Conn) {
	t.Helper()
	inner, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	listener := quiet(inner)
	defer listener.Close()
	if theirs, err = net.Dial("unix", inner.Addr().String()); err != nil {
		t.Fatal(err)
	}
	if ours, err = listener.Accept(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ours.Close()
		theirs.Close()
	})
	return ours, theirs
}

// What is larger than the socket's buffers comes back whole, and then the end.
func TestQuietConnectionCarriesMuchBothWays(t *testing.T) {
	ours, theirs := accepted(t)
	sent := bytes.Repeat([]byte("0123456789abcdef"), 1<<18)
	go func() {
		io.Copy(ours, ours)
		ours.Close()
	}()
	go func() {
		theirs.Write(sent)
		theirs.(*net.UnixConn).CloseWrite()
	}()
	got, err := io.ReadAll(theirs)
	if err != nil {
		t.Fatal(err)
	}
	if sha256.Sum256(got) != sha256.Sum256(sent) {
		t.Errorf("%d octets came back otherwise than the %d sent", len(got), len(sent))
	}
}

func TestQuietConnectionEnds(t *testing.T) {
	ours, theirs := accepted(t)
	theirs.Close()
	if n, err := ours.Read(make([]byte, 1)); n != 0 || err != io.EOF {
		t.Errorf("read at the end: %d, %v, want io.EOF", n, err)
	}
	if _, err := ours.Write([]byte("x")); err == nil {
		t.Error("writing to nobody succeeds")
	}
}

func TestQuietConnectionIsInterrupted(t *testing.T) {
	for name, interrupt := range map[string]func(net.Conn){
		"close":    func(c net.Conn) { c.Close() },
		"deadline": func(c net.Conn) { c.SetReadDeadline(time.Now()) },
	} {
		t.Run(name, func(t *testing.T) {
			ours, _ := accepted(t)
			read := make(chan error)
			go func() {
				_, err := ours.Read(make([]byte, 1))
				read <- err
			}()
			interrupt(ours)
			if err := <-read; err == nil {
				t.Error("the read returns without an error")
			}
		})
	}
}
