package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/posternmail/postern/internal/lack"
	"github.com/posternmail/postern/sdk"
	"github.com/posternmail/postern/sdk/agenttest"
)

func TestReadme(t *testing.T) { agenttest.CheckReadme(t, New, "README.md") }

func TestConfig(t *testing.T) {
	for _, c := range []struct{ config, want string }{
		{``, ``},
		{`answers = 2`, `answers: without engine blocks there is one engine, which can give no 2 answers`},
		{`engine "a" {}`, `engine[0]: engine "a" needs exactly one of the blocks clamd, icap and command`},
		{"engine \"a\" {\nclamd {}\ncommand {\nrun = [\"x\"]\n}\n}", `engine[0]: engine "a" needs exactly one of the blocks clamd, icap and command`},
		{"engine \"A B\" {\nclamd {}\n}", `engine[0]: "A B" is no name: up to 32 small letters, digits, dots and hyphens`},
		{"engine \"a\" {\nclamd {}\n}\nengine \"a\" {\nclamd {}\n}", `engine[1]: a second engine "a"`},
		{"engine \"a\" {\nclamd {\naddress = \"nowhere\"\n}\n}", `engine[0].clamd.address: "nowhere" is neither unix:/path nor host:port`},
		{"engine \"a\" {\nclamd {\naddress = \"h:1\"\ntransfer = \"fildes\"\n}\n}", `engine[0].clamd.address: descriptors can be handed over on a Unix socket only`},
		{"engine \"a\" {\nicap {\nurl = \"http://h/\"\n}\n}", `engine[0].icap.url: "http://h/" is no URL such as icap://127.0.0.1:1344/avscan`},
		{"engine \"a\" {\ncommand {\nrun = []\n}\n}", `engine[0].command.run: names no program`},
		{"engine \"a\" {\nclamd {}\n}\nanswers = 2", `answers: 1 engines can give no 2 answers`},
		{`response = "a\nb"`, `response: a reply is one line of ASCII`},
		{`response = "` + strings.Repeat("x", 241) + `"`, `response: text of 241 characters, at most 240`},
		{`notice = "` + strings.Repeat("x", 2001) + `"`, `notice: text of 2001 octets, at most 2000`},
		{`stamp_key "k" {}`, `stamp_key[0]: key "k" needs one of secret, private_key and public_key`},
		{"stamp_key \"k\" {\nsecret = \"short\"\n}", `stamp_key[0]: the secret of key "k" has 5 characters, 16 are the least`},
		{"stamp_key \"k\" {\npublic_key = \"AAAA\"\n}", `stamp_key[0]: the public key "k" is not 32 octets in base64`},
	} {
		t.Run(c.want, func(t *testing.T) {
			got := strings.Join(agenttest.Diagnostics(t, New, c.config, agenttest.WithInfo(info())), "\n")
			if got != c.want {
				t.Errorf("%q", got)
			}
		})
	}
}

// clamdAt is an engine block.
func clamdAt(name, socket, more string) string {
	return fmt.Sprintf("engine %q {\n%s\nclamd {\naddress = %q\n}\n}\n", name, more, socket)
}

const plainMessage = "From: a@x.example\nSubject: hello\n\nhello virus-word\n"

