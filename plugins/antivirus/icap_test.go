package main

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http/httputil"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/posternmail/postern/internal/lack"
)

// icapServer is a small server of ICAP that finds the words "virus-...".
type icapServer struct {
	style   string // how it says what it found
	preview int    // asked for with OPTIONS; -1: none

	mu       sync.Mutex
	requests []string // request line and Encapsulated of each
	whole    int      // requests of which it wanted more than the preview
}

// startICAP serves on TCP.
func startICAP(t testing.TB, s *icapServer) (addr string) {
	t.Helper()
	if inChild() {
		return "127.0.0.1:1"
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	accept(t, l, s.serve)
	return l.Addr().String()
}

func (s *icapServer) serve(conn net.Conn) {
	defer conn.Close()
	in := bufio.NewReader(conn)
	for {
		first, err := in.ReadString('\n')
		if err != nil {
			return
		}
		header := map[string]string{}
		for {
			line, err := in.ReadString('\n')
			if err != nil {
				return
			}
			if line = strings.TrimRight(line, "\r\n"); line == "" {
				break
			}
			name, value, _ := strings.Cut(line, ": ")
			header[name] = value
		}
		if strings.HasPrefix(first, "OPTIONS") {
			preview := ""
			if s.preview >= 0 {
				preview = fmt.Sprintf("Preview: %d\r\n", s.preview)
			}
			fmt.Fprintf(conn, "ICAP/1.0 200 OK\r\nMethods: RESPMOD, REQMOD\r\nService: Test 1.0\r\nISTag: \"T-1\"\r\nAllow: 204\r\n"+
				"Options-TTL: 60\r\n%sEncapsulated: null-body=0\r\n\r\n", preview)
			continue
		}
		if !s.answer(conn, in, first, header) {
			return
		}
	}
}

// answer a request.
func (s *icapServer) answer(conn net.Conn, in *bufio.Reader, first string, header map[string]string) bool {
	s.mu.Lock()
	s.requests = append(s.requests, strings.TrimRight(first, "\r\n")+" "+header["Encapsulated"])
	s.mu.Unlock()
	encapsulated := header["Encapsulated"]
	n, err := strconv.Atoi(encapsulated[strings.LastIndexByte(encapsulated, '=')+1:])
	if err != nil {
		return false
	}
	block := make([]byte, n)
	if _, err := io.ReadFull(in, block); err != nil {
		return false
	}
	content, ended, err := readChunks(in)
	if err != nil {
		return false
	}
	if header["Preview"] != "" && !ended {
		if !bytes.Contains(content, []byte("virus-")) {
			s.mu.Lock()
			s.whole++
			s.mu.Unlock()
			io.WriteString(conn, "ICAP/1.0 100 Continue\r\n\r\n")
			rest, _, err := readChunks(in)
			if err != nil {
				return false
			}
			content = append(content, rest...)
		}
	}
	return s.say(conn, string(block), content)
}

// readChunks reads a chunked body; ended: with ieof.
func readChunks(in *bufio.Reader) (content []byte, ended bool, err error) {
	for {
		line, err := in.ReadString('\n')
		if err != nil {
			return nil, false, err
		}
		size, extension, _ := strings.Cut(strings.TrimRight(line, "\r\n"), ";")
		n, err := strconv.ParseInt(size, 16, 32)
		if err != nil {
			return nil, false, err
		}
		chunk := make([]byte, n+2)
		if _, err := io.ReadFull(in, chunk); err != nil {
			return nil, false, err
		}
		if n == 0 {
			return content, strings.TrimSpace(extension) == "ieof", nil
		}
		content = append(content, chunk[:n]...)
	}
}

const blockPage = "HTTP/1.1 403 Forbidden\r\nContent-Type: text/plain\r\n\r\n"

// say what is to be said about content.
func (s *icapServer) say(conn net.Conn, block string, content []byte) bool {
	_, name, infected := bytes.Cut(content, []byte("virus-"))
	fields := ""
	switch s.style {
	case "hang":
		io.Copy(io.Discard, conn)
		return false
	case "die":
		return false
	case "garbage":
		io.WriteString(conn, "HTTP/1.1 200 OK\r\n\r\n")
		return true
	case "error":
		io.WriteString(conn, "ICAP/1.0 500 Server error\r\n\r\n")
		return true
	case "endless":
		io.WriteString(conn, "ICAP/1.0 200 OK\r\nX: "+strings.Repeat("x", 1<<20))
		return false
	case "offset":
		io.WriteString(conn, "ICAP/1.0 200 OK\r\nEncapsulated: res-hdr=0, res-body=999999999\r\n\r\n")
		return true
	case "X-Infection-Found":
		fields = fmt.Sprintf("X-Infection-Found: Type=0; Resolution=2; Threat=%.4s;\r\n", name)
	case "X-Virus-ID":
		fields = fmt.Sprintf("X-Virus-ID: %.4s\r\n", name)
	case "X-Violations-Found":
		fields = fmt.Sprintf("X-Violations-Found: 1\r\n\tfile\r\n\t%.4s\r\n\t0\r\n\t2\r\n", name)
	case "echo": // knows no 204
		if !infected {
			io.WriteString(conn, "ICAP/1.0 200 OK\r\nISTag: \"T-1\"\r\nEncapsulated: res-hdr=0, res-body="+fmt.Sprint(len(responseOf(block)))+"\r\n\r\n"+responseOf(block))
			w := httputil.NewChunkedWriter(conn)
			w.Write(content)
			w.Close()
			io.WriteString(conn, "\r\n")
			return true
		}
	}
	if infected {
		fmt.Fprintf(conn, "ICAP/1.0 200 OK\r\n%sEncapsulated: res-hdr=0, res-body=%d\r\n\r\n%s2\r\nno\r\n0\r\n\r\n", fields, len(blockPage), blockPage)
		return true
	}
	io.WriteString(conn, "ICAP/1.0 204 No modifications\r\nISTag: \"T-1\"\r\n\r\n")
	return true
}

// responseOf what was encapsulated: behind the request.
func responseOf(block string) string {
	_, response, _ := strings.Cut(block, "\r\n\r\n")
	return response
}

// icapAt is an engine block.
func icapAt(addr, timeout, more string) string {
	return fmt.Sprintf("engine \"icap\" {\ntimeout = %q\nicap {\nurl = \"icap://%s/scan\"\n%s\n}\n}\n", timeout, addr, more)
}

// TestICAP: what servers say in their different ways.
func TestICAP(t *testing.T) {
	long := strings.Repeat("0123456789", 10_000)
	for _, c := range []struct {
		name, style, more string
		preview           int
		message           string
		verdict, data     string
	}{
		{"clean", "", "", -1, "Subject: x\n\nhello\n", "done", "icap Test 1.0 T-1"},
		{"clean, long", "", "", 1024, "Subject: x\n\n" + long, "done", "icap Test 1.0 T-1"},
		{"clean, no preview", "", "", -1, "Subject: x\n\n" + long, "done", "icap Test 1.0 T-1"},
		{"clean, empty preview", "", "", 0, "Subject: x\n\n" + long, "done", "icap Test 1.0 T-1"},
		{"clean, reqmod", "", `method = "reqmod"`, 1024, "Subject: x\n\n" + long, "done", "icap Test 1.0 T-1"},
		{"clean, without 204", "echo", "", 1024, "Subject: x\n\n" + long, "done", "icap Test 1.0 T-1"},
		{"X-Infection-Found", "X-Infection-Found", "", 1024, plainMessage, "reject", "word in the message (icap); word in text/plain (icap)"},
		{"X-Virus-ID", "X-Virus-ID", "", 1024, plainMessage, "reject", "word in the message (icap); word in text/plain (icap)"},
		{"X-Violations-Found", "X-Violations-Found", "", 1024, plainMessage, "reject", "word in the message (icap); word in text/plain (icap)"},
		{"only blocked", "echo", "", 1024, plainMessage, "reject", "blocked by the server in the message (icap); blocked by the server in text/plain (icap)"},
		{"only blocked, reqmod", "", `method = "reqmod"`, 1024, plainMessage, "reject",
			"blocked by the server in the message (icap); blocked by the server in text/plain (icap)"},
		{"in the preview", "X-Virus-ID", "", 512, "Subject: x\n\nvirus-word" + long, "reject", "word in the message (icap); word in text/plain (icap)"},
		{"behind the preview", "X-Virus-ID", "", 512, "Subject: x\n\n" + long + "virus-word\n", "reject", "word in the message (icap); word in text/plain (icap)"},
		{"hangs", "hang", "", -1, plainMessage, "undetermined", "icap: no answer within 2s"},
		{"dies", "die", "", -1, plainMessage, "undetermined", "icap: the connection ended without an answer"},
		{"garbage", "garbage", "", -1, plainMessage, "undetermined", "icap: cannot be understood: HTTP/1.1 200 OK"},
		{"error", "error", "", -1, plainMessage, "undetermined", "icap: answers 500 Server error"},
		{"endless", "endless", "", -1, plainMessage, "undetermined", "icap: an endless answer"},
		{"offset", "offset", "", -1, plainMessage, "undetermined", "icap: cannot be understood: Encapsulated: res-hdr=0, res-body=999999999"},
	} {
		t.Run(c.name, func(t *testing.T) {
			server := &icapServer{style: c.style, preview: c.preview}
			timeout := "20s"
			if c.style == "hang" {
				timeout = "2s"
			}
			a := start(t, icapAt(startICAP(t, server), timeout, c.more))
			for range 2 {
				o := send(a, c.message).WantVerdict(c.verdict)
				if got := o.Answer().GetVerdicts()[0].GetData(); got != c.data {
					t.Errorf("data %q, want %q", got, c.data)
				}
			}
			server.mu.Lock()
			defer server.mu.Unlock()
			if c.name == "clean, long" && server.whole == 0 || c.name == "in the preview" && server.whole > 0 {
				t.Errorf("%d requests went on behind the preview", server.whole)
			}
		})
	}
}

// TestRealICAP: a c-icap server with its echo service takes what we send, and lets it pass.
func TestRealICAP(t *testing.T) {
	addr := startCICAP(t)
	for name, more := range map[string]string{"respmod": "", "reqmod": "method = \"reqmod\"", "small preview": "preview = \"16\""} {
		t.Run(name, func(t *testing.T) {
			a := start(t, fmt.Sprintf("engine \"icap\" {\nicap {\nurl = \"icap://%s/echo\"\n%s\n}\n}\n", addr, more))
			for _, size := range []int{1, 1000, 100_000, 1_000_000} {
				o := send(a, withFile("file.bin", bytes.Repeat([]byte{'x'}, size))).WantReason("Clean")
				if data := o.Answer().GetVerdicts()[0].GetData(); !strings.HasPrefix(data, "icap C-ICAP/") && !strings.HasPrefix(data, "icap Echo demo service") {
					t.Errorf("data %q", data)
				}
			}
		})
	}
	a := start(t, fmt.Sprintf("engine \"icap\" {\nicap {\nurl = \"icap://%s/nothing\"\n}\n}\n", addr))
	send(a, plainMessage).WantVerdict("undetermined").WantReason("EngineDown")
}

// startCICAP starts c-icap.
func startCICAP(t testing.TB) (addr string) {
	t.Helper()
	if inChild() {
		return "127.0.0.1:1"
	}
	program, err := exec.LookPath("/usr/bin/c-icap")
	if err != nil {
		lack.Of(t, "c-icap (package c-icap)")
	}
	dir := shortDir(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr = l.Addr().String()
	l.Close()
	_, port, _ := net.SplitHostPort(addr)
	modules, err := filepath.Glob("/usr/lib/*/c_icap/srv_echo.so")
	if err != nil || len(modules) == 0 {
		t.Fatalf("c-icap has no echo service: %v", err)
	}
	config := fmt.Sprintf(`PidFile %[1]s/pid
CommandsSocket %[1]s/ctl
TmpDir %[1]s
Port 127.0.0.1:%[2]s
StartServers 1
MaxServers 2
ThreadsPerChild 8
ServerLog %[1]s/log
AccessLog %[1]s/access
ModulesDir %[3]s
ServicesDir %[3]s
Service echo srv_echo.so
`, dir, port, filepath.Dir(modules[0]))
	if err := os.WriteFile(filepath.Join(dir, "conf"), []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(program, "-N", "-f", filepath.Join(dir, "conf"))
	cmd.Dir = dir
	var output bytes.Buffer
	cmd.Stdout, cmd.Stderr = &output, &output
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Signal(os.Interrupt)
		done := make(chan error, 1)
		go func() { done <- cmd.Wait() }()
		select {
		case <-done:
		case <-time.After(10 * time.Second):
			cmd.Process.Kill()
			<-done
		}
		if t.Failed() {
			log, _ := os.ReadFile(filepath.Join(dir, "log"))
			t.Logf("c-icap:\n%s%s", output.String(), tail(string(log), 4000))
		}
	})
	for late := time.Now().Add(30 * time.Second); time.Now().Before(late); time.Sleep(20 * time.Millisecond) {
		if conn, err := net.Dial("tcp", addr); err == nil {
			conn.Close()
			return addr
		}
	}
	t.Fatalf("c-icap does not listen:\n%s", output.String())
	return ""
}

func FuzzICAPReply(f *testing.F) {
	f.Add("ICAP/1.0 200 OK\r\nEncapsulated: res-hdr=0, res-body=19\r\n\r\nHTTP/1.1 200 OK\r\n\r\n2\r\nab\r\n0\r\n\r\n")
	f.Add("ICAP/1.0 204 No\r\n\r\n")
	f.Add("ICAP/1.0 200 OK\r\nX-Violations-Found: 1\r\n\tf\r\n\tt\r\n\r\n")
	f.Add("ICAP/1.0 200 OK\r\n \r\nEncapsulated: null-body=-1\r\n\r\n")
	f.Fuzz(func(t *testing.T, reply string) {
		in := bufio.NewReaderSize(strings.NewReader(reply), maxLine)
		r, err := readICAP(in)
		if err != nil {
			return
		}
		r.options()
		c := &icap{ICAP: ICAP{Method: "respmod"}}
		o := &object{size: 2, open: func() io.Reader { return strings.NewReader("ab") }}
		malware, _, err := c.judge(&connection{in: in}, r, o)
		if err == nil && malware == "" && r.code != 204 && !strings.Contains(reply, "ab") {
			t.Errorf("%q counts as clean", reply)
		}
	})
}

// TestICAPEarly: a server that answers before it has heard everything leaves nothing hanging.
func TestICAPEarly(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	accept(t, l, func(conn net.Conn) {
		defer conn.Close()
		head := make([]byte, 16)
		io.ReadFull(conn, head)
		io.WriteString(conn, "ICAP/1.0 200 OK\r\nX-Virus-ID: early\r\nEncapsulated: null-body=0\r\n\r\n")
		time.Sleep(time.Second) // and reads nothing
	})
	c, err := newICAP(ICAP{URL: "icap://" + l.Addr().String() + "/x", Method: "respmod"}, Engine{MaxConnections: 1})
	if err != nil {
		t.Fatal(err)
	}
	c.options, c.until = icapOptions{preview: -1}, time.Now().Add(time.Hour)
	large := bytes.Repeat([]byte{'x'}, 32<<20)
	o := &object{name: "large", size: int64(len(large)), open: section(bytes.NewReader(large), 0, int64(len(large)))}
	if malware, err := c.scan(context.Background(), o); malware != "early" || err != nil {
		t.Errorf("%q, %v", malware, err)
	}
}
