package main

import (
	"bufio"
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/posternmail/postern/internal/clamdtest"
	"github.com/posternmail/postern/internal/corpora"
	"github.com/posternmail/postern/sdk/agenttest"
)

// eicar is the test file that every scanner calls infected, in two pieces so that this file is not it.
var eicar = `X5O!P%@AP[4\PZX54(P^)7CC)7}$` + `EICAR-STANDARD-ANTIVIRUS-TEST-FILE!$H+H*`

// inChild: this is a process of the agent, which needs no servers of its own.
func inChild() bool { return os.Getenv("POSTERN_AGENTTEST") != "" }

// shortDir is a folder whose paths fit a socket's address.
func shortDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "v")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// startClamd starts the real clamd, on a Unix socket and on TCP.
func startClamd(t testing.TB) (socket, tcp string) {
	t.Helper()
	if inChild() {
		return "/unused", "127.0.0.1:1"
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	tcp = l.Addr().String()
	l.Close()
	_, port, _ := net.SplitHostPort(tcp)
	socket = filepath.Join(shortDir(t), "clamd")
	clamdtest.Start(t, socket, "TCPAddr 127.0.0.1", "TCPSocket "+port)
	return socket, tcp
}

// encoded writes base64 in lines.
func encoded(b []byte) string {
	text := base64.StdEncoding.EncodeToString(b)
	var out strings.Builder
	for len(text) > 76 {
		out.WriteString(text[:76] + "\n")
		text = text[76:]
	}
	return out.String() + text + "\n"
}

// withFile is a message with one attachment.
func withFile(name string, content []byte) string {
	return "From: a@x.example\nSubject: file\nMIME-Version: 1.0\nContent-Type: multipart/mixed; boundary=b\n\n" +
		"--b\nContent-Type: text/plain\n\nhello\n--b\nContent-Type: application/octet-stream; name=\"" + name +
		"\"\nContent-Transfer-Encoding: base64\n\n" + encoded(content) + "--b--\n"
}

func start(t *testing.T, config string, options ...agenttest.Option) *agenttest.Agent {
	t.Helper()
	return agenttest.Start(t, New, config, append([]agenttest.Option{agenttest.WithInfo(info())}, options...)...)
}

// send a message from a stranger.
func send(a *agenttest.Agent, message string) *agenttest.Outcome {
	s := a.From("192.0.2.1")
	s.Mail("a@x.example")
	s.To("b@y.example")
	return s.Data(message)
}

// TestRealClamd finds every file of ClamAV's test set, by each way to give it to clamd.
func TestRealClamd(t *testing.T) {
	socket, tcp := startClamd(t)
	files, err := filepath.Glob(filepath.Join(corpora.Path(t, "av-clamav-testfiles"), "files", "*"))
	if err != nil || len(files) != 44 {
		t.Fatalf("%d test files: %v", len(files), err)
	}
	for name, config := range map[string]string{
		"fildes": fmt.Sprintf("address = %q\ntransfer = \"fildes\"", socket),
		"unix":   fmt.Sprintf("address = \"unix:%s\"\ntransfer = \"instream\"", socket),
		"tcp":    fmt.Sprintf("address = %q", tcp),
	} {
		t.Run(name, func(t *testing.T) {
			a := start(t, "engine \"clamd\" {\nclamd {\n"+config+"\n}\n}")
			found := 0
			for _, f := range files {
				content, err := os.ReadFile(f)
				if err != nil {
					t.Fatal(err)
				}
				o := send(a, withFile(filepath.Base(f), content)).Want(550, "5.7.1").WantReason("Malware")
				for _, s := range o.Answer().GetStamps() {
					if s.GetName() == "malware" && string(s.GetValue()) == "ClamAV-Test-File.UNOFFICIAL" {
						found++
					}
				}
			}
			if found != 44 {
				t.Errorf("%d of 44 test files found by name", found)
			}
			send(a, withFile("eicar.com", []byte(eicar))).WantStamp("malware", "Eicar-Test-String.UNOFFICIAL")
			send(a, withFile("clean.bin", bytes.Repeat([]byte{0, 1, 2, 3}, 5000))).WantContinue().WantReason("Clean").
				WantStamp("av.status", "clean").WantStamp("engines", "clamd ClamAV 1.4.6")
		})
	}
}

// behaviour of a clamd that is none.
type behaviour func(command string, content []byte) (reply string)

// Replies that are none.
const (
	hang = "\x00hang"
	die  = "\x00die"
)

// fakeClamd serves the protocol on a Unix socket.
func fakeClamd(t testing.TB, say behaviour) (socket string) {
	t.Helper()
	if inChild() {
		return "/unused"
	}
	socket = filepath.Join(shortDir(t), "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	accept(t, l, func(conn net.Conn) { serveClamd(conn, say) })
	return socket
}

// accept connections until the test ends, or stop is called, which ends them all.
func accept(t testing.TB, l net.Listener, handle func(net.Conn)) (stop func()) {
	var mu sync.Mutex
	var conns []net.Conn
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			conns = append(conns, conn)
			mu.Unlock()
			go handle(conn)
		}
	}()
	stop = sync.OnceFunc(func() {
		l.Close()
		mu.Lock()
		defer mu.Unlock()
		for _, c := range conns {
			c.Close()
		}
	})
	t.Cleanup(stop)
	return stop
}