// TestBias has three engines of different opinion.
func TestBias(t *testing.T) {
	finds := fakeClamd(t, sane)
	other := fakeClamd(t, answering("stream: Other FOUND"))
	clean := fakeClamd(t, answering("stream: OK"))
	down := "/nowhere/clamd"
	slow := fakeClamd(t, answering(hang))
	for _, c := range []struct{ name, config, verdict, data string }{
		{"any, one finds", clamdAt("a", clean, "") + clamdAt("b", finds, ""), "reject", "word in the message (b); word in text/plain (b)"},
		{"any, both find", clamdAt("a", finds, "") + clamdAt("b", other, ""), "reject", "word in the message (a, b); word in text/plain (a, b)"},
		{"any, none finds", clamdAt("a", clean, "") + clamdAt("b", clean, ""), "done", "a ClamAV 9.9.9/1000, b ClamAV 9.9.9/1000"},
		{"any, one is down", clamdAt("a", down, "") + clamdAt("b", clean, ""), "done", "b ClamAV 9.9.9/1000"},
		{"any, one is down, one finds", clamdAt("a", down, "") + clamdAt("b", finds, "") + "answers = 2", "reject", "word in the message (b); word in text/plain (b)"},
		{"any, one is down, two have to answer", clamdAt("a", down, "") + clamdAt("b", clean, "") + "answers = 2", "undetermined", "a: dial: connect: no such file or directory"},
		{"any, one hangs", clamdAt("a", slow, "timeout = \"300ms\"") + clamdAt("b", clean, ""), "done", "b ClamAV 9.9.9/1000"},
		{"majority, one of two", clamdAt("a", clean, "") + clamdAt("b", finds, "") + `bias = "majority"`, "done", "a ClamAV 9.9.9/1000, b ClamAV 9.9.9/1000"},
		{"majority, two of three", clamdAt("a", clean, "") + clamdAt("b", finds, "") + clamdAt("c", other, "") + `bias = "majority"`, "reject", "word in the message (b, c); word in text/plain (b, c)"},
		{"majority, one of those that answer", clamdAt("a", down, "") + clamdAt("b", finds, "") + `bias = "majority"`, "reject", "word in the message (b); word in text/plain (b)"},
		{"first", clamdAt("a", clean, "") + clamdAt("b", finds, "") + `bias = "first"`, "done", "a ClamAV 9.9.9/1000"},
		{"first is down", clamdAt("a", down, "") + clamdAt("b", finds, "") + `bias = "first"`, "reject", "word in the message (b); word in text/plain (b)"},
		{"fastest", clamdAt("a", slow, "") + clamdAt("b", finds, "") + `bias = "fastest"`, "reject", "word in the message (b); word in text/plain (b)"},
		{"fastest, all down", clamdAt("a", down, "") + clamdAt("b", down, "") + `bias = "fastest"`, "undetermined",
			"a: dial: connect: no such file or directory; b: dial: connect: no such file or directory"},
	} {
		t.Run(c.name, func(t *testing.T) {
			o := send(start(t, c.config), plainMessage).WantVerdict(c.verdict)
			if got := o.Answer().GetVerdicts()[0].GetData(); got != c.data {
				t.Errorf("data %q, want %q", got, c.data)
			}
		})
	}
}

// TestActions: what is infected has the fate of its direction, before and after its acceptance.
func TestActions(t *testing.T) {
	a := start(t, clamdAt("clamd", fakeClamd(t, sane), "")+`
		external_action = "reject"
		outbound_action = "quarantine"
		internal_action = "delete"
		response        = "No malware, please"`)
	external := send(a, plainMessage).Want(550, "5.7.1").WantReason("Malware").WantStamp("av.status", "infected").
		WantStamp("malware", "word").WantCount("infected", 1).WantCount("rejected", 1)
	if text := external.Answer().GetVerdicts()[0].GetReply().GetText(); text != "No malware, please" {
		t.Errorf("the client reads %q", text)
	}
	outbound := a.From("192.0.2.1").Authenticated("joe")
	outbound.Mail("a@y.example")
	outbound.To("b@x.example")
	outbound.Data(plainMessage).WantVerdict("quarantine").WantCount("quarantined", 1)
	internal := a.From("192.0.2.1").Trusted(sdk.User, sdk.Internal)
	internal.Mail("a@y.example")
	internal.To("b@y.example")
	internal.Data(plainMessage).WantVerdict("discard").WantCount("deleted", 1)

	// Right of the 250 line only a sender who authenticated is told.
	external.Submitted().WantVerdict("quarantine").WantReason("Malware")
	user := start(t, clamdAt("clamd", fakeClamd(t, sane), "")).From("192.0.2.1").Authenticated("joe")
	user.Mail("a@y.example")
	user.To("b@x.example")
	user.Data(plainMessage).Want(550, "5.7.1")
	user.Submitted().Want(550, "5.7.1").WantVerdict("fail")
}

