package delivery

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/posternmail/postern/host/internal/config"
	"github.com/posternmail/postern/host/internal/envelope"
)

func TestLMTP(t *testing.T) {
	dir, err := os.MkdirTemp("/tmp", "p")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	for _, network := range []string{"unix", "tcp"} {
		t.Run(network, func(t *testing.T) {
			h := newHop(t, func(h *hop) {
				h.lmtp = true
				h.replies["RCPT c@x.example"] = "550 5.1.1 unknown"
				h.replies[". 1"] = "452 4.2.2 mailbox full"
				h.replies[". 2"] = "550 5.7.1 not wanted"
				if network == "unix" {
					if h.ln, err = net.Listen("unix", filepath.Join(dir, "s")); err != nil {
						t.Fatal(err)
					}
				}
			})
			address := h.addr()
			if network == "unix" {
				address = "unix:" + address
			}
			d := testDelivery(t, config.SendConnector{LMTP: address})
			res := deliver(t, d, testItem("a@x.example", "b@x.example", "c@x.example", "d@x.example", "e@x.example"))
			want(t, res[0], envelope.Delivered, "250")
			want(t, res[1], envelope.Pending, "452 4.2.2")
			want(t, res[2], envelope.Failed, "550 5.1.1")
			want(t, res[3], envelope.Failed, "550 5.7.1")
			want(t, res[4], envelope.Delivered, "250")
			if len(h.received()) != 1 || h.commands()[0] != "LHLO edge.test.example" {
				t.Errorf("%q", h.commands())
			}
		})
	}
}

func TestLMTPLosesReplies(t *testing.T) {
	h := newHop(t, func(h *hop) { h.lmtp = true; h.replies[". 1"] = "CLOSE" })
	d := testDelivery(t, config.SendConnector{LMTP: h.addr()})
	res := deliver(t, d, testItem("a@x.example", "b@x.example", "c@x.example"))
	want(t, res[0], envelope.Delivered, "250")
	want(t, res[1], envelope.Pending, "4.4.2")
	want(t, res[2], envelope.Pending, "4.4.2")
	if res[0].InDoubt || !res[1].InDoubt || !res[2].InDoubt {
		t.Errorf("%+v", res)
	}
}

func TestDropDirectory(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "new", "drop")
	d := testDelivery(t, config.SendConnector{DropDirectory: dir})
	item := testItem("a@x.example", "b@x.example", "c@x.example")
	item.Mail.Sender.Ret, item.Mail.Sender.EnvID, item.Mail.Sender.BodyType = "FULL", "e 1", "8BITMIME"
	item.Mail.Recipients[0].Notify = envelope.NotifyFailure | envelope.NotifyDelay
	item.Mail.Recipients[0].ORCPT = "rfc822;o@x.example"
	item.Mail.Recipients[2].State = envelope.Delivered
	res := deliver(t, d, item)
	if len(res) != 2 {
		t.Fatalf("%v", res)
	}
	path := filepath.Join(dir, item.ID+".eml")
	for _, r := range res {
		want(t, r, envelope.Delivered, "250")
		if r.Remote != path {
			t.Errorf("remote is %q", r.Remote)
		}
	}
	got, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	wantText := "X-Sender: <sender@source.example> BODY=8BITMIME RET=FULL ENVID=e+201\r\n" +
		"X-Receiver: <a@x.example> NOTIFY=FAILURE,DELAY ORcpt=rfc822;o@x.example\r\n" +
		"X-Receiver: <b@x.example>\r\n" + testContent
	if string(got) != wantText {
		t.Errorf("got  %q\nwant %q", got, wantText)
	}
	deliver(t, d, item) // again, as after a crash
	list, _ := os.ReadDir(dir)
	if len(list) != 1 {
		t.Errorf("%d files after a repeated delivery", len(list))
	}
}

func TestDropDirectoryThatCannotBeWritten(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	d := testDelivery(t, config.SendConnector{DropDirectory: filepath.Join(file, "drop")})
	want(t, one(t, d, testItem("a@x.example")), envelope.Pending, "451 4.3.0")
}