func serveClamd(conn net.Conn, say behaviour) {
	defer conn.Close()
	// Octet for octet, so that the descriptor behind FILDES is not read over.
	in, n := bufio.NewReaderSize(oneByOne{conn}, 16), 0
	for {
		command, err := in.ReadString(0)
		if err != nil {
			return
		}
		command = strings.TrimSuffix(strings.TrimPrefix(command, "z"), "\x00")
		var content []byte
		switch command {
		case "IDSESSION":
			continue
		case "INSTREAM":
			content, err = readStream(in)
		case "FILDES":
			content, err = readDescriptor(conn.(*net.UnixConn))
		}
		if err != nil {
			return
		}
		n++
		switch reply := say(command, content); reply {
		case die:
			return
		case hang:
			io.Copy(io.Discard, conn)
			return
		default:
			if !strings.HasSuffix(reply, "\x00") {
				reply = fmt.Sprintf("%d: %s\x00", n, reply)
			}
			if _, err := io.WriteString(conn, reply); err != nil {
				return
			}
		}
	}
}

// oneByOne never reads ahead.
type oneByOne struct{ io.Reader }

func (r oneByOne) Read(p []byte) (int, error) { return r.Reader.Read(p[:1]) }

func readStream(in io.Reader) (content []byte, err error) {
	for {
		var n uint32
		if err := binary.Read(in, binary.BigEndian, &n); err != nil || n == 0 {
			return content, err
		}
		chunk := make([]byte, n)
		if _, err := io.ReadFull(in, chunk); err != nil {
			return nil, err
		}
		content = append(content, chunk...)
	}
}

func readDescriptor(conn *net.UnixConn) ([]byte, error) {
	one, oob := make([]byte, 1), make([]byte, unix.CmsgSpace(4))
	_, n, _, _, err := conn.ReadMsgUnix(one, oob)
	if err != nil {
		return nil, err
	}
	messages, err := unix.ParseSocketControlMessage(oob[:n])
	if err != nil || len(messages) != 1 {
		return nil, fmt.Errorf("%d messages: %v", len(messages), err)
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil {
		return nil, err
	}
	file := os.NewFile(uintptr(fds[0]), "part")
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return nil, err
	}
	return io.ReadAll(io.NewSectionReader(file, 0, info.Size()))
}

// sane behaves like a clamd that knows the words "virus-NAME" and nothing else.
func sane(command string, content []byte) string {
	if command == "VERSION" {
		return "ClamAV 9.9.9/1000/Thu Jan  1 09:00:00 2026"
	}
	if _, name, ok := bytes.Cut(content, []byte("virus-")); ok {
		end := bytes.IndexFunc(append(name, ' '), func(r rune) bool { return r < '0' || r > 'z' })
		return "stream: " + string(name[:end]) + " FOUND"
	}
	return "stream: OK"
}

// answering VERSION as it should, and everything else with one reply.
func answering(reply string) behaviour {
	return func(command string, content []byte) string {
		if command == "VERSION" {
			return sane(command, content)
		}
		return reply
	}
}

func tail(s string, n int) string { return s[max(0, len(s)-n):] }