// TestStrip replaces what is infected by a notice, and nothing else.
func TestStrip(t *testing.T) {
	const strip = `external_action = "strip"`
	clamd := clamdAt("clamd", fakeClamd(t, sane), "")
	a := start(t, clamd+strip)
	notice := func(text string) string {
		return "Content-Type: text/plain; charset=utf-8\nContent-Disposition: inline\nContent-Transfer-Encoding: base64\n\n" +
			strings.TrimRight(encoded([]byte(text+"\r\n")), "\n")
	}
	const head = "From: a@x.example\nMIME-Version: 1.0\nContent-Type: multipart/mixed; boundary=b\n\n"
	exe := "--b\nContent-Type: application/octet-stream; name=\"a.exe\"\nContent-Transfer-Encoding: base64\n\n" + encoded([]byte("virus-one"))
	send(a, head+"--b\n\nhello\n"+exe+"--b\n\nbye\n--b--\n").WantVerdict("done").WantReason("Malware").WantCount("stripped", 1).
		WantStamp("av.status", "infected").
		WantBody("--b\n\nhello\n--b\n" + notice("The attachment a.exe was removed by the mail server: it contains malware (one).") + "\n--b\n\nbye\n--b--\n")

	// Two, one of them deep inside a message that was encoded although that is forbidden.
	inner := "Content-Type: message/rfc822\nContent-Transfer-Encoding: base64\n\n" +
		encoded([]byte("Content-Type: multipart/mixed; boundary=c\n\n--c\nContent-Transfer-Encoding: base64\n\n"+encoded([]byte("virus-two"))+"--c--\n"))
	send(a, head+exe+"--b\n"+inner+"--b--\n").WantVerdict("done").
		WantBody("--b\n" + notice("The attachment a.exe was removed by the mail server: it contains malware (one).") + "\n--b\n" +
			notice("The attachment message/rfc822 was removed by the mail server: it contains malware (two).") + "\n--b--\n")

	// In no part alone: nothing is left but the header.
	send(a, "Subject: virus-subject\nContent-Type: text/html\n\n<p>hello\n").WantVerdict("done").
		WantHeaderAdded("Content-Type", "text/plain; charset=utf-8").
		WantBody(strings.TrimSuffix(encoded([]byte("The attachment the message was removed by the mail server: it contains malware (subject).\r\n")), "\n"))

	// After its acceptance too.
	s := a.From("192.0.2.1")
	s.Mail("a@x.example")
	s.To("b@y.example")
	s.Data(head + exe + "--b--\n")
	s.Submitted().WantVerdict("done").WantReason("Malware")
}

// TestTrouble: an engine that gives no answer is no pass.
func TestTrouble(t *testing.T) {
	hanging := func(command string, content []byte) string { return hang }
	for name, c := range map[string]struct {
		say  behaviour
		data string
	}{
		"hangs":            {answering(hang), "clamd: no answer within 500ms"},
		"hangs at once":    {hanging, "clamd: no answer within 500ms"},
		"dies":             {answering(die), "clamd: the connection ended without an answer"},
		"garbage":          {answering("what?"), "clamd: cannot be understood: what?"},
		"binary":           {answering("\xff\xfe\x01"), "clamd: cannot be understood: ??"},
		"endless":          {answering(strings.Repeat("x", 1<<20)), "clamd: an endless answer"},
		"empty name":       {answering("stream:  FOUND"), "clamd: cannot be understood: stream:  FOUND"},
		"error":            {answering("lstat() failed: No such file or directory. ERROR"), "clamd: clamd refuses: lstat() failed: No such file or directory. ERROR"},
		"without a number": {answering("UNKNOWN COMMAND\x00"), "clamd: clamd refuses: UNKNOWN COMMAND"},
	} {
		t.Run(name, func(t *testing.T) {
			timeout := ""
			if strings.HasSuffix(c.data, "within 500ms") {
				timeout = `timeout = "500ms"` // the others have time, however busy this machine is
			}
			a := start(t, clamdAt("clamd", fakeClamd(t, c.say), timeout))
			for range 2 {
				o := send(a, plainMessage).WantVerdict("undetermined").WantReason("EngineDown")
				if got := o.Answer().GetVerdicts()[0].GetData(); got != c.data {
					t.Errorf("data %q, want %q", got, c.data)
				}
			}
		})
	}
	for policy, verdict := range map[string]string{"pass": "done", "quarantine": "quarantine", "undetermined": "undetermined"} {
		t.Run(policy, func(t *testing.T) {
			a := start(t, clamdAt("clamd", "/nowhere/clamd", "")+fmt.Sprintf("on_engine_down = %q", policy))
			o := send(a, plainMessage).WantVerdict(verdict).WantReason("EngineDown")
			if policy != "undetermined" {
				o.WantStamp("av.status", "unscanned").WantCount("unscanned", 1)
			}
		})
	}
}