func TestUnknownConnector(t *testing.T) {
	d := testDelivery(t, config.SendConnector{DropDirectory: t.TempDir()})
	item := testItem("a@x.example")
	item.Hop = "gone/x.example"
	want(t, one(t, d, item), envelope.Pending, "4.3.5")
	if d.Knows(item) {
		t.Error("a hop of a connector that is gone counts as known")
	}
}

// A connector that has got another target since an item was routed is not its way any more: a list of smart hosts is no
// domain to look up, and would fail the message.
func TestKnows(t *testing.T) {
	smart, toDNS := config.SendConnector{SmartHosts: []string{"a.example", "b.example:26"}}, config.SendConnector{DNS: true}
	drop, lmtp := config.SendConnector{DropDirectory: "/drop"}, config.SendConnector{LMTP: "unix:/socket"}
	for _, test := range []struct {
		connector config.SendConnector
		hop       string
		known     bool
	}{
		{smart, "out/a.example,b.example:26", true}, {smart, "out/a.example", false}, {smart, "out/x.example", false},
		{toDNS, "out/x.example", true}, {toDNS, "out/a.example,b.example:26", false}, {toDNS, "out/a.example", false},
		{toDNS, "out/drop", false}, {toDNS, "out/lmtp", false},
		{drop, "out/drop", true}, {drop, "out/x.example", false}, {lmtp, "out/lmtp", true}, {lmtp, "out/drop", false},
	} {
		d := testDelivery(t, test.connector)
		item := testItem("a@X.example")
		item.Hop = test.hop
		if d.Knows(item) != test.known {
			t.Errorf("%+v knows %q: %v", test.connector, test.hop, !test.known)
		}
	}
	d := testDelivery(t, toDNS)
	item := testItem("a@x.example")
	item.Mail.Recipients[0].Route, item.Hop = "y.example", "out/y.example"
	if !d.Knows(item) {
		t.Error("the way that an agent gave is not known")
	}
}

func TestApply(t *testing.T) {
	item := testItem("a@x.example", "b@x.example")
	Apply(item, []Result{{Index: 1, State: envelope.Failed, Reply: reply(550, "5.1.1", "no"), Remote: "mx"}})
	if r := item.Mail.Recipients; r[0].State != envelope.Pending || r[1].State != envelope.Failed || r[1].Reply.Code != 550 || r[1].Remote != "mx" {
		t.Errorf("%+v %+v", r[0], r[1])
	}
}