// TestBackAgain: connections that clamd has ended meanwhile, as it does when it is restarted, cost no message.
func TestBackAgain(t *testing.T) {
	var mu sync.Mutex
	n := 0
	a := start(t, clamdAt("clamd", fakeClamd(t, func(command string, content []byte) string {
		mu.Lock()
		defer mu.Unlock()
		if n++; n%9 == 0 {
			return die
		}
		return sane(command, content)
	}), "")+`on_engine_down = "quarantine"`)
	for range 20 {
		send(a, plainMessage).Want(550, "5.7.1")
	}
}

// TestSizes: what nobody looks at is never silent.
func TestSizes(t *testing.T) {
	socket := fakeClamd(t, sane)
	large := withFile("large.bin", bytes.Repeat([]byte("0123456789abcdef"), 4<<10))
	tooLarge := "large.bin has 65536 octets, too many for every engine"
	small := clamdAt("small", socket, `max_size = "60KiB"`)
	for _, c := range []struct{ name, config, message, verdict, reason, data string }{
		{"own limit", small, large, "reject", "OverLimit", tooLarge},
		{"let pass", small + `over_limit = "pass"`, large, "done", "OverLimit", tooLarge},
		{"quarantined", small + `over_limit = "quarantine"`, large, "quarantine", "OverLimit", tooLarge},
		{"another engine takes it", small + clamdAt("large", socket, ""), large, "done", "Clean", "small ClamAV 9.9.9/1000, large ClamAV 9.9.9/1000"},
		{"infected all the same", small + `over_limit = "pass"`, strings.Replace(large, "hello", "virus-word", 1), "reject", "Malware",
			"word in text/plain (small)"},
		{"the engine's limit", clamdAt("clamd", fakeClamd(t, answering("INSTREAM size limit exceeded. ERROR\x00")), ""), plainMessage, "reject",
			"OverLimit", "text/plain has 18 octets, too many for every engine"},
		{"the engine's other limit", clamdAt("clamd", fakeClamd(t, answering("fd[9]: Heuristics.Limits.Exceeded.MaxFileSize FOUND")), ""), plainMessage,
			"reject", "OverLimit", "text/plain has 18 octets, too many for every engine"},
		{"only the whole is too large", clamdAt("clamd", socket, `max_size = "66KiB"`), large, "done", "Clean", "clamd ClamAV 9.9.9/1000"},
	} {
		t.Run(c.name, func(t *testing.T) {
			o := send(start(t, c.config), c.message).WantVerdict(c.verdict).WantReason(c.reason)
			if got := o.Answer().GetVerdicts()[0].GetData(); got != c.data {
				t.Errorf("data %q, want %q", got, c.data)
			}
			if c.reason == "OverLimit" {
				o.WantStamp("av.status", "unscanned").WantCount("over_limit", 1)
			}
		})
	}
	o := send(start(t, small), large).Want(550, "5.7.1")
	if text := o.Answer().GetVerdicts()[0].GetReply().GetText(); text != "Message rejected because it is too large or too complex to be scanned" {
		t.Errorf("the client reads %q", text)
	}
}

// TestHostile: bounded work and a verdict for what is made to cost.
func TestHostile(t *testing.T) {
	var many, same, nested strings.Builder
	const head = "Content-Type: multipart/mixed; boundary=b\n\n"
	many.WriteString(head)
	same.WriteString(head)
	for i := range 10_000 {
		fmt.Fprintf(&many, "--b\n\npart %d\n", i)
	}
	for range 900 {
		same.WriteString("--b\nContent-Transfer-Encoding: base64\n\n" + encoded(bytes.Repeat([]byte("x"), 1000)))
	}
	for i := range 200 {
		fmt.Fprintf(&nested, "Content-Type: multipart/mixed; boundary=b%d\n\n--b%d\n", i, i)
	}
	inside := "Subject: innermost\n\nvirus-deep\n"
	for range 30 {
		inside = "Content-Type: message/rfc822\nContent-Transfer-Encoding: base64\n\n" + encoded([]byte(inside))
	}
	reopened := head + "--b\n\nx\n" + strings.Repeat("--b--\n--b\n\nx\n", 5000) + "--b--\n"
	boundaries := "Content-Type: multipart/mixed" + strings.Repeat("; boundary=b", 5) + "\nContent-Type: multipart/mixed; boundary=c\n" +
		"Content-Type: multipart/mixed; boundary=d\n\n" + strings.Repeat("--b\n\nx\n--c\n\ny\n--d\n\nz\n", 3000)
	var mu sync.Mutex
	scans := 0
	a := start(t, clamdAt("clamd", fakeClamd(t, func(command string, content []byte) string {
		mu.Lock()
		defer mu.Unlock()
		if command != "VERSION" {
			scans++
		}
		return sane(command, content)
	}), "")+`max_unpacked = "1MiB"`)
	for name, c := range map[string]struct{ message, verdict, reason string }{
		"10,000 parts":        {many.String(), "reject", "OverLimit"},
		"200 deep":            {nested.String(), "reject", "OverLimit"},
		"30 encoded messages": {inside, "reject", "OverLimit"},
		"reopened":            {reopened, "reject", "OverLimit"},
		"many boundaries":     {boundaries, "reject", "OverLimit"},
		"900 equal parts":     {same.String(), "done", "Clean"},
		"1 MB header of part": {head + "--b\nX: " + strings.Repeat("x", 1<<20) + "\n\n", "reject", "OverLimit"},
		"too much":            {withFile("a", bytes.Repeat([]byte("0123456789"), 200_000)), "reject", "OverLimit"},
		"no header at all":    {"\n\nvirus-x\n", "reject", "Malware"},
		"nothing":             {"\n\n", "done", "Clean"},
		"NUL":                 {"Subject: x\n\n\x00\x00virus-x\x00", "reject", "Malware"},
	} {
		mu.Lock()
		scans = 0
		mu.Unlock()
		if o := send(a, c.message); o.Answer().GetVerdicts()[0].GetReason() != c.reason {
			t.Errorf("%s:", name)
			o.WantReason(c.reason)
		} else {
			o.WantVerdict(c.verdict)
		}
		mu.Lock()
		if name == "900 equal parts" && scans > 2*3 {
			t.Errorf("equal parts were scanned %d times", scans)
		}
		mu.Unlock()
	}
}