// smtpSink starts Postfix's test server with options and answers with its address.
func smtpSink(t *testing.T, options ...string) string {
	t.Helper()
	ln, err := net.Listen("tcp", quietAddress()+":0")
	if err != nil {
		t.Fatal(err)
	}
	addr := ln.Addr().String()
	_ = ln.Close()
	args := append([]string{"-u", "nobody"}, append(options, addr, "100")...)
	if os.Getuid() != 0 {
		args = args[2:]
	}
	cmd := exec.Command("/usr/sbin/smtp-sink", args...)
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	for range 200 {
		conn, err := net.Dial("tcp", addr)
		if err == nil {
			_ = conn.Close()
			return addr
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatal("smtp-sink does not listen")
	return ""
}

// Postfix's smtp-sink misbehaves on request.
func TestSMTPSink(t *testing.T) {
	tests := []struct {
		name    string
		options []string
		state   envelope.RecipientState
		want    string
		inDoubt bool
	}{
		{"kind", nil, envelope.Delivered, "250", false},
		{"HELO only", []string{"-e"}, envelope.Relayed, "250", false},
		{"no pipelining", []string{"-p"}, envelope.Delivered, "250", false},
		{"no 8BITMIME", []string{"-8"}, envelope.Delivered, "250", false},
		{"LMTP", []string{"-L"}, envelope.Delivered, "250", false},
		{"refuses MAIL", []string{"-f", "mail"}, envelope.Failed, "5", false},
		{"refuses RCPT", []string{"-f", "rcpt"}, envelope.Failed, "5", false},
		{"refuses DATA", []string{"-f", "data"}, envelope.Failed, "5", false},
		{"refuses the message", []string{"-f", "."}, envelope.Failed, "5", false},
		{"defers MAIL", []string{"-r", "mail"}, envelope.Pending, "4", false},
		{"defers RCPT", []string{"-r", "rcpt"}, envelope.Pending, "4", false},
		{"defers the message", []string{"-r", "."}, envelope.Pending, "4", false},
		{"closes at MAIL", []string{"-q", "mail"}, envelope.Pending, "4.4.2", false},
		{"closes at RCPT", []string{"-q", "rcpt"}, envelope.Pending, "4.4.2", false},
		{"closes at DATA", []string{"-q", "data"}, envelope.Pending, "4.4.2", false},
		{"closes after the message", []string{"-q", "."}, envelope.Pending, "4.4.2", true},
		{"421 and closes at RCPT", []string{"-Q", "rcpt"}, envelope.Pending, "421", false},
		{"421 and closes after the message", []string{"-Q", "."}, envelope.Pending, "421", false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			addr := smtpSink(t, tt.options...)
			sc := config.SendConnector{SmartHosts: []string{addr}}
			if tt.name == "LMTP" {
				sc = config.SendConnector{LMTP: addr}
			}
			d := testDelivery(t, sc)
			res := one(t, d, testItem("a@x.example"))
			want(t, res, tt.state, tt.want)
			if res.InDoubt != tt.inDoubt {
				t.Errorf("in doubt %v", res.InDoubt)
			}
		})
	}
}

func TestConcurrentDeliveries(t *testing.T) {
	d := testDelivery(t, config.SendConnector{SmartHosts: []string{smtpSink(t)}})
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for n := range 50 {
				item := testItem("a@x.example")
				item.ID = fmt.Sprintf("i%d-%d", i, n)
				if res := d.Deliver(context.Background(), item); res[0].State != envelope.Delivered {
					t.Errorf("%v", res)
				}
			}
		})
	}
	wg.Wait()
}

func FuzzStuffing(f *testing.F) {
	for _, s := range []string{"", ".", "a\r\n.\r\nb", "\r\n.", "..\r\n", "a\nb", "a\rb", "x\r", "\r\n\r\n.\r\n.\r\n"} {
		f.Add([]byte(s), 3)
	}
	f.Fuzz(func(t *testing.T, msg []byte, cut int) {
		var s stuffer
		var out []byte
		var err error
		n := max(1, cut&0xff)
		for rest := msg; len(rest) > 0 && err == nil; {
			k := min(n, len(rest))
			out, err = s.append(out, rest[:k])
			rest = rest[k:]
		}
		if err == nil {
			out, err = s.end(out)
		}
		bare := bytes.Count(msg, []byte("\r")) != bytes.Count(msg, []byte("\r\n")) || bytes.Count(msg, []byte("\n")) != bytes.Count(msg, []byte("\r\n"))
		if bare != (err != nil) {
			t.Fatalf("%q: error %v", msg, err)
		}
		if err != nil {
			return
		}
		want := string(msg)
		if !strings.HasSuffix(want, "\r\n") && want != "" {
			want += "\r\n"
		}
		if got, rest := unstuff(out); got != want || rest != "" {
			t.Fatalf("%q came as %q and %q", msg, got, rest)
		}
	})
}

// unstuff reads as a server does, up to the final dot, and answers with what follows it.
func unstuff(b []byte) (msg, rest string) {
	r := bufio.NewReader(bytes.NewReader(b))
	var out strings.Builder
	for {
		line, err := r.ReadString('\n')
		if err != nil {
			return out.String(), "no final dot"
		}
		if line == ".\r\n" {
			left, _ := r.ReadString(0)
			return out.String(), left
		}
		out.WriteString(strings.TrimPrefix(line, "."))
	}
}