// TestEvasions: malformed messages that some program shows with the file in it. The fake engine knows no MIME at all.
func TestEvasions(t *testing.T) {
	code := encoded([]byte("what a reader sees: virus-word, and more of it to make a long line"))
	line := strings.TrimSuffix(code, "\n")
	padded := encoded([]byte("padding!")) + encoded([]byte("then: virus-word"))
	const mixed = "Content-Type: multipart/mixed; boundary=b\n"
	part := "Content-Transfer-Encoding: base64\n\n" + code
	for name, message := range map[string]string{
		"base64":                           part,
		"in a multipart":                   mixed + "\n--b\n" + part + "--b--\n",
		"quoted-printable":                 "Content-Transfer-Encoding: quoted-printable\n\nvi=\nrus=2dwo=72d\n",
		"quoted-printable, malformed":      "Content-Transfer-Encoding: quoted-printable\n\n=ZZ =\nvirus=2Dword =\n",
		"comment in the encoding":          "Content-Transfer-Encoding: (x) base64 (y)\n\n" + code,
		"two encodings":                    "Content-Transfer-Encoding: 7bit\n" + part,
		"two encodings, the other way":     "Content-Transfer-Encoding: base64\nContent-Transfer-Encoding: quoted-printable\n\nvirus=2dword\n",
		"unknown encoding":                 "Content-Transfer-Encoding: base-64\n\n" + code,
		"no encoding named":                mixed + "\n--b\n\n" + code + "--b--\n",
		"junk in base64":                   "Content-Transfer-Encoding: base64\n\n" + line[:9] + "!*~ \n#" + line[9:] + "\n",
		"base64 goes on behind padding":    "Content-Transfer-Encoding: base64\n\n" + padded,
		"base64 without padding":           "Content-Transfer-Encoding: base64\n\n" + strings.TrimRight(encoded([]byte("virus-word")), "=\n") + "\n",
		"uuencoded":                        "Subject: x\n\nsee below\nbegin 644 a.exe\n*=FER=7,M=V]R9`\n`\nend\n",
		"two Content-Types":                "Content-Type: text/plain\n" + mixed + "\n--b\n" + part + "--b--\n",
		"two Content-Types, other order":   mixed + "Content-Type: multipart/mixed; boundary=c\n\n--c\n" + part + "--c--\n",
		"two boundaries":                   "Content-Type: multipart/mixed; boundary=a; boundary=b\n\n--b\n" + part + "--b--\n",
		"boundary does not match":          "Content-Type: multipart/mixed; boundary=a\n\n--b\nContent-Type: x/y\n" + part + "--b--\n",
		"no boundary":                      "Content-Type: multipart/mixed\n\n--b\nContent-Type: x/y\n" + part + "--b--\n",
		"behind the end":                   mixed + "\n--b\n\nx\n--b--\n\n--b\n" + part + "--b--\n",
		"not ended":                        mixed + "\n--b\n" + part,
		"attached message":                 mixed + "\n--b\nContent-Type: message/rfc822\n\n" + part + "--b--\n",
		"attached message, encoded":        mixed + "\n--b\nContent-Type: message/rfc822\nContent-Transfer-Encoding: base64\n\n" + encoded([]byte(part)) + "--b--\n",
		"multipart, encoded":               "Content-Type: multipart/mixed; boundary=c\nContent-Transfer-Encoding: base64\n\n" + encoded([]byte("--c\n"+part+"--c--\n")),
		"attached message, encoded twice":  mixed + "\n--b\nContent-Type: message/rfc822\nContent-Transfer-Encoding: quoted-printable\n\nContent-Type: message/rfc822\nContent-Transfer-Encoding: base64\n\n" + strings.ReplaceAll(encoded([]byte(part)), "=", "=3D") + "--b--\n",
		"space before the colon":           "Content-Transfer-Encoding : base64\n\n" + code,
		"folded fields":                    "Content-Type:\n multipart/mixed;\n boundary=\n \"b\"\n\n--b\n" + part + "--b--\n",
		"boundary with special characters": "Content-Type: multipart/mixed; boundary=\"a;b c\"\n\n--a;b c\n" + part + "--a;b c--\n",
	} {
		t.Run(name, func(t *testing.T) {
			s := &Scanner{Config: Config{MaxParts: 1000, MaxDepth: 20, MaxUnpacked: sdk.MiB}}
			message = strings.ReplaceAll(message, "\n", "\r\n")
			header, body, _ := strings.Cut(message, "\r\n\r\n")
			u, err := s.unpack(context.Background(), []byte(header+"\r\n"), bytes.NewReader([]byte(body)))
			if err != nil {
				t.Fatal(err)
			}
			defer u.close()
			for _, o := range u.objects {
				content, err := io.ReadAll(o.open())
				if err != nil || int64(len(content)) != o.size {
					t.Errorf("%s: %d of %d octets, %v", o.name, len(content), o.size, err)
				}
				if strings.Contains(string(content), "virus-word") {
					return
				}
			}
			t.Errorf("not found in %d objects", len(u.objects))
		})
	}
}

// TestCache: an equal part of another message is not scanned again, until the engine knows more.
func TestCache(t *testing.T) {
	var mu sync.Mutex
	scanned, release := 0, "1000"
	socket := fakeClamd(t, func(command string, content []byte) string {
		mu.Lock()
		defer mu.Unlock()
		if command == "VERSION" {
			return "ClamAV 9.9.9/" + release + "/Thu Jan  1 09:00:00 2026"
		}
		if len(content) == 64<<10 {
			scanned++
		}
		return sane(command, content)
	})
	count := func() int {
		mu.Lock()
		defer mu.Unlock()
		return scanned
	}
	content := bytes.Repeat([]byte("0123456789abcdef"), 4<<10)
	a := start(t, clamdAt("clamd", socket, ""))
	for i := range 4 {
		send(a, "X: "+fmt.Sprint(i)+"\n"+withFile("large.bin", content)).WantReason("Clean")
	}
	if count() != 2 { // once in each world of the test
		t.Errorf("scanned %d times, want 2", count())
	}
	if rows := a.Rows("results"); len(rows) != 1 || !strings.HasPrefix(rows[0].Key, "clamd|ClamAV 9.9.9/1000|") || rows[0].Value != `{"malware":""}` {
		t.Errorf("rows %+v", rows)
	}
	a.Advance(25 * time.Hour)
	send(a, withFile("large.bin", content)).WantReason("Clean")
	if count() != 4 {
		t.Errorf("scanned %d times after the results have expired, want 4", count())
	}
	mu.Lock()
	release = "1001"
	mu.Unlock()
	a.Schedule() // asks for the version, in one process of each world
	a.Schedule()
	send(a, withFile("large.bin", content)).WantReason("Clean").WantStamp("engines", "clamd ClamAV 9.9.9/1001")
	if count() != 6 {
		t.Errorf("scanned %d times by the new version, want 6", count())
	}
	infected := append([]byte("virus-word "), content...)
	send(a, withFile("evil.bin", infected)).Want(550, "5.7.1")
	o := send(a, withFile("evil.bin", infected)).Want(550, "5.7.1")
	if data := o.Answer().GetVerdicts()[0].GetData(); data != "word in evil.bin (clamd)" {
		t.Errorf("data %q", data)
	}

	off := start(t, clamdAt("clamd", socket, "")+`cache_for = "0s"`)
	before := count()
	for range 3 {
		send(off, withFile("large.bin", content)).WantReason("Clean")
	}
	if count() != before+6 {
		t.Errorf("scanned %d times without a cache, want 6", count()-before)
	}
}

// TestSchedule notes the state of engines.
func TestSchedule(t *testing.T) {
	socket := fakeClamd(t, sane)
	a := start(t, clamdAt("good", socket, "")+clamdAt("old", socket, `stale_after = "1h"`)+clamdAt("gone", "/nowhere/clamd", ""))
	a.Schedule()
	want := map[string]string{
		"good": `{"state":"ok","since":"2026-01-01T12:00:00Z","version":"ClamAV 9.9.9/1000","signatures":"2026-01-01T09:00:00Z","changed":"2026-01-01T12:00:00Z"}`,
		"old":  `{"state":"stale","since":"2026-01-01T12:00:00Z","version":"ClamAV 9.9.9/1000","signatures":"2026-01-01T09:00:00Z","changed":"2026-01-01T12:00:00Z","detail":"they are of 2026-01-01T09:00:00Z"}`,
		"gone": `{"state":"down","since":"2026-01-01T12:00:00Z","detail":"gone: dial: connect: no such file or directory"}`,
	}
	check := func() {
		t.Helper()
		for _, row := range a.Rows("engines") {
			if row.Value != want[row.Key] {
				t.Errorf("%s is %s\nwant %s", row.Key, row.Value, want[row.Key])
			}
		}
	}
	check()
	a.Advance(time.Hour)
	a.Schedule()
	if len(a.Rows("engines")) != 3 {
		t.Errorf("rows %+v", a.Rows("engines"))
	}
	check() // since and changed stay
}

// TestNoEngine has an empty configuration: mail flows, and says that it was not scanned; a clamd that starts later is found, and is
// missed when it goes.
func TestNoEngine(t *testing.T) {
	if !inChild() {
		for _, place := range usual {
			if conn, err := net.Dial(place.network, place.name); err == nil {
				conn.Close()
				lack.Of(t, "a machine without a clamd at %s", place.name)
			}
		}
	}
	a := start(t, ``)
	o := send(a, plainMessage).WantVerdict("done").WantReason("NoEngine").WantStamp("av.status", "unscanned").WantCount("unscanned", 1)
	if data := o.Answer().GetVerdicts()[0].GetData(); data != "clamd: no clamd at the usual places" {
		t.Errorf("data %q", data)
	}
	a.Schedule()
	if rows := a.Rows("engines"); len(rows) != 0 {
		t.Errorf("rows %+v", rows)
	}

	stop := fakeClamdTCP(t, "127.0.0.1:3310")
	send(a, plainMessage).Want(550, "5.7.1").WantReason("Malware")
	a.Schedule()
	stop()
	send(a, plainMessage).WantVerdict("undetermined").WantReason("EngineDown")
	send(a, plainMessage).WantVerdict("undetermined").WantReason("EngineDown")
	a.Schedule()
	a.Advance(8 * 24 * time.Hour)
	send(a, plainMessage).WantReason("NoEngine")
}