func FuzzReply(f *testing.F) {
	for _, s := range []string{"250 ok\r\n", "250-a\r\n250 b\r\n", "220\n", "550 5.1.1 5.1.1 x\r\n", "junk\r\n", "250-\r\n", "2500 x\r\n", "999 x\r\n"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		client, server := net.Pipe()
		defer client.Close()
		go func() { _, _ = server.Write(b); _ = server.Close() }()
		rep, err := newWire(client).reply()
		if err == nil && (rep.Code < 200 || rep.Code > 599 || strings.ContainsAny(rep.String(), "\r\n") || len(rep.Text) > maxReplyText) {
			t.Errorf("%q gave %+v", b, rep)
		}
	})
}

// A tiny sink: the cost of delivery itself.
func BenchmarkDeliver4K(b *testing.B) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	defer ln.Close()
	go func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			go sink(conn)
		}
	}()
	t := &testing.T{}
	d := testDelivery(t, config.SendConnector{SmartHosts: []string{ln.Addr().String()}, MaxPerConn: 1 << 30})
	defer d.Close()
	item := testItem("a@x.example")
	item.Mail.Body = envelope.MemoryBody(bytes.Repeat([]byte("0123456789 0123456789 0123456789 0123456789 0123456789 0123\r\n"), 64))
	b.ReportAllocs()
	for b.Loop() {
		if res := d.Deliver(context.Background(), item); res[0].State != envelope.Delivered {
			b.Fatal(res)
		}
	}
}

// sink answers whatever comes: one reply to EHLO, three to a group, one to a final dot.
func sink(conn net.Conn) {
	defer conn.Close()
	_, _ = conn.Write([]byte("220 sink\r\n"))
	buf := make([]byte, 128<<10)
	for {
		n, err := conn.Read(buf)
		if err != nil {
			return
		}
		switch b := buf[:n]; {
		case bytes.HasPrefix(b, []byte("EHLO")):
			_, err = conn.Write([]byte("250-sink\r\n250-PIPELINING\r\n250-SIZE\r\n250-DSN\r\n250 8BITMIME\r\n"))
		case bytes.HasPrefix(b, []byte("MAIL")):
			_, err = conn.Write([]byte("250 ok\r\n250 ok\r\n354 go\r\n"))
		case bytes.HasSuffix(b, []byte("\r\n.\r\n")):
			_, err = conn.Write([]byte("250 2.0.0 ok\r\n"))
		case bytes.HasPrefix(b, []byte("QUIT")):
			_, _ = conn.Write([]byte("221 bye\r\n"))
			return
		}
		if err != nil {
			return
		}
	}
}

// The commands of a transaction come in one piece where PIPELINING is offered, and so does a small message.
func TestOneWriteForTheGroupAndOneForTheMessage(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	pieces := make(chan string, 10)
	go func() {
		conn, err := ln.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		_, _ = conn.Write([]byte("220 sink\r\n"))
		buf := make([]byte, 64<<10)
		for _, answer := range []string{"250-sink\r\n250 PIPELINING\r\n", "250 ok\r\n250 ok\r\n250 ok\r\n354 go\r\n", "250 ok\r\n"} {
			n, err := conn.Read(buf)
			if err != nil {
				return
			}
			pieces <- string(buf[:n])
			_, _ = conn.Write([]byte(answer))
		}
	}()
	d := testDelivery(t, config.SendConnector{SmartHosts: []string{ln.Addr().String()}}, shortTimeouts)
	for _, r := range deliver(t, d, testItem("a@x.example", "b@x.example")) {
		want(t, r, envelope.Relayed, "250")
	}
	<-pieces
	if got := <-pieces; got != "MAIL FROM:<sender@source.example>\r\nRCPT TO:<a@x.example>\r\nRCPT TO:<b@x.example>\r\nDATA\r\n" {
		t.Errorf("group %q", got)
	}
	if got := <-pieces; got != strings.ReplaceAll(testContent, "\r\n.", "\r\n..")+".\r\n" {
		t.Errorf("message %q", got)
	}
}