// fakeClamdTCP serves at an address until it is stopped.
func fakeClamdTCP(t *testing.T, addr string) (stop func()) {
	t.Helper()
	l, err := net.Listen("tcp", addr)
	if err != nil {
		lack.Of(t, "clamd's usual port: %v", err)
	}
	return accept(t, l, func(conn net.Conn) { serveClamd(conn, sane) })
}

// TestDescriptor: clamd gets the descriptor that the body came with, and reads the body with it.
func TestDescriptor(t *testing.T) {
	var mu sync.Mutex
	kinds := map[string]int{}
	content := strings.Repeat("0123456789abcde\r\n", 4<<10)
	a := start(t, clamdAt("clamd", fakeClamd(t, func(command string, got []byte) string {
		mu.Lock()
		defer mu.Unlock()
		if string(got) == content {
			kinds[command]++
		}
		return sane(command, got)
	}), ""))
	send(a, "Content-Type: application/octet-stream\n\n"+content).WantReason("Clean")
	mu.Lock()
	defer mu.Unlock()
	if kinds["FILDES"] != 2 || kinds["INSTREAM"] != 0 {
		t.Errorf("the body was given by %v", kinds)
	}
}

// TestFallback: a clamd that takes no descriptors is sent the octets, without a message being lost on it.
func TestFallback(t *testing.T) {
	for _, reply := range []string{"UNKNOWN COMMAND\x00", "lstat() failed: Permission denied. ERROR", "COMMAND UNAVAILABLE"} {
		a := start(t, clamdAt("clamd", fakeClamd(t, func(command string, content []byte) string {
			if command == "FILDES" {
				return reply
			}
			return sane(command, content)
		}), ""))
		send(a, plainMessage).Want(550, "5.7.1").WantReason("Malware")
		send(a, plainMessage).Want(550, "5.7.1").WantReason("Malware")
	}
}

func FuzzUnpack(f *testing.F) {
	f.Add("Content-Type: multipart/mixed; boundary=b; boundary=c", "--b\r\n\r\nx\r\n--b--\r\n--b\r\n\r\ny\r\n")
	f.Add("Content-Transfer-Encoding: base64", "QUJD=QUJD\r\nbegin 644 x\r\n#ABC\r\nend\r\n")
	f.Add("Content-Type: message/rfc822\r\nContent-Transfer-Encoding: quoted-printable", "A: b=\r\n=0d=0a=0d=0a=ZZ")
	f.Fuzz(func(t *testing.T, header, body string) {
		s := &Scanner{Config: Config{MaxParts: 50, MaxDepth: 6, MaxUnpacked: 1 << 20}}
		u, err := s.unpack(context.Background(), []byte(header+"\r\n"), bytes.NewReader([]byte(body)))
		if err != nil && !errors.Is(err, errLimit) {
			t.Fatal(err)
		}
		defer u.close()
		for _, o := range u.objects {
			if n, err := io.Copy(io.Discard, o.open()); err != nil || n != o.size {
				t.Errorf("%s: %d of %d octets, %v", o.name, n, o.size, err)
			}
		}
	})
}

func FuzzVerdict(f *testing.F) {
	for _, reply := range []string{"stream: OK", "fd[3]: Eicar FOUND", "x: y ERROR", "stream:  FOUND", "INSTREAM size limit exceeded. ERROR", ""} {
		f.Add(reply)
	}
	f.Fuzz(func(t *testing.T, reply string) {
		malware, err := parseVerdict(reply)
		if err == nil && malware == "" && !strings.HasSuffix(reply, ": OK") {
			t.Errorf("%q counts as clean", reply)
		}
		parseVersion(reply)
	})
}
